"""A sample as a folder: Drag100's form, and DragBench-S's file names for reading.

points.json may hold more than Drag100's has: prompt, category, task and regions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from gooddrag.data.files import read_json, write_json
from gooddrag.data.images import read_image, read_mask, to_uint8, write_png
from gooddrag.data.points import STAND_IN, format_points, parse_points
from gooddrag.types import DragSample

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
IMAGES = (*(f"original{suffix}" for suffix in SUFFIXES), "origin_image.png")
POINTS = ("points.json", "prompt.json")
LABELS = ("prompt", "category", "task")
Path_ = str | os.PathLike[str]


def make_sample(
    image: Path_,
    points: object,
    mask: Path_ | None = None,
    prompt: str = "",
    name: str | None = None,
) -> DragSample:
    """Put a sample together from files.

    Args:
        image: the picture's file.
        points: as `parse_points` takes them, (x, y) in pixels of the upright picture.
        mask: the mask's file, white = editable; None lets the whole picture change.
        prompt: describes the picture.
        name: identifies the sample; by default the file's name without its suffix.

    Raises:
        ValueError: a file or the points cannot be used.
    """
    handles, targets = parse_points(points)
    pixels = read_image(image)
    return DragSample(
        image=pixels,
        handles=handles,
        targets=targets,
        mask=None if mask is None else read_mask(mask, (pixels.shape[1], pixels.shape[2])),
        prompt=prompt,
        name=Path(image).stem if name is None else name,
    )


def read_sample(folder: Path_, needs_points: bool = True) -> DragSample:
    """Read a folder with original.jpg or .png, points.json and, if there is one, mask.png.

    DragBench-S's names (origin_image.png, prompt.json, and a mask that counts above 128) are
    read as well. The folder's name becomes the sample's.

    Args:
        folder: holds the files.
        needs_points: without, `STAND_IN` takes the place of a points.json that is not there.

    Raises:
        ValueError: a file is missing, ambiguous or cannot be used; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give one with original.png and points.json")
    pixels = read_image(_find_image(folder))
    points_file = _find_points(folder)
    if needs_points and not points_file.exists():
        raise ValueError(f"{folder} holds no points.json: put the points there")
    mask = _read_mask(folder, pixels, threshold=128 * (points_file.name == "prompt.json"))
    content = read_json(points_file) if points_file.exists() else STAND_IN
    try:
        handles, targets = parse_points(content)
        return DragSample(
            image=pixels,
            handles=handles,
            targets=targets,
            mask=mask,
            name=folder.resolve().name or "edit",
            **labels_of(content),
        )
    except ValueError as error:
        raise ValueError(f"{points_file}: {error}") from None


def write_sample(sample: DragSample, folder: Path_, overwrite: bool = False) -> None:
    """Write a sample in Drag100's form, losslessly for pictures of 8 bits.

    Args:
        sample: its name is not written: `read_sample` takes the folder's.
        folder: made if it is not there; files that are not part of a sample stay.
        overwrite: replace a sample that the folder holds already.

    Raises:
        ValueError: the folder holds a sample and `overwrite` is off, or is a file.
        OSError: the files cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder for the sample")
    old = [*_images(folder), *(folder / name for name in ("mask.png", "points.json"))]
    held = [path for path in old if path.exists()]
    if held and not overwrite:
        raise ValueError(f"{folder} already holds {held[0].name}: give another folder or overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    write_png(folder / "original.png", to_uint8(sample.image))
    if sample.mask is not None:
        write_png(folder / "mask.png", to_uint8(sample.mask))
    write_json(folder / "points.json", points_content(sample))
    kept = {"original.png", "points.json"} | ({"mask.png"} if sample.mask is not None else set())
    for path in held:  # parts of the old sample that would be read as parts of the new
        if path.name not in kept:
            path.unlink()


def labels_of(content: object) -> dict[str, Any]:
    """What stands beside the points: prompt, category, task and regions, as far as they are there.

    Raises:
        ValueError: one of them is not of its kind.
    """
    found = content if isinstance(content, Mapping) else {}
    labels: dict[str, Any] = {key: found[key] for key in LABELS if key in found}
    for key, text in labels.items():
        if not isinstance(text, str):
            raise ValueError(f'"{key}" must be text, found {text!r}')
    if found.get("regions") is not None:
        labels["regions"] = parse_points(found["regions"])
    return labels


def points_content(sample: DragSample) -> dict[str, Any]:
    """Points and labels as they stand in JSON; labels that say nothing are left out."""
    labels = {key: getattr(sample, key) for key in LABELS if getattr(sample, key)}
    regions = {} if sample.regions is None else {"regions": format_points(*sample.regions)}
    return {"points": format_points(sample.handles, sample.targets)} | labels | regions


def _images(folder: Path) -> list[Path]:
    return [folder / name for name in IMAGES if (folder / name).exists()]


def _find_image(folder: Path) -> Path:
    found = _images(folder)
    if not found:
        raise ValueError(f"{folder} holds no picture: expected original.png or original.jpg")
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ValueError(f"{folder} holds {names}: keep the one that is meant")
    return found[0]


def _find_points(folder: Path) -> Path:
    """The file of the points, or where it is missing."""
    found = [folder / name for name in POINTS if (folder / name).exists()]
    return found[0] if found else folder / "points.json"


def _read_mask(
    folder: Path, pixels: Float[Tensor, "3 h w"], threshold: int
) -> Float[Tensor, "1 h w"] | None:
    path = folder / "mask.png"
    size = (pixels.shape[1], pixels.shape[2])
    return read_mask(path, size, threshold) if path.exists() else None
