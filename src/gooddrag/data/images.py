"""Pictures and masks as files. Tensors are (channel, row, column) in [0, 1]."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from gooddrag.data.files import write_bytes

MAX_PIXELS = 50_000_000
MIN_SIDE = 16
# Named, because Pillow also opens formats that run other programs (EPS) or hold no picture.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
EXACT = ("PNG", "BMP", "PPM", "GIF", "TIFF")  # where black stays 0
HALF = 127  # of 255
KINDS = "PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000 or AVIF"

ROUNDINGS = ("truncate", "nearest")
Path_ = str | os.PathLike[str]


class Embedded(io.BytesIO):
    """The bytes of a picture's file that stand in another file; `name` says where, in errors."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self._name = name

    def __str__(self) -> str:
        return self._name


Source = Path_ | Embedded


def read_image(path: Source, max_pixels: int = MAX_PIXELS) -> Float[Tensor, "3 h w"]:
    """Read a picture as RGB.

    The orientation of a camera's EXIF tag is applied, transparency is laid over white, 16-bit
    values are scaled, and of an animation the first frame is taken.

    Args:
        path: the file, or its bytes.
        max_pixels: refuse a picture of more pixels; looked up before decoding.

    Returns:
        RGB in [0, 1].

    Raises:
        ValueError: there is no such file, it is no picture, damaged, too large or too small.
    """
    picture, _ = _load(path, max_pixels)
    height, width = picture.height, picture.width
    if min(height, width) < MIN_SIDE:
        raise ValueError(
            f"{path} is {width} x {height} pixels: "
            f"a picture to edit needs at least {MIN_SIDE} x {MIN_SIDE}"
        )
    if picture.mode.startswith(("I", "F")):
        return _wide_grey(path, picture).expand(3, -1, -1).contiguous()
    values = torch.from_numpy(np.array(_over(picture, (255, 255, 255))))
    return values.permute(2, 0, 1).contiguous().float() / 255


def read_mask(
    path: Source, size: tuple[int, int], threshold: int = 0, max_pixels: int = MAX_PIXELS
) -> Float[Tensor, "1 h w"]:
    """Read the mask of what may change: white = editable.

    Args:
        path: an image file, or its bytes; transparent parts count as black.
        size: (height, width) of the picture.
        threshold: editable is what is brighter than this, of 255; the official code takes 0. In
            formats that may blur, as JPEG and WebP do, it is at least half of white.
        max_pixels: refuse a picture of more pixels; looked up before decoding.

    Returns:
        1 where the picture may change, else 0.

    Raises:
        ValueError: there is no such file, it is no picture or damaged, or has another size.
    """
    picture, is_exact = _load(path, max_pixels)
    threshold = threshold if is_exact else max(threshold, HALF)
    if (picture.height, picture.width) != tuple(size):
        raise ValueError(
            f"the mask {path} is {picture.width} x {picture.height} pixels but the picture is "
            f"{size[1]} x {size[0]} (width x height): save the mask in the picture's size"
        )
    if picture.mode.startswith(("I", "F")):
        return (_wide_grey(path, picture) * 255 > threshold).float()
    values = torch.from_numpy(np.array(_over(picture, (0, 0, 0))))
    return (values.amax(dim=2) > threshold).float()[None]


def to_uint8(image: Float[Tensor, "c h w"], rounding: str = "nearest") -> UInt8[Tensor, "h w c"]:
    """Turn [0, 1] into bytes, row by row.

    Args:
        image: values outside [0, 1] are clamped.
        rounding: "truncate" as the official code does, or "nearest".

    Raises:
        ValueError: a value is not a number, or the rounding is unknown.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be 'truncate' or 'nearest', found {rounding!r}")
    values = image.detach().to("cpu")
    values = values if values.dtype == torch.float64 else values.float()
    if values.isnan().any():
        raise ValueError("the picture holds values that are not numbers (NaN): nothing to save")
    values = values.clamp(0, 1) * 255
    values = values.round() if rounding == "nearest" else values
    return values.to(torch.uint8).permute(1, 2, 0).contiguous()


def write_png(path: Path_, image: UInt8[Tensor, "h w c"]) -> None:
    """Write a PNG atomically: never half a file, and the old one stays if writing fails.

    Args:
        path: the file to make or replace.
        image: RGB, or grey with one channel.

    Raises:
        OSError: the file cannot be written.
    """
    write_bytes(path, encode_png(image))


def encode_png(image: UInt8[Tensor, "h w c"]) -> bytes:
    """The bytes of a PNG file, RGB or grey with one channel."""
    pixels = image.cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _load(path: Source, max_pixels: int) -> tuple[Image.Image, bool]:
    """Open, check the size that the header claims, decode, and turn upright.

    Returns:
        The picture, and whether its file has its very values.
    """
    if not isinstance(path, Embedded):
        _check_file(path)
    with _open(path, max_pixels) as picture:
        if picture.width * picture.height > max_pixels:
            raise _too_large(path, max_pixels, f"{picture.width} x {picture.height} pixels")
        try:
            picture.load()
        except Exception as error:  # every decoder has its own exceptions
            raise ValueError(_damaged(path, error)) from None
        is_exact = picture.format in EXACT and picture.info.get("compression") != "jpeg"
        return _upright(picture), is_exact


def _check_file(path: Path_) -> None:
    try:
        found = Path(path)
        if found.is_dir():
            raise ValueError(f"{path} is a folder: give an image file")
        if not found.exists():
            raise ValueError(f"there is no file {path}")
        if not found.is_file():  # reading a pipe or a device could wait for ever
            raise ValueError(f"{path} is not a regular file: give an image file")
        if found.stat().st_size == 0:
            raise ValueError(f"{path} is empty: give an image file")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _open(path: Source, max_pixels: int) -> Image.Image:
    """Read the header only."""
    Image.init()
    try:
        with warnings.catch_warnings():
            # Pillow warns above its own limit; ours is the one that counts.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path, formats=[kind for kind in FORMATS if kind in Image.OPEN])
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a picture that can be read: give a {KINDS} file") from None
    except PermissionError:
        raise ValueError(f"{path} cannot be read: no right to read it") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise _too_large(path, max_pixels, f"over {limit:.0f} megapixels") from None
    except Exception as error:  # every decoder has its own exceptions
        raise ValueError(_damaged(path, error)) from None


def _too_large(path: Source, max_pixels: int, found: str) -> ValueError:
    return ValueError(
        f"{path} has {found}, more than the limit of {max_pixels / 1e6:g} megapixels: "
        "make the picture smaller"
    )


def _damaged(path: Source, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{path} is damaged or cut off ({reason}): save or download it again"


def _upright(picture: Image.Image) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(picture)
    except Exception:  # a damaged EXIF block says nothing about the pixels, which are sound
        return picture.copy()


def _over(picture: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Lay what is transparent over a plain background."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    upper = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", upper.size, (*background, 255)), upper).convert(
        "RGB"
    )


def _wide_grey(path: Source, picture: Image.Image) -> Float[Tensor, "1 h w"]:
    """Scale grey of more than 8 bits: integers of 16 bits, or floats that lie in [0, 1]."""
    values = torch.from_numpy(np.array(picture).astype(np.float64))
    top = 1.0 if picture.mode == "F" else 65535.0
    if not (values.isfinite().all() and values.min() >= 0 and values.max() <= top):
        raise ValueError(
            f"{path} holds values outside 0 to {top:g}, so their scale is unknown: "
            "save it with 8 or 16 bits per channel"
        )
    return (values / top).float()[None]
