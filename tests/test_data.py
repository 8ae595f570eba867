import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gooddrag.data import (
    make_sample,
    parse_points,
    read_image,
    read_mask,
    read_sample,
    to_uint8,
    write_png,
    write_sample,
)
from gooddrag.data.files import read_json, replacing, write_json
from gooddrag.types import DragSample

SHARED = Path(__file__).parents[2] / "shared" / "data"
HEIGHT, WIDTH = 24, 32


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def tensor(pixels):
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def save(path, pixels, mode=None, **options):
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def sample_of(pixels, mask=True, **options):
    field = torch.zeros(1, HEIGHT, WIDTH)
    field[:, 4:9, 3:20] = 1
    handles, targets = (
        torch.tensor([[3.0, 4.0], [5.5, 6.25]]),
        torch.tensor([[7.0, 8.0], [9.0, 1.1]]),
    )
    return DragSample(tensor(pixels), handles, targets, field if mask else None, **options)


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


class TestReadImage:
    def test_round_trip_is_exact(self, tmp_path, pixels):
        write_png(tmp_path / "a.png", torch.from_numpy(pixels))
        image = read_image(tmp_path / "a.png")
        assert torch.equal(image, tensor(pixels))
        for rounding in ("nearest", "truncate"):
            assert torch.equal(to_uint8(image, rounding), torch.from_numpy(pixels))
            assert torch.equal(to_uint8(image.double(), rounding), torch.from_numpy(pixels))

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
    def test_exif_orientation_is_applied(self, tmp_path, pixels, orientation, suffix):
        # what each orientation means, from the EXIF standard: where row 0 and column 0 belong
        stored = {
            1: lambda a: a,
            2: lambda a: a[:, ::-1],
            3: lambda a: a[::-1, ::-1],
            4: lambda a: a[::-1],
            5: lambda a: a.swapaxes(0, 1),
            6: lambda a: np.rot90(a),
            7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
            8: lambda a: np.rot90(a, -1),
        }[orientation](pixels)
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if suffix == "webp" else {}
        path = save(tmp_path / f"a.{suffix}", np.ascontiguousarray(stored), exif=exif, **options)
        assert torch.equal(read_image(path), tensor(pixels))

    def test_damaged_exif_is_ignored(self, tmp_path, pixels):
        path = save(tmp_path / "a.png", pixels, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff rubbish")
        assert torch.equal(read_image(path), tensor(pixels))

    def test_16_bit_grey_is_scaled(self, tmp_path):
        values = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
        for suffix in ("png", "tiff"):
            Image.fromarray(values).save(tmp_path / f"a.{suffix}")
            image = read_image(tmp_path / f"a.{suffix}")
            expected = torch.from_numpy(values.astype(np.float32) / 65535)
            torch.testing.assert_close(image, expected.expand(3, -1, -1), atol=1e-6, rtol=0)

    def test_16_bit_grey_is_turned(self, tmp_path):
        values = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 80
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
        expected = torch.from_numpy(np.rot90(values, -1).astype(np.float32) / 65535)
        torch.testing.assert_close(read_image(tmp_path / "a.png")[0], expected, atol=1e-6, rtol=0)

    def test_16_bit_colour_is_scaled(self, tmp_path):
        values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
        write_png_16(tmp_path / "a.png", values)
        expected = torch.from_numpy(values.astype(np.float32) / 65535).permute(2, 0, 1)
        torch.testing.assert_close(read_image(tmp_path / "a.png"), expected, atol=1 / 255, rtol=0)

    def test_float_of_unknown_scale_is_refused(self, tmp_path):
        Image.fromarray(np.full((20, 20), 0.25, np.float32)).save(tmp_path / "unit.tiff")
        assert torch.equal(read_image(tmp_path / "unit.tiff"), torch.full((3, 20, 20), 0.25))
        Image.fromarray(np.full((20, 20), 300, np.float32)).save(tmp_path / "wild.tiff")
        with pytest.raises(ValueError, match="8 or 16 bits"):
            read_image(tmp_path / "wild.tiff")

    def test_transparency_is_laid_over_white(self, tmp_path, pixels):
        alpha = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
        alpha[:, 10:20], alpha[:, 20:] = 128, 255
        path = save(tmp_path / "a.png", np.concatenate([pixels, alpha], axis=2))
        image, share = read_image(path), torch.from_numpy(alpha / 255).float().permute(2, 0, 1)
        expected = tensor(pixels) * share + 1 - share
        torch.testing.assert_close(image, expected, atol=1 / 255, rtol=0)
        assert (image[:, :, :10] == 1).all()

    def test_palette_with_a_transparent_colour(self, tmp_path):
        image = Image.new("P", (WIDTH, HEIGHT), 0)
        image.putpalette([10, 20, 30, 200, 100, 0])
        image.paste(1, (0, 0, 8, HEIGHT))
        image.save(tmp_path / "a.png", transparency=0)
        found = to_uint8(read_image(tmp_path / "a.png"))
        assert found[0, 0].tolist() == [200, 100, 0]
        assert found[0, -1].tolist() == [255, 255, 255]

    @pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("1", "png"), ("LA", "png")])
    def test_grey(self, tmp_path, pixels, mode, suffix):
        path = save(tmp_path / f"a.{suffix}", pixels, mode)
        with Image.open(path) as picture:
            expected = tensor(np.array(picture.convert("L").convert("RGB")))
        assert torch.equal(read_image(path), expected)

    def test_cmyk(self, tmp_path):
        image = Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0))
        image.save(tmp_path / "a.jpg", quality=100)
        colour = to_uint8(read_image(tmp_path / "a.jpg")).float().mean(dim=(0, 1))
        torch.testing.assert_close(colour, torch.tensor([255.0, 0, 0]), atol=4, rtol=0)

    def test_animation_gives_its_first_frame(self, tmp_path):
        frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        assert to_uint8(read_image(tmp_path / "a.gif"))[5, 5].tolist() == [255, 0, 0]


class TestRefusedImages:
    def refused(self, path, *words, **options):
        with pytest.raises(ValueError) as error:
            read_image(path, **options)
        message = one_line(error)
        assert str(path) in message
        for word in words:
            assert word in message

    def test_not_there(self, tmp_path):
        self.refused(tmp_path / "a.png", "there is no file")

    def test_folder(self, tmp_path):
        self.refused(tmp_path, "is a folder")

    def test_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        self.refused(tmp_path / "pipe", "not a regular file")

    def test_empty(self, tmp_path):
        (tmp_path / "a.png").touch()
        self.refused(tmp_path / "a.png", "empty")

    def test_name_too_long(self, tmp_path):
        self.refused(tmp_path / ("a" * 5000), "cannot be read")

    @pytest.mark.parametrize(
        "content", [b"hello", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
    )
    def test_not_a_picture(self, tmp_path, content):
        (tmp_path / "a.png").write_bytes(content)
        self.refused(tmp_path / "a.png", "not a picture", "JPEG")

    @pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "bmp"])
    def test_cut_off(self, tmp_path, pixels, suffix):
        path = save(tmp_path / f"a.{suffix}", np.tile(pixels, (4, 4, 1)))
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * 0.6)])
        with pytest.raises(ValueError, match=r"damaged or cut off|not a picture") as error:
            read_image(path)
        assert str(path) in one_line(error)

    def test_damaged_inside(self, tmp_path, pixels):
        content = bytearray(save(tmp_path / "a.png", pixels).read_bytes())
        at = content.index(b"IDAT") + 4
        content[at : at + 40] = bytes(40)
        (tmp_path / "a.png").write_bytes(content)
        self.refused(tmp_path / "a.png", "damaged")

    @pytest.mark.parametrize("side", [100_000, 10_000])
    def test_bomb(self, tmp_path, side):
        (tmp_path / "a.png").write_bytes(png_header(side, side))
        self.refused(tmp_path / "a.png", "limit of 50 megapixels")

    def test_limit_is_an_argument(self, tmp_path, pixels):
        path = save(tmp_path / "a.png", pixels)
        assert read_image(path, max_pixels=HEIGHT * WIDTH).shape == (3, HEIGHT, WIDTH)
        self.refused(path, "32 x 24 pixels", max_pixels=HEIGHT * WIDTH - 1)

    def test_too_small(self, tmp_path, pixels):
        self.refused(save(tmp_path / "a.png", pixels[:15]), "32 x 15", "at least 16 x 16")
        assert read_image(save(tmp_path / "b.png", pixels[:16])).shape == (3, 16, WIDTH)


class TestMask:
    def test_more_than_zero_is_editable(self, tmp_path):
        values = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
        path = save(tmp_path / "m.png", values)
        expected = torch.from_numpy((values > 0).astype(np.float32))[None]
        assert torch.equal(read_mask(path, (HEIGHT, WIDTH)), expected)
        above = torch.from_numpy((values > 128).astype(np.float32))[None]
        assert torch.equal(read_mask(path, (HEIGHT, WIDTH), threshold=128), above)

    def test_other_modes(self, tmp_path):
        field = np.zeros((HEIGHT, WIDTH), np.uint8)
        field[3:9, 5:11] = 255
        expected = torch.from_numpy(field / 255).float()[None]
        wide = Image.fromarray(field.astype(np.uint16) * 257)
        wide.save(tmp_path / "wide.png")
        clear = np.full((HEIGHT, WIDTH, 4), 255, np.uint8)
        clear[..., 3] = field
        save(tmp_path / "clear.png", clear)
        blue = np.stack([0 * field, 0 * field, field // 255], axis=2)
        save(tmp_path / "blue.png", blue)
        save(tmp_path / "one.png", field, "1")
        for name in ("wide", "clear", "blue", "one"):
            assert torch.equal(read_mask(tmp_path / f"{name}.png", (HEIGHT, WIDTH)), expected)

    @pytest.mark.parametrize(
        ("name", "how"),
        [
            ("m.jpg", {"quality": 60}),
            ("m.webp", {"quality": 30}),
            ("m.tif", {"compression": "jpeg"}),
        ],
    )
    def test_what_a_format_blurs_is_not_editable(self, tmp_path, name, how):
        field = np.zeros((HEIGHT, WIDTH), np.uint8)
        field[3:9, 5:11] = 255
        Image.fromarray(field).convert("RGB").save(tmp_path / name, **how)
        saved = np.array(Image.open(tmp_path / name).convert("RGB")).max(axis=2)
        assert ((saved > 0) != (field > 0)).sum() > 20
        expected = torch.from_numpy(field / 255).float()[None]
        assert torch.equal(read_mask(tmp_path / name, (HEIGHT, WIDTH)), expected)

    def test_other_size_says_both(self, tmp_path, pixels):
        path = save(tmp_path / "m.png", pixels)
        with pytest.raises(ValueError, match="32 x 24 pixels but the picture is 24 x 32") as error:
            read_mask(path, (WIDTH, HEIGHT))
        assert str(path) in one_line(error)


class TestToUint8:
    def test_rounding(self):
        image = torch.tensor([-1.0, 0.0, 0.999, 1.0, 7.0]).view(1, 1, 5)
        assert to_uint8(image, "truncate").flatten().tolist() == [0, 0, 254, 255, 255]
        assert to_uint8(image, "nearest").flatten().tolist() == [0, 0, 255, 255, 255]

    def test_half_precision(self):
        assert to_uint8(torch.ones(3, 2, 2, dtype=torch.bfloat16)).unique().tolist() == [255]

    def test_refuses(self):
        with pytest.raises(ValueError, match="NaN"):
            to_uint8(torch.full((3, 2, 2), float("nan")))
        with pytest.raises(ValueError, match="rounding"):
            to_uint8(torch.zeros(3, 2, 2), "up")


class TestFiles:
    def test_a_failed_write_leaves_the_old_file(self, tmp_path):
        (tmp_path / "a.txt").write_text("old")
        with pytest.raises(OSError), replacing(tmp_path / "a.txt") as temporary:
            (temporary.write_text("half"), os.unlink(tmp_path / "absent"))
        assert (tmp_path / "a.txt").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]

    def test_a_failed_rename_leaves_nothing(self, tmp_path, pixels):
        (tmp_path / "a.png").mkdir()
        with pytest.raises(OSError):
            write_png(tmp_path / "a.png", torch.from_numpy(pixels))
        assert [path.name for path in tmp_path.iterdir()] == ["a.png"]

    def test_json_is_strict(self, tmp_path):
        write_json(tmp_path / "a.json", {"a": (1, float("nan"), Path("b")), 3: [True, None, 0.1]})
        content = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
        assert content == {"a": [1, None, "b"], "3": [True, None, 0.1]}

    def test_rights_follow_the_umask(self, tmp_path):
        write_json(tmp_path / "a.json", {})
        (tmp_path / "b.json").write_text("{}")
        assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "b.json").stat().st_mode

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b'{"points": [[1, 2],', "line 1, column"),
            (b"\xff\xfe\x00", "UTF-8"),
            (b"[" * 200_000, "not a JSON file|not valid JSON"),
            (b"", "not valid JSON"),
        ],
    )
    def test_bad_json(self, tmp_path, content, words):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match=words) as error:
            read_json(tmp_path / "a.json")
        assert str(tmp_path / "a.json") in one_line(error)


class TestPoints:
    def test_forms_agree(self):
        flat = [[1, 2], [3.5, 4], [5, 6], [7, 8]]
        split = {"source": flat[0::2], "target": flat[1::2]}
        forms = (flat, {"points": flat}, split, np.array(flat), torch.tensor(flat), tuple(flat))
        for form in forms:
            handles, targets = parse_points(form)
            assert handles.dtype == targets.dtype == torch.float32
            assert handles.tolist() == flat[0::2]
            assert targets.tolist() == flat[1::2]

    def test_hydra_lists(self):
        omegaconf = pytest.importorskip("omegaconf")
        handles, targets = parse_points(omegaconf.OmegaConf.create([[1, 2], [3, 4]]))
        assert (handles.tolist(), targets.tolist()) == ([[1, 2]], [[3, 4]])

    @pytest.mark.parametrize(
        ("points", "words"),
        [
            ([], "no points"),
            ([[1, 2]], "odd number"),
            ([[1, 2], [3, 4], [5, 6]], "found 3 points"),
            ([1, 2], "point 1 is 1"),
            ([[1, 2], [3]], r"point 2 is \[3\]"),
            ([[1, 2, 3, 4]], "not a pair"),
            ([["1", 2], [3, 4]], "must be numbers"),
            ([[True, 2], [3, 4]], "must be numbers"),
            ([[None, 2], [3, 4]], "must be numbers"),
            ([[1j, 2], [3, 4]], "must be numbers"),
            ([[float("nan"), 2], [3, 4]], "finite"),
            ([[1, 2], [float("inf"), 4]], "point 2"),
            ([[10**400, 2], [3, 4]], "finite"),
            ("[[1, 2], [3, 4]]", "must be a list"),
            (None, "must be a list"),
            (7, "must be a list"),
            (np.array(5.0), "must be a list"),
            (["ab", "cd"], "not a pair"),
            ({}, "found nothing"),
            ({"pts": [[1, 2], [3, 4]]}, "found 'pts'"),
            ({"source": [[1, 2]]}, "expected the key"),
            ({"source": [[1, 2]], "target": [[1, 2], [3, 4]]}, "found 1 and 2"),
        ],
    )
    def test_refuses(self, points, words):
        with pytest.raises(ValueError, match=words) as error:
            parse_points(points)
        assert len(one_line(error)) < 250


class TestFolder:
    @pytest.mark.parametrize("mask", [True, False])
    def test_round_trip_is_exact(self, tmp_path, pixels, mask):
        sample = sample_of(pixels, mask, prompt='a "cat" é')
        write_sample(sample, tmp_path / "cat_0")
        found = read_sample(tmp_path / "cat_0")
        assert found.name == "cat_0"
        assert found.prompt == sample.prompt
        for key in ("image", "handles", "targets"):
            assert torch.equal(getattr(found, key), getattr(sample, key))
        assert torch.equal(found.mask, sample.mask) if mask else found.mask is None

    def test_no_temporary_files(self, tmp_path, pixels):
        write_sample(sample_of(pixels), tmp_path)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == ["mask.png", "original.png", "points.json"]

    def test_whole_pixels_are_integers(self, tmp_path, pixels):
        write_sample(sample_of(pixels), tmp_path)
        points = json.loads((tmp_path / "points.json").read_text())["points"]
        assert points[0] == [3, 4]
        assert isinstance(points[0][0], int)

    def test_refuses_to_overwrite(self, tmp_path, pixels):
        write_sample(sample_of(pixels), tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(ValueError, match=r"already holds original\.png"):
            write_sample(sample_of(pixels[::-1]), tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_overwrites_when_asked(self, tmp_path, pixels):
        write_sample(sample_of(pixels), tmp_path)
        (tmp_path / "original.png").rename(tmp_path / "original.jpg")
        (tmp_path / "notes.txt").write_text("mine")
        sample = sample_of(pixels[::-1], mask=False)
        write_sample(sample, tmp_path, overwrite=True)
        assert torch.equal(read_sample(tmp_path).image, sample.image)
        assert read_sample(tmp_path).mask is None
        assert (tmp_path / "notes.txt").read_text() == "mine"

    def test_a_file_is_no_folder(self, tmp_path, pixels):
        (tmp_path / "a").write_text("mine")
        with pytest.raises(ValueError, match="is a file"):
            write_sample(sample_of(pixels), tmp_path / "a", overwrite=True)
        with pytest.raises(ValueError, match="not a folder"):
            read_sample(tmp_path / "a")

    def test_dragbench_s(self, tmp_path, pixels):
        save(tmp_path / "origin_image.png", pixels)
        grey = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
        save(tmp_path / "mask.png", grey)
        prompt = {"source": [[1, 2]], "target": [[3, 4]], "prompt": "a cat"}
        (tmp_path / "prompt.json").write_text(json.dumps(prompt))
        sample = read_sample(tmp_path)
        assert sample.prompt == "a cat"
        assert sample.targets.tolist() == [[3, 4]]
        assert torch.equal(sample.mask[0], torch.from_numpy(grey > 128).float())

    @pytest.mark.parametrize(
        ("name", "content", "words"),
        [
            ("points.json", "{", r"points\.json is not valid JSON"),
            ("points.json", "{}", r"points\.json: no points"),
            ("points.json", '{"points": [[1, 2], [NaN, 4]]}', r"points\.json: point 2"),
            ("points.json", '{"points": [[1, 2], [99, 4]]}', r"points\.json: target 1 .* outside"),
            ("points.json", '{"points": [[1, 2], [1, 2]]}', "every pair is a pin"),
            ("points.json", '{"points": [[1, 2], [3, 4]], "prompt": 3}', '"prompt" must be text'),
            ("points.json", None, r"holds no points\.json"),
            ("original.png", None, "holds no picture"),
            ("original.png", "hello", r"original\.png is not a picture"),
            ("original.jpg", "hello", r"original\.png and original\.jpg"),
            ("mask.png", "hello", r"mask\.png is not a picture"),
        ],
    )
    def test_faulty_folders(self, tmp_path, pixels, name, content, words):
        write_sample(sample_of(pixels), tmp_path)
        path = tmp_path / name
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(ValueError, match=words) as error:
            read_sample(tmp_path)
        assert str(tmp_path) in one_line(error)

    def test_points_that_are_not_needed(self, tmp_path, pixels):
        write_sample(sample_of(pixels), tmp_path)
        whole = read_sample(tmp_path, needs_points=False)
        assert torch.equal(whole.handles, read_sample(tmp_path).handles)
        (tmp_path / "points.json").unlink()
        found = read_sample(tmp_path, needs_points=False)
        assert torch.equal(found.image, whole.image)
        assert torch.equal(found.mask, whole.mask)
        assert found.name == whole.name
        (tmp_path / "points.json").write_text("{")  # what is there must be right
        with pytest.raises(ValueError, match="not valid JSON"):
            read_sample(tmp_path, needs_points=False)

    def test_make_sample(self, tmp_path, pixels):
        image = save(tmp_path / "cat.png", pixels)
        mask = save(tmp_path / "m.png", pixels[..., 0] * 0 + 255)
        sample = make_sample(image, [[1, 2], [3, 4]], mask, prompt="p")
        assert (sample.name, sample.prompt, sample.mask.mean()) == ("cat", "p", 1)
        assert make_sample(image, [[1, 2], [3, 4]], name="x").mask is None
        with pytest.raises(ValueError, match="outside the picture"):
            make_sample(image, [[1, 2], [32, 4]])

    @pytest.mark.skipif(
        not (SHARED / "drag100").is_dir(), reason="../shared/data/drag100 is absent"
    )
    def test_drag100(self):
        folders = sorted(path for path in (SHARED / "drag100").iterdir() if path.is_dir())
        assert len(folders) == 100
        for folder in folders[::4]:
            sample = read_sample(folder)
            with Image.open(folder / "original.jpg") as image:
                assert torch.equal(sample.image, tensor(np.array(image.convert("RGB"))))
            with Image.open(folder / "mask.png") as mask:
                expected = torch.from_numpy(np.array(mask) > 0).float()
            assert torch.equal(sample.mask[0], expected)
            points = json.loads((folder / "points.json").read_text())["points"]
            assert sample.handles.tolist() == points[0::2]
            assert sample.targets.tolist() == points[1::2]


def chunk(kind, content):
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png_header(width, height, depth=8):
    """A PNG that claims a size; the data are a few bytes."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def write_png_16(path, values):
    """Pillow writes no 16-bit colour."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    buffer = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    buffer.seek(8)
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        buffer.write(chunk(kind, content))
    path.write_bytes(buffer.getvalue())
