"""Where a picture's points go when some of them are dragged: smooth warps inside a mask.

Four of them, since a few pairs do not say what hangs together: what the mask frees is a `Sheet` of
rubber whose rim is fixed, or one stiff `Piece`, or only what lies near the handles is such a piece,
or it grows or shrinks (`Zoom`).

All are maps back, from where a point of the warped picture is to where it comes from. Places are
(x, y) in pixels, whose centres are whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from gooddrag.methods.fields import (
    distance_to,
    lattice,
    rigid,
    similarity,
    spacing,
    spline,
    within,
)

Picture = Float[Tensor, "3 h w"]
Mask = Bool[Tensor, "h w"]
Points = Float[Tensor, "n 2"]


def size_of(mask: Mask) -> tuple[int, int]:
    """(height, width)."""
    return mask.shape[0], mask.shape[1]


def connected(mask: Mask) -> Int[Tensor, "h w"]:
    """The mask's connected parts (by sides or corners), each with its own number; 0 outside.

    Every cell takes the largest number near it, whole runs of a row or a column at a time.
    """
    labels = torch.arange(1, mask.numel() + 1).view(mask.shape) * mask
    rows, columns, before = runs(mask), runs(mask.T), torch.zeros_like(labels)
    while not torch.equal(before, labels):
        before = labels
        near = functional.max_pool2d(labels[None].double(), 3, stride=1, padding=1)[0]
        labels = largest(near.long() * mask, rows)
        labels = largest(labels.T, columns).T
    return labels


def pulled(
    mask: Mask, handles: Points, moving: Bool[Tensor, " n"], count: int
) -> Iterator[tuple[Mask, Bool[Tensor, " n"]]]:
    """The mask's connected parts in which a handle moves, each with which of the pairs are in it.

    A handle outside the mask moves all of it.

    Args:
        mask, handles, moving: the latter of each handle.
        count: the parts are of blocks of pixels, as many along the shorter side.
    """
    (height, width), coarse = size_of(mask), spacing(size_of(mask), count)
    blocks = functional.max_pool2d(mask[None].float(), coarse, ceil_mode=True)[0] > 0
    parts = connected(blocks).repeat_interleave(coarse, 0).repeat_interleave(coarse, 1)
    parts = parts[:height, :width] * mask
    x, y = handles.round().long().unbind(-1)
    owner = parts[y.clamp(0, height - 1), x.clamp(0, width - 1)]
    for part in owner[moving].unique():
        yield (parts == part if part else mask), owner == part


def runs(mask: Mask) -> Int[Tensor, "h w"]:
    """A number for each run of the mask in a row; 0 outside.

    >>> runs(torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1]]).bool()).tolist()
    [[1, 1, 0, 2], [3, 0, 0, 4]]
    """
    begins = mask & ~functional.pad(mask, (1, 0))[:, :-1]
    return begins.flatten().cumsum(0).view(mask.shape) * mask


def largest(labels: Int[Tensor, "h w"], runs: Int[Tensor, "h w"]) -> Int[Tensor, "h w"]:
    """To each cell the largest label of its run."""
    flat = runs.flatten()
    most = labels.new_zeros(int(flat.max()) + 1)
    return most.scatter_reduce(0, flat, labels.flatten(), "amax")[flat].view(labels.shape)


def taken(picture: Picture, where: Float[Tensor, "h w 2"]) -> Picture:
    """The picture's colours at places, bicubic; beyond its border those of the border."""
    height, width = picture.shape[1:]
    unit = (where + 0.5) / where.new_tensor([width, height]) * 2 - 1
    grid = unit.to(picture)[None]
    colours = functional.grid_sample(
        picture[None], grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    return colours[0].clamp(0, 1)


def inside(region: Mask, where: Float[Tensor, "rows columns 2"]) -> Bool[Tensor, "rows columns"]:
    """Which places lie in a region of the picture."""
    height, width = region.shape
    x, y = where.round().long().unbind(-1)
    there = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return there & region[y.clamp(0, height - 1), x.clamp(0, width - 1)]


def filled(picture: Picture, unknown: Mask) -> Picture:
    """Unknown pixels from the known ones round them, by ever coarser scales."""
    known = (~unknown)[None].to(picture)
    if known.all() or not known.any():
        return picture
    coarse, weight = (functional.avg_pool2d(x, 2, ceil_mode=True) for x in (picture * known, known))
    mean = torch.where(weight > 0, coarse / weight.clamp(min=1e-6), 0.0)
    beyond = filled(mean, weight[0] == 0)
    fine = functional.interpolate(beyond[None], picture.shape[1:], mode="bilinear")[0]
    return torch.where(unknown, fine, picture)


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The masked part as a sheet of rubber: handles and pins pull it, its rim is fixed.

    Attributes:
        lattice: places along the picture's shorter side at which the warp is calculated.
        rim: points along the rim, as close as this many along the shorter side.
    """

    lattice: int
    rim: int

    def __call__(
        self, picture: Picture, mask: Mask, handles: Points, targets: Points
    ) -> tuple[Picture, Mask]:
        """The warped picture, and the pixels of it that nothing came to: none here."""
        size, rim = size_of(mask), self._rim(mask)
        handles, targets = handles.double(), targets.double()
        centres = torch.cat((targets, rim))
        values = torch.cat((handles - targets, torch.zeros_like(rim)))
        field = within(mask, spacing(size, self.lattice), partial(spline, centres, values))
        back = lattice(size, 1) + field
        return torch.where(mask, taken(picture, back), picture), torch.zeros_like(mask)

    def _rim(self, mask: Mask) -> Points:
        """Points just outside the mask; of one that frees two corners or more, the corners too.

        Such a mask's rim may lie on one line, or all in one corner, where it does not hold a sheet.
        """
        (height, width), coarse = size_of(mask), spacing(size_of(mask), self.rim)
        cells = functional.max_pool2d(mask[None].float(), coarse, ceil_mode=True)
        ring = (functional.max_pool2d(cells, 3, stride=1, padding=1) > 0) & (cells == 0)
        rim = lattice((height, width), coarse)[ring[0]]
        if len(rim) and cells[0][[0, 0, -1, -1], [0, -1, 0, -1]].sum() < 2:
            return rim
        corners = [(x, y) for x in (0, width - 1) for y in (0, height - 1)]
        return torch.cat((rim, rim.new_tensor(corners)))


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The masked part as a stiff piece: it shifts and turns with the handles, and leaves a hole.

    Each connected part of the mask follows the pairs in it. What would come from beyond it, or
    leave it, does not.

    Attributes:
        lattice: places along the picture's shorter side at which the warp is calculated.
        reach: how far from the handles the piece goes, as part of the picture's shorter side, or
            half the handles' greatest distance if that is more; it then fades out over the same
            length again. None: to the mask's border.

    Raises:
        ValueError: a reach that is not above 0.
    """

    lattice: int
    reach: float | None

    def __post_init__(self) -> None:
        if self.reach is not None and self.reach <= 0:
            raise ValueError(f"method.reach must be above 0, found {self.reach}")

    def __call__(
        self, picture: Picture, mask: Mask, handles: Points, targets: Points
    ) -> tuple[Picture, Mask]:
        """The warped picture, and the pixels of it that something left and nothing came to."""
        moving, here = (handles != targets).any(dim=1), lattice(size_of(mask), 1)
        warped, hole = picture, torch.zeros_like(mask)
        for region, own in pulled(mask, handles, moving, self.lattice):
            start, end = handles[own].double(), targets[own].double()
            forth = self._field(mask, start, end, moving[own])
            back = here + self._field(mask, end, start, moving[own])
            comes = region & inside(region, back)
            leaves = region & inside(region, here + forth) & (forth.square().sum(dim=-1) > 1)
            warped = torch.where(comes, taken(picture, back), warped)
            hole = hole | (leaves & ~comes)
        return filled(warped, hole), hole

    def _field(
        self, mask: Mask, start: Points, end: Points, moving: Bool[Tensor, " n"]
    ) -> Float[Tensor, "h w 2"]:
        """How far each pixel of the mask goes when the points go from start to end."""
        side, held = min(size_of(mask)), start[moving]

        def field(at: Float[Tensor, "k 2"]) -> Float[Tensor, "k 2"]:
            moved = rigid(at, start, end) - at
            if self.reach is None:
                return moved
            reach = max(self.reach * side, float(torch.cdist(held, held).max()) / 2)
            near = (2 - distance_to(held, at) / reach).clamp(0, 1)
            return moved * (near.square() * (3 - 2 * near))[:, None]  # smooth at both ends

        return within(mask, spacing(size_of(mask), self.lattice), field)


@dataclass(frozen=True, kw_only=True)
class Zoom:
    """The masked part grows or shrinks, turns and shifts with its handles, each part by itself.

    Pins have no say, and a handle alone, which says nothing of size, shifts its part. What shrinks
    leaves a hole.

    Attributes:
        lattice: places along the picture's shorter side at which the mask's parts are told apart.
        least: the size to which a thing shrinks at most, 1 / `least` that to which it grows.

    Raises:
        ValueError: a least size that is not above 0 and at most 1.
    """

    lattice: int
    least: float

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1:
            raise ValueError(f"method.least must be above 0 and at most 1, found {self.least}")

    def __call__(
        self, picture: Picture, mask: Mask, handles: Points, targets: Points
    ) -> tuple[Picture, Mask]:
        """The warped picture, and the pixels of it that nothing came to."""
        moving, here = (handles != targets).any(dim=1), lattice(size_of(mask), 1)
        warped, hole = picture, torch.zeros_like(mask)
        for region, own in pulled(mask, handles, moving, self.lattice):
            own = own & moving
            a, b = similarity(handles[own].double(), targets[own].double(), self.least)
            back = torch.view_as_real((torch.view_as_complex(here) - b) / a)
            comes = region & inside(region, back)
            warped = torch.where(comes, taken(picture, back), warped)
            hole = hole | (region & ~comes)
        return filled(warped, hole), hole
