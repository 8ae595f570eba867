"""Data sets: formats, order, laziness, pickles that mean harm, conversion, the real samples."""

from __future__ import annotations

import base64
import json
import os
import pickle
import pickletools
from dataclasses import fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from gooddrag import DragSample, load_data
from gooddrag.composition import choices_of
from gooddrag.data import sets
from gooddrag.data.check import compare, survey
from gooddrag.data.convert import convert
from gooddrag.data.digest import sample_digest
from gooddrag.data.dragset import DragSet
from gooddrag.data.folder import read_sample, write_sample
from gooddrag.data.pickles import read_pickle
from gooddrag.data.session import read_session, write_session
from gooddrag.world import FAMILIES, TASKS, WorldEdit, render_edit

SHARED = Path(__file__).parents[2] / "shared" / "data"
HEIGHT, WIDTH = 24, 32
POINTS = [[3, 4], [7, 8], [5, 6], [5, 6]]
REGIONS = [[x + dx, 5] for x in range(3, 6) for dx in (0, 9)]
NAMES = ("cat_10", "cat_2", "art_0", "generated_0_dog")

needs_samples = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the benchmarks' real samples are not at {SHARED}"
)


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def mask() -> np.ndarray:
    field = np.zeros((HEIGHT, WIDTH), np.uint8)
    field[4:20, 3:20] = 1
    return field


def sample_of(number: int = 0, **options) -> DragSample:
    return DragSample(
        image=torch.from_numpy(picture(number)).permute(2, 0, 1).float() / 255,
        handles=torch.tensor([[3.0, 4.0], [5.5, 6.25]]),
        targets=torch.tensor([[7.0, 8.0], [9.0, 1.1]]),
        mask=torch.from_numpy(mask()).float()[None],
        **options,
    )


def full_sample(**options) -> DragSample:
    regions = torch.tensor(REGIONS).float()
    return sample_of(
        prompt='a "cat" é',
        category="animals",
        task="rotation",
        regions=(regions[0::2], regions[1::2]),
        **{"name": "cat_0"} | options,
    )


def same(a: DragSample, b: DragSample) -> bool:
    """Whether every field is the same to the bit."""
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in fields(DragSample)]
    regions = pairs.pop()
    pairs += zip(regions[0] or (None,), regions[1] or (None,), strict=True)
    return all(
        torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        for one, other in pairs
    )


def make_drag100(root: Path, names=NAMES) -> Path:
    """In an order that is no sorted one, with the overlays that the download has."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for file in ("original.jpg", "image_with_points.jpg"):
            Image.fromarray(picture(number)).save(root / name / file)
        Image.fromarray(mask() * 255).save(root / name / "mask.png")
        (root / name / "points.json").write_text(json.dumps({"points": POINTS}))
    return root


def make_dragbench(root: Path, names=("animals/JH_2", "animals/JH_1", "art_work/X"), regions=()):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.fromarray(picture(number)).save(root / name / "original_image.png")
        content = {"prompt": f"photo {number}", "points": POINTS, "mask": mask()}
        (root / name / "meta_data.pkl").write_bytes(pickle.dumps(content, protocol=4))
        if regions:
            content["points"] = [tuple(point) for point in regions]
            (root / name / "meta_data_region.pkl").write_bytes(pickle.dumps(content, protocol=4))
    return root


def make_dragbench_s(root: Path) -> Path:
    for number, name in enumerate(("human_1", "art_0")):
        (root / name).mkdir(parents=True)
        Image.fromarray(picture(number)).save(root / name / "origin_image.png")
        Image.fromarray(mask() * 100 + 100).save(root / name / "mask.png")  # above 128 counts
        content = {"source": POINTS[0::2], "target": POINTS[1::2], "prompt": "a result"}
        (root / name / "prompt.json").write_text(json.dumps(content))
    return root


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


class TestSample:
    def test_regions_are_checked_like_points(self):
        inside, outside = torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [float(WIDTH), 0.0]])
        with pytest.raises(ValueError, match=r"region target 2 at \(32, 0\) lies outside"):
            sample_of(regions=(inside, outside))
        with pytest.raises(ValueError, match="give at least one region handle"):
            sample_of(regions=(inside[:0], inside[:0]))

    def test_has_no_place_for_a_truth(self):
        names = {field.name for field in fields(DragSample)}
        assert not names & {"truth", "edited", "parameters", "edited_parameters"}

    def test_digest_is_of_what_is_edited(self):
        sample = full_sample()
        assert sample_digest(sample) == sample_digest(replace(sample, category="", task="x"))
        others = [
            replace(sample, name="dog"),
            replace(sample, prompt=""),
            replace(sample, mask=None),
            replace(sample, regions=None),
            replace(sample, regions=sample.regions[::-1]),
            replace(sample, handles=sample.handles + 1),
            replace(sample, image=sample.image.flip(2)),
        ]
        assert len({sample_digest(other) for other in [sample, *others]}) == 1 + len(others)


class TestDragSet:
    @pytest.fixture
    def samples(self):
        return DragSet({name: i for i, name in enumerate("dbca")}, sample_of)

    def test_is_a_sequence(self, samples):
        assert len(samples) == samples.total == 4
        assert samples.names == tuple("dbca")
        assert [sample.name for sample in samples] == list("dbca")
        assert samples[-1].name == "a"
        assert torch.equal(samples[2].image, sample_of(2).image)
        assert [samples.truth(i) for i in range(4)] == [None] * 4
        with pytest.raises(IndexError):
            samples[4]

    @pytest.mark.parametrize(
        ("select", "limit", "names"),
        [
            (None, 2, "cat_10 cat_2"),
            (None, 99, "cat_10 cat_2 x/art_0 x/art_1"),
            ("cat_*", None, "cat_10 cat_2"),
            ("cat_2", None, "cat_2"),
            (["x/*", "cat_2"], None, "cat_2 x/art_0 x/art_1"),
            (["x/*", "cat_2"], 2, "cat_2 x/art_0"),
            ("*[01]", 3, "cat_10 x/art_0 x/art_1"),
        ],
    )
    def test_select_and_limit(self, select, limit, names):
        entries = dict.fromkeys(("cat_10", "cat_2", "x/art_0", "x/art_1"), 0)
        samples = DragSet(entries, sample_of, select=select, limit=limit)
        assert " ".join(samples.names) == names
        assert samples.total == 4

    @pytest.mark.parametrize("limit", [0, -1, True])
    def test_a_limit_is_a_count(self, limit):
        with pytest.raises(ValueError, match="limit must be a whole number from 1 on"):
            DragSet({"a": 0}, sample_of, limit=limit)

    def test_a_pattern_that_matches_nothing(self):
        with pytest.raises(ValueError, match=r"no sample is called 'cta_\*'; names .* cat_0"):
            DragSet({"cat_0": 0}, sample_of, select=["cat_0", "cta_*"])


class TestFormats:
    def test_drag100(self, tmp_path):
        groups = {"animals": ["cat", "dog"], "art": ["art"]}
        samples = sets.drag100(make_drag100(tmp_path), groups)
        assert samples.names == ("art_0", "cat_10", "cat_2", "generated_0_dog")
        assert [s.category for s in samples] == ["art", "animals", "animals", "animals"]
        assert samples[1].handles.tolist() == POINTS[0::2]
        assert samples[1].targets.tolist() == POINTS[1::2]
        assert torch.equal(samples[1].mask, torch.from_numpy(mask()).float()[None])

    def test_dragbench(self, tmp_path):
        samples = sets.dragbench(make_dragbench(tmp_path))
        assert samples.names == ("animals/JH_1", "animals/JH_2", "art_work/X")
        assert [s.category for s in samples] == ["animals", "animals", "art_work"]
        assert [s.prompt for s in samples] == ["photo 1", "photo 0", "photo 2"]
        assert all(s.regions is None for s in samples)
        assert samples[0].mask.sum() == mask().sum()

    @pytest.mark.parametrize("name", ["animals/JH_1", "art_0"])
    def test_regions_are_kept_beside_the_points(self, tmp_path, name):
        (sample,) = sets.dragbench(make_dragbench(tmp_path, [name], REGIONS))
        assert sample.category == name.split("/")[0].removesuffix("_0")
        assert sample.handles.tolist() == POINTS[0::2]
        handles, targets = sample.regions
        assert handles.tolist() == REGIONS[0::2]
        assert targets.tolist() == REGIONS[1::2]

    def test_dragbench_s(self, tmp_path):
        samples = sets.dragbench_s(make_dragbench_s(tmp_path))
        assert samples.names == ("art_0", "human_1")
        assert [s.category for s in samples] == ["art", "human"]
        assert samples[0].prompt == "a result"
        assert torch.equal(samples[0].mask, torch.from_numpy(mask()).float()[None])

    def test_folder(self, tmp_path):
        write_sample(full_sample(), tmp_path / "b" / "cat_0")
        write_sample(sample_of(), tmp_path / "cat_1")
        make_dragbench_s(tmp_path / "a")
        (tmp_path / ".hidden").mkdir()
        (tmp_path / ".hidden" / "points.json").touch()
        (tmp_path / "notes").mkdir()
        samples = sets.folder(str(tmp_path))
        assert samples.names == ("a/art_0", "a/human_1", "b/cat_0", "cat_1")
        assert same(samples[2], full_sample(name="b/cat_0"))
        assert samples[3].category == ""

    def test_a_sample_for_a_root(self, tmp_path):
        write_sample(full_sample(), tmp_path / "cat_0")
        write_session(full_sample(), tmp_path / "cat_0.json")
        for samples in (sets.folder(tmp_path / "cat_0"), sets.session(tmp_path / "cat_0.json")):
            assert samples.names == ("cat_0",)
            assert same(samples[0], full_sample())

    def test_session(self, tmp_path):
        for name in ("b", "b-1"):
            write_session(full_sample(), tmp_path / f"{name}.json")
        write_session(full_sample(), tmp_path / "x" / "a.json", embed=False)
        samples = sets.session(tmp_path)
        assert samples.names == ("b", "b-1", "x/a")
        assert [sample.name for sample in samples] == ["b", "b-1", "x/a"]

    def test_home_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        make_drag100(tmp_path / "data")
        assert len(sets.folder("~/data")) == len(NAMES)

    @pytest.mark.parametrize("kind", ["folder", "dragbench", "dragbench_s", "session"])
    def test_nothing_there(self, tmp_path, kind):
        with pytest.raises(ValueError, match=r"there is no folder .*/no .*gooddrag data"):
            getattr(sets, kind)(tmp_path / "no")
        with pytest.raises(ValueError, match=r"holds no (samples|sessions): expected") as error:
            getattr(sets, kind)(tmp_path)
        assert str(tmp_path) in one_line(error)


class TestLaziness:
    """Opening a set looks at names; a sample is read when it is asked for, and alone."""

    def test_no_picture_is_read(self, tmp_path):
        make_drag100(tmp_path / "a"), make_dragbench(tmp_path / "b", regions=REGIONS)
        make_dragbench_s(tmp_path / "c"), write_session(full_sample(), tmp_path / "d" / "e.json")
        opened = {os.fspath(tmp_path)}
        with (
            mock.patch("builtins.open", side_effect=AssertionError),
            mock.patch.object(Path, "read_bytes", side_effect=AssertionError),
            mock.patch.object(Path, "read_text", side_effect=AssertionError),
            mock.patch.object(Image, "open", side_effect=AssertionError),
            mock.patch("gooddrag.data.world.render_edit", side_effect=AssertionError),
        ):
            opened = [
                sets.drag100(tmp_path / "a", {}),
                sets.folder(tmp_path / "a"),
                sets.dragbench(tmp_path / "b"),
                sets.dragbench_s(tmp_path / "c"),
                sets.session(tmp_path / "d"),
                sets.world("test", 0, 0, 100_000, 256),
            ]
        assert [len(samples) for samples in opened] == [4, 4, 3, 2, 1, 100_000]

    def test_a_broken_sample_leaves_the_others(self, tmp_path):
        make_drag100(tmp_path)
        (tmp_path / "cat_10" / "mask.png").write_bytes(b"no picture")
        samples = sets.folder(tmp_path)
        assert samples[0].name == "art_0"
        with pytest.raises(ValueError, match=r"cat_10/mask\.png is not a picture") as error:
            samples[1]
        one_line(error)

    def test_can_be_sent_to_other_processes(self, tmp_path):
        make_dragbench(tmp_path)
        for samples in (
            sets.dragbench(tmp_path),
            sets.drag100(make_drag100(tmp_path / "x"), {"animals": ["cat"]}),
            sets.world("test", 0, 0, 3, 32),
        ):
            copy = pickle.loads(pickle.dumps(samples))
            assert copy.names == samples.names
            assert same(copy[1], samples[1])


class TestWorld:
    def test_samples_and_truths(self):
        samples = sets.world("validation", 3, 5, 4, 32)
        for i, index in enumerate(range(5, 9)):
            edit = render_edit("validation", 3, index, size=32)
            assert samples[i].name == samples.names[i] == edit.name
            assert (samples[i].category, samples[i].task) == (edit.family, edit.task)
            truth = samples.truth(i)
            assert isinstance(truth, WorldEdit)
            assert torch.equal(truth.truth, edit.truth)
            assert torch.equal(truth.handles, samples[i].handles)
            assert truth.edited_parameters == edit.edited_parameters

    def test_truth_follows_the_selection(self):
        samples = sets.world("test", 0, 0, 20, 32, select="*_cat", limit=1)
        assert samples.names == ("test_0_00001_cat",)
        assert samples.truth(0).name == "test_0_00001_cat"

    def test_order_is_that_of_the_indices(self):
        samples = sets.world("test", 0, 99_998, 4, 32)
        assert [int(name.split("_")[2]) for name in samples.names] == [99998, 99999, 100000, 100001]

    def test_one_rendering_for_sample_and_truth(self):
        samples = sets.world("train", 0, 0, 3, 32)
        with mock.patch("gooddrag.data.world.render_edit", wraps=render_edit) as render:
            for i in range(3):
                samples[i], samples.truth(i)
        assert render.call_count == 3

    def test_every_family_and_task_equally_often(self):
        samples = load_data("world", ["data.size=32"])
        assert len(samples) >= 200
        some = load_data("world", ["data.size=32", "data.count=45"])
        found = {(sample.category, sample.task) for sample in some}
        assert found == set(product(FAMILIES, TASKS))
        assert len(samples) % len(found) == 0

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("dev", 0, 0, 1, 32), "has the splits"),
            (("test", 0, -1, 1, 32), "index cannot be negative"),
            (("test", 0, 0, 0, 32), "count must be at least 1"),
            (("test", 0, 0, 1, 8), "size at least 16"),
        ],
    )
    def test_refuses(self, options, words):
        with pytest.raises(ValueError, match=words):
            sets.world(*options)


class Harm:
    """What a pickle calls on loading."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def disguised(path: Path) -> bytes:
    """A pickle that wants `posix.system` under the name of NumPy."""
    return b"cnumpy.core.multiarray\nos.system\n(S'touch %s'\ntR." % str(path).encode()


def pointers() -> bytes:
    """Only the three allowed globals: an array of objects whose pointers are the bytes given.

    numpy.dtype's state clears the flag that says "objects"; then numpy.ndarray takes a buffer.
    """
    return (
        b"cnumpy\nndarray\n((I1\ntcnumpy\ndtype\n(S'O8'\nI00\nI01\ntR"
        b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbC\x08AAAAAAAAtR."
    )


class TestPickles:
    @pytest.mark.parametrize("protocol", [3, 4])
    @pytest.mark.parametrize(
        "array",
        [
            mask(),
            mask() > 0,
            np.asfortranarray(np.arange(6).reshape(2, 3)),
            np.arange(12).reshape(3, 4)[:, ::2],
            np.arange(4, dtype=">f4"),
            np.array(5.0),
            np.zeros((0, 2)),
        ],
        ids=lambda array: f"{array.dtype}{array.shape}",
    )
    def test_arrays_are_as_pickle_has_them(self, tmp_path, array, protocol):
        content = {
            "prompt": "é",
            "points": [[1, 2.5], [3, -4]],
            "mask": array,
            "more": [None, True],
        }
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        found = read_pickle(tmp_path / "a.pkl")
        assert found["mask"].dtype == array.dtype
        np.testing.assert_array_equal(found.pop("mask"), content.pop("mask"))
        assert found == content

    def test_old_and_new_numpy(self, tmp_path):
        written = pickle.dumps(mask(), protocol=4)
        names = {opcode.name: value for opcode, value, _ in pickletools.genops(written)}
        assert "STACK_GLOBAL" in names
        for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
            body = b"\x80\x03c" + module + b"\n_reconstruct\n" + self.rest()
            (tmp_path / "a.pkl").write_bytes(body)
            np.testing.assert_array_equal(read_pickle(tmp_path / "a.pkl"), mask())

    def rest(self) -> bytes:
        """Of protocol 3, what follows the first global."""
        return pickle.dumps(mask(), protocol=3).partition(b"_reconstruct\n")[2]

    @pytest.mark.parametrize(
        ("harm", "named"),
        [
            (lambda path: Harm(os.system, f"touch {path}"), "posix.system"),
            (lambda path: Harm(eval, f"open({str(path)!r}, 'w')"), "builtins.eval"),
            (lambda path: Harm(exec, f"open({str(path)!r}, 'w')"), "builtins.exec"),
            (lambda path: Harm(getattr, "text", "join"), "builtins.getattr"),
            (lambda path: Harm(np.save, path, np.zeros(1)), "numpy.save"),
            (lambda path: Harm(Path.touch, path), "pathlib"),
            (lambda path: np.array([Harm(os.system, f"touch {path}")]), "posix.system"),
            (lambda path: {"mask": np.float64(1)}, "multiarray.scalar"),
            (lambda path: np.array([1, "a"], dtype=object), "array of objects"),
            (lambda path: np.array(["text"]), "kind 'U4'"),
            (lambda path: np.zeros(2, [("a", "i4")]), "kind 'V4'"),
            (lambda path: {"mask": np.ndarray}, "no array"),
            (lambda path: np.dtype("u1"), "no array"),
        ],
    )
    def test_nothing_is_run(self, tmp_path, harm, named):
        written = pickle.dumps({"mask": harm(tmp_path / "harm")}, protocol=4)
        (tmp_path / "meta_data.pkl").write_bytes(written)
        with pytest.raises(ValueError) as error:
            read_pickle(tmp_path / "meta_data.pkl")
        message = one_line(error)
        assert named in message
        assert "nothing of it was run" in message
        assert str(tmp_path / "meta_data.pkl") in message
        assert [path.name for path in tmp_path.iterdir()] == ["meta_data.pkl"]

    def test_the_harm_is_real(self, tmp_path):
        pickle.loads(pickle.dumps(Harm(os.system, f"touch {tmp_path / 'harm'}")))
        assert (tmp_path / "harm").exists()

    def test_hand_written(self, tmp_path):
        for content in (disguised(tmp_path / "harm"), pointers()):
            (tmp_path / "a.pkl").write_bytes(content)
            with pytest.raises(ValueError, match="nothing of it was run"):
                read_pickle(tmp_path / "a.pkl")
        assert not (tmp_path / "harm").exists()

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"hello",
            b"\x80\x04.",
            pickle.dumps({"mask": mask()})[:-20],
            b"(" * 1000,
            b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
            b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
            b"Pid\n.",
            b"]\x94h\x00a.",  # a list that holds itself
        ],
    )
    def test_damaged(self, tmp_path, content):
        (tmp_path / "a.pkl").write_bytes(content)
        with pytest.raises(ValueError, match="is no pickle, or is damaged") as error:
            read_pickle(tmp_path / "a.pkl")
        assert str(tmp_path / "a.pkl") in one_line(error)

    def test_an_array_that_claims_another_size(self, tmp_path):
        written = pickle.dumps(mask(), protocol=4).replace(b"K\x18K ", b"K\x19K ")
        (tmp_path / "a.pkl").write_bytes(written)
        with pytest.raises(ValueError, match=r"768 values for an array of shape \(25, 32\)"):
            read_pickle(tmp_path / "a.pkl")

    def test_missing(self, tmp_path):
        with pytest.raises(ValueError, match="there is no file"):
            read_pickle(tmp_path / "a.pkl")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"points": POINTS[:3]}, r"meta_data\.pkl: found 3 points, an odd number"),
            ({"points": [[1, 2], [99, 3]]}, "target 1 at .* outside"),
            ({"mask": np.zeros((3, 4), np.uint8)}, r"of the shape \(24, 32\), found \(3, 4\)"),
            ({"mask": np.zeros(3)}, r"of the shape \(24, 32\), found \(3,\)"),
            ({"mask": [[1]]}, "mask must be an array .* found list"),
            ({"prompt": 3}, "prompt must be text, found a int"),
        ],
    )
    def test_another_content(self, tmp_path, change, words):
        make_dragbench(tmp_path, ["a/b"])
        content = {"prompt": "", "points": POINTS, "mask": mask()} | change
        (tmp_path / "a" / "b" / "meta_data.pkl").write_bytes(pickle.dumps(content, protocol=4))
        with pytest.raises(ValueError, match=words) as error:
            sets.dragbench(tmp_path)[0]
        assert "a/b" in one_line(error)

    @pytest.mark.parametrize("content", [[1, 2], {"points": POINTS}])
    def test_no_meta_data(self, tmp_path, content):
        make_dragbench(tmp_path, ["a/b"])
        (tmp_path / "a" / "b" / "meta_data.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match="no pickle of DragBench's: no mask and no"):
            sets.dragbench(tmp_path)[0]


class TestFolderLabels:
    def test_round_trip_keeps_everything(self, tmp_path):
        write_sample(full_sample(), tmp_path / "cat_0")
        assert same(read_sample(tmp_path / "cat_0"), full_sample())

    def test_a_plain_sample_is_drag100s_form(self, tmp_path):
        write_sample(sample_of(), tmp_path)
        assert list(json.loads((tmp_path / "points.json").read_text())) == ["points"]

    @pytest.mark.parametrize(
        ("label", "words"),
        [
            ({"category": 3}, '"category" must be text, found 3'),
            ({"task": ["a"]}, '"task" must be text'),
            ({"regions": [[1, 2]]}, "odd number"),
        ],
    )
    def test_refuses(self, tmp_path, label, words):
        write_sample(sample_of(), tmp_path)
        (tmp_path / "points.json").write_text(json.dumps({"points": POINTS} | label))
        with pytest.raises(ValueError, match=words) as error:
            read_sample(tmp_path)
        assert "points.json" in one_line(error)


class TestSession:
    @pytest.mark.parametrize("embed", [True, False])
    @pytest.mark.parametrize("whole", [True, False])
    def test_round_trip_is_exact(self, tmp_path, embed, whole):
        sample = full_sample() if whole else replace(sample_of(name="dog"), mask=None)
        write_session(sample, tmp_path / "deep" / "cat.json", embed)
        assert same(read_session(tmp_path / "deep" / "cat.json"), sample)

    def test_one_file_or_three(self, tmp_path):
        write_session(sample_of(), tmp_path / "a" / "cat.json")
        write_session(sample_of(), tmp_path / "b" / "cat.json", embed=False)
        assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["cat.json"]
        names = ["cat.image.png", "cat.json", "cat.mask.png"]
        assert sorted(p.name for p in (tmp_path / "b").iterdir()) == names

    def test_what_it_says(self, tmp_path):
        write_session(sample_of(name="dog"), tmp_path / "cat.json")
        content = json.loads((tmp_path / "cat.json").read_text())
        assert content["format"] == "gooddrag-session"
        assert content["version"] == 1
        assert content["points"] == [[3, 4], [7, 8], [5.5, 6.25], [9, pytest.approx(1.1)]]
        assert content["image"].startswith("data:image/png;base64,")
        assert set(content) == {"format", "version", "name", "points", "image", "mask"}

    def test_by_hand(self, tmp_path):
        """The least that makes a session, with a picture of another format."""
        Image.fromarray(picture(0)).save(tmp_path / "cat.webp", lossless=True)
        content = {"format": "gooddrag-session", "version": 1, "points": POINTS}
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "me.json").write_text(json.dumps(content | {"image": "../cat.webp"}))
        sample = read_session(tmp_path / "x" / "me.json")
        assert sample.name == "me"
        assert sample.mask is None
        assert torch.equal(sample.image, sample_of().image)
        encoded = base64.b64encode((tmp_path / "cat.webp").read_bytes()).decode()
        content["image"] = f"data:image/webp;base64,{encoded}"
        (tmp_path / "y.json").write_text(json.dumps(content | {"mask": None, "regions": None}))
        assert torch.equal(read_session(tmp_path / "y.json").image, sample.image)

    @pytest.mark.parametrize("embed", [True, False])
    def test_nothing_is_overwritten_unasked(self, tmp_path, embed):
        write_session(sample_of(), tmp_path / "cat.json", embed)
        if not embed:
            (tmp_path / "cat.json").unlink()
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(ValueError, match="exists already"):
            write_session(sample_of(1), tmp_path / "cat.json", embed)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        write_session(sample_of(1), tmp_path / "cat.json", embed, overwrite=True)
        assert torch.equal(read_session(tmp_path / "cat.json").image, sample_of(1).image)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"format": "other"}, 'is no session: it should say "format"'),
            ({"version": 2}, "a session of version 2, and this program reads 1"),
            ({"version": None}, "of version None"),
            ({"promt": "a cat"}, "has an unknown 'promt': a session holds category, format"),
            ({"points": None}, "points must be a list"),
            ({"points": [[1, 2]]}, "odd number"),
            ({"points": [[1, 2], [99, 3]]}, "target 1 at .* outside"),
            ({"name": ""}, '"name" must be text'),
            ({"prompt": 3}, '"prompt" must be text, found 3'),
            ({"image": 3}, '"image" must be a file\'s name or data:image/png'),
            ({"image": None}, '"image" must be'),
            ({"image": "no.png"}, r"there is no file .*no\.png"),
            ({"image": "data:text/html;base64,AAAA"}, "must begin with data:image/png;base64"),
            ({"image": "data:image/png;base64,A"}, '"image" is no base64'),
            ({"image": "data:image/png;base64,é"}, '"image" is no base64'),
            ({"image": "data:image/png;base64,"}, "the image in .* is not a picture"),
            ({"image": "data:image/png;base64,AAAA"}, "the image in .* is not a picture"),
            ({"mask": "data:image/png;base64,AAAA"}, "the mask in .* is not a picture"),
        ],
    )
    def test_refuses(self, tmp_path, change, words):
        write_session(sample_of(), tmp_path / "cat.json")
        content = json.loads((tmp_path / "cat.json").read_text()) | change
        (tmp_path / "cat.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=words) as error:
            read_session(tmp_path / "cat.json")
        assert str(tmp_path) in one_line(error)

    @pytest.mark.parametrize("key", ["image", "points"])
    def test_a_part_is_missing(self, tmp_path, key):
        write_session(sample_of(), tmp_path / "cat.json")
        content = json.loads((tmp_path / "cat.json").read_text())
        del content[key]
        (tmp_path / "cat.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"has no '{key}'"):
            read_session(tmp_path / "cat.json")

    @pytest.mark.parametrize("content", ["[1]", "{", "3"])
    def test_other_json(self, tmp_path, content):
        (tmp_path / "cat.json").write_text(content)
        with pytest.raises(ValueError, match=r"is no session|not valid JSON"):
            read_session(tmp_path / "cat.json")


class TestConvert:
    @pytest.fixture
    def samples(self, tmp_path):
        return sets.dragbench(make_dragbench(tmp_path / "from", regions=REGIONS))

    @pytest.mark.parametrize(
        ("format", "embed"), [("folder", True), ("session", True), ("session", False)]
    )
    def test_loses_nothing(self, tmp_path, samples, format, embed):
        output = tmp_path / "to"
        assert convert(samples, output, format=format, embed=embed, existing="refuse") == (3, 0)
        found = getattr(sets, format)(output)
        assert found.names == samples.names
        assert all(same(a, b) for a, b in zip(found, samples, strict=True))

    @pytest.mark.parametrize("format", ["folder", "session"])
    def test_existing(self, tmp_path, samples, format):
        options = {"format": format, "embed": True}
        output = tmp_path / "to"
        convert(samples, output, existing="refuse", **options)
        last = output / samples.names[1]
        path = last / "points.json" if format == "folder" else last.with_name(f"{last.name}.json")
        path.write_text("mine")
        with pytest.raises(ValueError, match=r"exists already: .* existing=overwrite") as error:
            convert(samples, output, existing="refuse", **options)
        one_line(error)
        assert convert(samples, output, existing="resume", **options) == (0, 3)
        assert path.read_text() == "mine"
        assert convert(samples, output, existing="overwrite", **options) == (3, 0)
        assert same(getattr(sets, format)(output)[1], samples[1])

    @pytest.mark.parametrize("format", ["folder", "session"])
    def test_refuses_before_any_is_written(self, tmp_path, samples, format):
        options = {"format": format, "embed": True, "existing": "refuse"}
        convert(DragSet({samples.names[2]: 0}, sample_of), tmp_path / "to", **options)
        before = sorted((tmp_path / "to").rglob("*"))
        with pytest.raises(ValueError, match="exists already"):
            convert(samples, tmp_path / "to", **options)
        assert sorted((tmp_path / "to").rglob("*")) == before

    def test_resume_goes_on_where_it_stopped(self, tmp_path, samples):
        options = {"format": "folder", "embed": True}
        convert(samples, tmp_path / "to", existing="refuse", **options)
        (tmp_path / "to" / samples.names[0] / "points.json").unlink()  # it had not come so far
        assert convert(samples, tmp_path / "to", existing="resume", **options) == (1, 2)
        assert same(sets.folder(tmp_path / "to")[0], samples[0])

    def test_unknown_format(self, tmp_path, samples):
        with pytest.raises(ValueError, match="format must be folder or session, found 'zip'"):
            convert(samples, tmp_path, format="zip", embed=True, existing="refuse")


class TestCheck:
    def test_survey(self, tmp_path):
        found, unread = survey(sets.dragbench(make_dragbench(tmp_path, regions=REGIONS)))
        assert unread == []
        assert len(found.pop("checksums")) == 3
        assert found == {
            "samples": 3,
            "pairs": 6,
            "pins": 3,
            "regions": 3,
            "width": [WIDTH, WIDTH],
            "height": [HEIGHT, HEIGHT],
            "categories": {"animals": 2, "art_work": 1},
        }

    def test_what_cannot_be_read_is_listed(self, tmp_path):
        make_drag100(tmp_path)
        (tmp_path / "cat_2" / "points.json").unlink()
        found, unread = survey(sets.folder(tmp_path))
        assert "cat_2" in unread[0]
        assert len(unread) == 1
        assert found["samples"] == 4
        assert set(found["checksums"]) == set(NAMES) - {"cat_2"}
        with pytest.raises(ValueError, match="none of 1 samples can be read"):
            survey(sets.folder(tmp_path, select="cat_2"))

    def test_compare(self, tmp_path):
        found, _ = survey(sets.folder(make_drag100(tmp_path)))
        assert compare(found, found, whole=True) == []
        sums = dict(found["checksums"]) | {"cat_2": "0", "dog_7": "0"}
        known = {"samples": 5, "height": found["height"], "checksums": sums}
        assert compare(found, known, whole=True) == [
            "samples: found 4, known are 5",
            "not there: dog_7",
            "another picture, mask, prompt or points than known: cat_2",
        ]
        assert compare(found, known, whole=False) == [
            "another picture, mask, prompt or points than known: cat_2"
        ]


class TestConf:
    OPTIONS = choices_of("datasets", ["data=world"])[1]["data"]

    @pytest.mark.parametrize("option", OPTIONS)
    def test_every_set_says_where_it_comes_from(self, option):
        settings, _, _ = choices_of("datasets", [f"data={option}"])
        assert {"title", "source", "layout"} <= set(settings["about"])
        if option not in ("folder", "session"):
            assert {"licence", "citation"} <= set(settings["about"])
        assert settings["data"]["select"] is settings["data"]["limit"] is None

    @pytest.mark.parametrize(
        ("option", "make"),
        [
            ("drag100", make_drag100),
            ("folder", make_drag100),
            ("dragbench", make_dragbench),
            ("dragbench_dr", make_dragbench),
            ("dragbench_sr", make_dragbench),
            ("dragbench_s", make_dragbench_s),
        ],
    )
    def test_load_data(self, tmp_path, option, make):
        samples = load_data(option, [f"data.root={make(tmp_path)}", "data.limit=2"])
        assert len(samples) == 2
        assert all(isinstance(sample, DragSample) for sample in samples)

    def test_select_is_a_list_or_a_word(self, tmp_path):
        root = f"data.root={make_drag100(tmp_path)}"
        for select, count in (("cat_*", 2), ("[cat_2,art_*]", 2), ("cat_2", 1)):
            assert len(load_data("folder", [root, f"data.select={select}"])) == count

    @pytest.mark.parametrize(
        ("name", "overrides", "words"),
        [
            ("drag100", [], r"^data\.root is missing: give data\.root=\.\.\.$"),
            ("cats", [], "cats"),
            ("world", ["data.count=some"], "data.count must be a whole number"),
            ("world", ["data.limit=0"], "limit must be a whole number"),
            ("world", ["data.select=cat"], "no sample is called 'cat'"),
        ],
    )
    def test_refuses(self, name, overrides, words):
        with pytest.raises(ValueError, match=words):
            load_data(name, overrides)


@needs_samples
class TestRealSamples:
    """All samples at hand load, are what conf/data knows, and survive a round trip."""

    @pytest.fixture
    def quick_png(self, monkeypatch):
        """PNGs at their usual compression would take most of the time."""
        save = Image.Image.save
        quick = lambda self, *file, **options: save(self, *file, compress_level=1, **options)  # noqa: E731
        monkeypatch.setattr(Image.Image, "save", quick)

    def again(self, samples: DragSet, folder: Path, i: int) -> DragSample:
        """A sample after it was written, by turns in each form, and read."""
        sample, path = samples[i], folder / samples.names[i]
        if i % 2:
            write_sample(sample, path)
            found = read_sample(path)
        else:
            write_session(sample, path.with_suffix(".json"), embed=i % 4 == 0)
            found = read_session(path.with_suffix(".json"))
        found = replace(found, name=sample.name)
        assert same(found, sample)
        return found

    @pytest.mark.parametrize("name", ["drag100", "dragbench"])
    def test_round_trip(self, tmp_path, quick_png, name):
        samples = load_data(name, [f"data.root={SHARED / name}"])
        assert samples.names == tuple(sorted(samples.names))
        entries = {name: i for i, name in enumerate(samples.names)}
        found, unread = survey(DragSet(entries, partial(self.again, samples, tmp_path)))
        assert unread == []
        assert "" not in found["categories"]
        known = choices_of("datasets", [f"data={name}"])[0]["about"]["known"]
        assert found["checksums"] == known["checksums"]
        assert compare(found, known, whole=name == "drag100") == []
        assert (found["samples"], found["pairs"]) == {
            "drag100": (100, 242),
            "dragbench": (12, 32),
        }[name]

    def test_dragbench_is_as_pickle_reads_it(self):
        for path in sorted((SHARED / "dragbench").glob("*/*/meta_data.pkl")):
            expected, found = pickle.loads(path.read_bytes()), read_pickle(path)
            np.testing.assert_array_equal(found.pop("mask"), expected.pop("mask"))
            assert found == expected
