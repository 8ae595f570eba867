"""Deterministic scenes and edits of DragWorld."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gooddrag.world.families import REGISTRY
from gooddrag.world.family import TASKS, Draw, Edit, Family, Parameters
from gooddrag.world.paint import WHOLE, Canvas, Window

SPLITS = ("train", "validation", "test")
FAMILIES: tuple[str, ...] = tuple(family.name for family in REGISTRY)

# Of a scene's uniform numbers the first say whether and how it is edited, the rest the scene.
_NUMBERS = 64
_EDIT_NUMBERS = 8
# Pictures painted at once: on a GPU many, to keep it busy within bounded memory; on a CPU few,
# so that temporary tensors stay small.
_GPU_CHUNK = 64
_CPU_CHUNK = 2
_CHANGE = 2.0 / 255
_MASK_MARGIN = 0.04


@dataclass(frozen=True)
class WorldEdit:
    """A drag edit whose true result is known.

    Attributes:
        source: Picture before, [3, H, W] in [0, 1].
        truth: Picture after, [3, H, W] in [0, 1].
        mask: [1, H, W], 1 where the picture may change, else 0.
        handles: [n, 2] integer-valued (x, y) in pixels: where material points are.
        targets: [n, 2] integer-valued (x, y) in pixels: where they truly end; equal for pins.
        points: Names of these material points, for `material_points`.
        task: One of TASKS.
        family: One of FAMILIES.
        caption: A sentence about the picture.
        name: Unique name such as "test_0_00017_cat".
        parameters: Scene parameters before.
        edited_parameters: Scene parameters after.
    """

    source: Tensor
    truth: Tensor
    mask: Tensor
    handles: Tensor
    targets: Tensor
    points: tuple[str, ...]
    task: str
    family: str
    caption: str
    name: str
    parameters: dict[str, float]
    edited_parameters: dict[str, float]


def caption(family: str) -> str:
    """Returns the caption of a family by name."""
    return _family(family).caption


def _family(name: str) -> Family:
    return REGISTRY[FAMILIES.index(name)]


@torch.no_grad()
def render_scenes(
    family: str, parameters: Parameters, size: int = 256, window: Window = WHOLE
) -> Tensor:
    """Renders scenes of a family from parameters of one's own.

    Args:
        family: One of FAMILIES.
        parameters: All parameters of the family, each [B].
        size: Width and height of the whole picture in pixels.
        window: The rows and columns that are wanted of it.

    Returns:
        Pictures [B, 3, rows, columns] in [0, 1], on the parameters' device.
    """
    return _paint(_family(family), parameters, size, parameters["light"].device, window)


def material_points(family: str, parameters: Parameters, names: Sequence[str]) -> Tensor:
    """Returns where named material points lie, [B, n, 2], (x, y) in picture widths."""
    points = _family(family).points(parameters)
    return torch.stack([torch.stack(points[name], dim=-1) for name in names], dim=1)


def uniform_numbers(split: str, seed: int, index: int) -> Tensor:
    """Returns the uniform numbers [64] in [0, 1) that determine a scene."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    digest = hashlib.sha256(f"dragworld/{split}/{seed}/{index}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.rand(_NUMBERS, generator=generator)


def family_of(index: int) -> int:
    """Returns the family number of an index; consecutive indices cycle through the families."""
    return index % len(FAMILIES)


def edit_name(split: str, seed: int, index: int) -> str:
    """Returns the unique name of an edit, say "test_0_00017_cat", without rendering it."""
    return f"{split}_{seed}_{index:05d}_{FAMILIES[family_of(index)]}"


def task_of(index: int) -> int:
    """Returns the task number of an index; all (family, task) pairs appear evenly."""
    return (index // len(FAMILIES)) % len(TASKS)


def _edit_of(family: Family, task: int, choice: float) -> int:
    """Picks one of the family's edits of a task by a number in [0, 1)."""
    options = [k for k, edit in enumerate(family.edits) if edit.task == TASKS[task]]
    return options[min(int(choice * len(options)), len(options) - 1)]


def _scenes(family: Family, uniform: Tensor, edit_numbers: Tensor) -> tuple[Parameters, Parameters]:
    """Returns the parameters [B] before and after each scene's edit.

    All edits are computed for all scenes and selected, so the batch does not matter.
    """
    parameters = family.parameters(Draw(uniform[:, _EDIT_NUMBERS:]))
    before, after = dict(parameters), dict(parameters)
    for number, edit in enumerate(family.edits):
        chosen = edit_numbers == number
        first, second = edit.change(parameters, Draw(uniform[:, 2:_EDIT_NUMBERS]))
        for key in {**first, **second}:
            start = first.get(key, parameters[key])
            end = second.get(key, start)
            before[key] = torch.where(chosen, start, before[key])
            after[key] = torch.where(chosen, end, after[key])
    return before, after


def _paint(
    family: Family,
    parameters: Parameters,
    size: int,
    device: torch.device,
    window: Window = WHOLE,
) -> Tensor:
    """Paints scenes with parameters [B]; returns pictures [B, 3, size, size] in [0, 1]."""
    columns = {key: value.to(device).view(-1, 1, 1, 1) for key, value in parameters.items()}
    canvas = Canvas(size, columns["light"], window)
    family.paint(columns, canvas)
    return canvas.picture.clamp(0, 1)


@torch.no_grad()
def render_pictures(
    split: str,
    seed: int,
    indices: Sequence[int] | Tensor,
    size: int = 256,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """Renders scenes, half of them after their edit.

    Args:
        split: One of SPLITS.
        seed: Seed of the data set.
        indices: Scene numbers, any non-negative integers.
        size: Width and height in pixels.
        device: Where to render.

    Returns:
        Pictures [B, 3, size, size] in [0, 1] on `device`, and family numbers [B] (CPU).
    """
    device = torch.device(device)
    indices = [int(index) for index in indices]
    families = torch.tensor([family_of(index) for index in indices], dtype=torch.long)
    step = _CPU_CHUNK if device.type == "cpu" else _GPU_CHUNK
    pictures = torch.empty(len(indices), 3, size, size, device=device)
    for number in sorted(set(families.tolist())):
        rows = [row for row, index in enumerate(indices) if family_of(index) == number]
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step]
            chosen = [indices[row] for row in chunk]
            pictures[torch.tensor(chunk, device=device)] = _render_family(
                REGISTRY[number], split, seed, chosen, size, device
            )
    return pictures, families.to(device)


def _render_family(
    family: Family, split: str, seed: int, indices: list[int], size: int, device: torch.device
) -> Tensor:
    """Renders scenes of one family, [B, 3, size, size]."""
    uniform = torch.stack([uniform_numbers(split, seed, index) for index in indices])
    edits = [
        _edit_of(family, task_of(index), choice)
        for index, choice in zip(indices, uniform[:, 1].tolist(), strict=True)
    ]
    before, after = _scenes(family, uniform, torch.tensor(edits))
    edited = uniform[:, 0] < 0.5
    parameters = {key: torch.where(edited, after[key], before[key]) for key in before}
    return _paint(family, parameters, size, device)


@torch.no_grad()
def render_edit(
    split: str, seed: int, index: int, size: int = 256, device: str | torch.device = "cpu"
) -> WorldEdit:
    """Renders one scene before and after its edit, with the points to drag and the mask.

    It is calculated in float64, so that in float32 and in 8 bits the edit is the same one on every
    machine: what kinds of CPU round differently is far below that.
    """
    device = torch.device(device)
    family = REGISTRY[family_of(index)]
    uniform = uniform_numbers(split, seed, index)[None].double()
    number = _edit_of(family, task_of(index), uniform[0, 1].item())
    before, after = _scenes(family, uniform, torch.tensor([number]))
    both = {key: torch.cat([before[key], after[key]]) for key in before}
    source, truth = _paint(family, both, size, device)
    handles, targets = _drag_points(family, family.edits[number], before, after, size)
    mask = _edit_mask(source, truth, torch.cat([handles, targets]).to(device))
    return WorldEdit(
        source=source.float(),
        truth=truth.float(),
        mask=mask,
        handles=handles.float().to(device),
        targets=targets.float().to(device),
        points=family.edits[number].handles + family.edits[number].pins,
        task=family.edits[number].task,
        family=family.name,
        caption=family.caption,
        name=edit_name(split, seed, index),
        parameters={key: value.item() for key, value in before.items()},
        edited_parameters={key: value.item() for key, value in after.items()},
    )


def _drag_points(
    family: Family, edit: Edit, before: Parameters, after: Parameters, size: int
) -> tuple[Tensor, Tensor]:
    """Returns handle and target pixels [n, 2]: the same material points before and after."""
    start, end = family.points(before), family.points(after)
    names = edit.handles + edit.pins
    handles = torch.stack([torch.cat(start[name]) for name in names])
    # A pin is its own target exactly: rounding must not turn it into a drag by one pixel.
    moved = [torch.cat((end if name in edit.handles else start)[name]) for name in names]
    targets = torch.stack(moved)
    return torch.floor(handles * size), torch.floor(targets * size)


def _edit_mask(source: Tensor, truth: Tensor, points: Tensor) -> Tensor:
    """Returns a smooth region [1, H, W] around all changed pixels and all points."""
    size = source.shape[-1]
    changed = ((source - truth).abs().amax(dim=0, keepdim=True) > _CHANGE).float()
    rows, columns = points[:, 1].long(), points[:, 0].long()
    changed[0, rows.clamp(0, size - 1), columns.clamp(0, size - 1)] = 1.0
    margin = max(2, round(_MASK_MARGIN * size))
    # Closing (grow by more than the margin, then shrink) fills the gaps between changed parts.
    grown = _grow(changed, 2 * margin)
    return 1 - _grow(1 - grown, margin)


def _grow(region: Tensor, radius: int) -> Tensor:
    """Dilates a region [1, H, W] by about a disc of `radius` pixels (an octagon)."""
    region = region[None]
    for step in range(radius):
        if step % 3 == 2:
            region = functional.max_pool2d(region, 3, stride=1, padding=1)
            continue
        across = functional.max_pool2d(region, (1, 3), stride=1, padding=(0, 1))
        down = functional.max_pool2d(region, (3, 1), stride=1, padding=(1, 0))
        region = torch.maximum(across, down)
    return region[0]
