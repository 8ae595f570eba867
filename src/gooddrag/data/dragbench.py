"""A sample of DragBench, DragBench-DR or DragBench-SR: a folder with a picture and pickles."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gooddrag.data.images import read_image
from gooddrag.data.pickles import read_pickle
from gooddrag.data.points import Pairs, parse_points
from gooddrag.types import DragSample

IMAGE, POINTS, REGIONS = "original_image.png", "meta_data.pkl", "meta_data_region.pkl"


def read_dragbench(folder: str | os.PathLike[str]) -> DragSample:
    """Read original_image.png, meta_data.pkl and, if there is one, meta_data_region.pkl.

    Points, mask and prompt are those of meta_data.pkl; of the second pickle the points alone are
    taken, as regions. The folder's name becomes the sample's.

    Args:
        folder: holds the files.

    Raises:
        ValueError: a file is missing or cannot be used; the message names it.
    """
    folder = Path(folder)
    pixels = read_image(folder / IMAGE)
    size = (pixels.shape[1], pixels.shape[2])
    prompt, (handles, targets), mask = _read(folder / POINTS, size)
    regions = _read(folder / REGIONS, size)[1] if (folder / REGIONS).exists() else None
    try:
        return DragSample(
            image=pixels,
            handles=handles,
            targets=targets,
            mask=mask,
            prompt=prompt,
            name=folder.resolve().name,
            regions=regions,
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _read(path: Path, size: tuple[int, int]) -> tuple[str, Pairs, Float[Tensor, "1 h w"]]:
    """Prompt, points, and the mask: 1 where the picture may change."""
    content = read_pickle(path)
    missing = {"prompt", "points", "mask"} - set(content if isinstance(content, dict) else ())
    if missing:
        raise ValueError(
            f"{path} is no pickle of DragBench's: no {' and no '.join(sorted(missing))}"
        )
    prompt, mask = content["prompt"], content["mask"]
    if not isinstance(prompt, str):
        raise ValueError(f"{path}: the prompt must be text, found a {type(prompt).__name__}")
    if not isinstance(mask, np.ndarray) or mask.shape != size:
        found = mask.shape if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"{path}: the mask must be an array of the shape {size}, found {found}")
    try:
        return prompt, parse_points(content["points"]), torch.from_numpy(mask > 0).float()[None]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
