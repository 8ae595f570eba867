"""DragWorld as samples: one in memory, or many as folders with their true results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gooddrag.data.files import write_json
from gooddrag.data.folder import write_sample
from gooddrag.data.images import MIN_SIDE, to_uint8, write_png
from gooddrag.drawing import overlay
from gooddrag.types import DragSample
from gooddrag.world import SPLITS, WorldEdit, render_edit

KEPT = 64  # edits: sample and truth go together, and several methods to one sample


def to_sample(edit: WorldEdit) -> DragSample:
    """The drag, without its truth; the picture has 8 bits, as from a file."""
    return DragSample(
        image=to_uint8(edit.source, "nearest").permute(2, 0, 1).float() / 255,
        # copies: the edit may be kept for others
        handles=edit.handles.clone(),
        targets=edit.targets.clone(),
        mask=edit.mask.clone(),
        name=edit.name,
        category=edit.family,
        task=edit.task,
    )


def world_sample(split: str, seed: int, index: int, size: int = 256) -> DragSample:
    """One drag of DragWorld.

    Args:
        split: "train", "validation" or "test".
        seed, index: which one.
        size: pixels a side.

    Raises:
        ValueError: an unknown split, a negative index, or a size that is too small.
    """
    return to_sample(world_edit(split, seed, index, size))


@lru_cache(maxsize=KEPT)
def world_edit(split: str, seed: int, index: int, size: int = 256) -> WorldEdit:
    """The same with its truth; the last ones are kept, 2 MB each at 256 x 256.

    Raises:
        ValueError: an unknown split, a negative index, or a size that is too small.
    """
    check_world(split, [index], size)
    return render_edit(split, seed, index, size=size)


def write_world(
    folder: Path,
    *,
    split: str,
    seed: int,
    indices: Iterable[int],
    size: int,
    sheet: bool,
    existing: str,
) -> None:
    """Render samples to folders in Drag100 form, each with truth.png and truth.json.

    Args:
        folder: one folder per sample goes below it, named as the sample.
        split, seed, indices, size: which, and how large in pixels.
        sheet: also write sheet.png, source with points beside truth.
        existing: samples that are there are a reason to "refuse" before any is written, or
            replaced ("overwrite"; "resume" likewise, since rendering gives the same again).

    Raises:
        ValueError: an unknown split, a negative index, no samples at all, or a folder that
            holds one.
    """
    indices = list(indices)
    check_world(split, indices, size)
    if existing == "refuse":
        _refuse_existing(folder, split, seed, indices)
    panels = []
    for index in indices:
        edit = render_edit(split, seed, index, size=size)
        target = folder / edit.name
        write_sample(to_sample(edit), target, overwrite=existing != "refuse")
        write_png(target / "truth.png", to_uint8(edit.truth, "nearest"))
        write_json(
            target / "truth.json",
            {
                "task": edit.task,
                "family": edit.family,
                "caption": edit.caption,
                "split": split,
                "seed": seed,
                "index": index,
                "parameters": edit.parameters,
                "edited_parameters": edit.edited_parameters,
            },
        )
        panels.append(panel(edit))
    if sheet and panels:
        write_png(folder / "sheet.png", to_uint8(contact_sheet(panels, columns=5), "nearest"))


def panel(edit: WorldEdit) -> Float[Tensor, "3 h w2"]:
    """The source with its points beside the truth."""
    source = overlay(edit.source, edit.handles, edit.targets, edit.mask)
    return torch.cat((source, edit.truth), dim=2)


def contact_sheet(
    pictures: list[Float[Tensor, "3 h w"]], columns: int, gap: int = 8
) -> Float[Tensor, "3 sh sw"]:
    """Pictures of one size in rows on white."""
    _, height, width = pictures[0].shape
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = torch.ones(3, rows * (height + gap) + gap, columns * (width + gap) + gap)
    for i, picture in enumerate(pictures):
        top = gap + (i // columns) * (height + gap)
        left = gap + (i % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = picture
    return sheet


def _refuse_existing(folder: Path, split: str, seed: int, indices: Iterable[int]) -> None:
    for index in indices:
        for path in folder.glob(f"{split}_{seed}_{index:05d}_*"):
            raise ValueError(
                f"{path} exists already: choose another output folder, or existing=overwrite"
            )


def check_world(split: str, indices: Sequence[int], size: int) -> None:
    """Make sure that there are such samples.

    Raises:
        ValueError: an unknown split, a negative index, none at all, or a size that is too small.
    """
    if not indices or size < MIN_SIDE:
        raise ValueError(
            f"count must be at least 1 and size at least {MIN_SIDE}; found {len(indices)}, {size}"
        )
    if split not in SPLITS:
        raise ValueError(f"DragWorld has the splits {', '.join(SPLITS)}, found {split!r}")
    if min(indices) < 0:
        raise ValueError(f"a DragWorld index cannot be negative, found {min(indices)}")
