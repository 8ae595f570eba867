"""Where things are: image pixels, the half-resolution grid of features, and patches on it.

Two frames are used. Image pixels are (x, y) = (column, row). Grid positions are (row, column) on
the map of features as if resized to half the canvas, the resolution at which GoodDrag supervises
and tracks. The canvas is the picture as the network sees it, padded or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

FITS = ("pad", "resize")


@dataclass(frozen=True)
class Canvas:
    """The picture's size, and the size of what the network works on.

    Attributes:
        size: (height, width) of the picture.
        padded: (height, width) of the canvas, at least the picture's.
    """

    size: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int], multiple: int, fit: str) -> Canvas:
        """The canvas of a picture.

        Args:
            size: (height, width) in pixels.
            multiple: pixels to a latent cell.
            fit: "pad" extends the picture at the right and the bottom to whole latent cells, so
                that nothing shifts; "resize" leaves it as it is, drops the cells that are not
                whole and stretches the decoded picture back, as the official code does
                (ui_utils.py:373).

        Raises:
            ValueError: an unknown fit.
        """
        if fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, found {fit!r}")
        if fit == "resize":
            return cls(size, size)
        height, width = (-(-side // multiple) * multiple for side in size)
        return cls(size, (height, width))

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the half-resolution grid."""
        return self.padded[0] // 2, self.padded[1] // 2

    @property
    def inside(self) -> tuple[int, int]:
        """(rows, columns) of the grid that show the picture and no padding."""
        return self.size[0] // 2, self.size[1] // 2

    def pad(self, image: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c ph pw"]:
        """Extend the picture to the canvas by repeating its last column and row."""
        bottom, right = self.padded[0] - self.size[0], self.padded[1] - self.size[1]
        return functional.pad(image, (0, right, 0, bottom), mode="replicate")

    def crop(self, image: Float[Tensor, "b c dh dw"]) -> Float[Tensor, "b c h w"]:
        """From what the decoder gave back to the picture."""
        if image.shape[-2:] != self.padded:
            image = functional.interpolate(image, self.padded, mode="bilinear")
        return image[..., : self.size[0], : self.size[1]]

    def to_grid(self, points: Float[Tensor, "n 2"], rounding: str) -> Float[Tensor, "n 2"]:
        """Pixels (x, y) to grid positions (row, column), float32.

        Args:
            points: (x, y) in pixels.
            rounding: "nearest" puts them on whole cells, halves to even, so that positions are
                quantised to 2 pixels (pipeline.py:308-322); "none" keeps fractions.

        Raises:
            ValueError: an unknown rounding.
        """
        if rounding not in ("nearest", "none"):
            raise ValueError(f"grid rounding must be nearest or none, found {rounding!r}")
        (rows, columns), (height, width) = self.grid, self.padded
        grid = torch.tensor(
            [(y / height * rows, x / width * columns) for x, y in points.tolist()],
            dtype=torch.float32,
        )
        return grid.round() if rounding == "nearest" else grid

    def to_pixels(self, grid: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Grid positions (row, column) to pixels (x, y)."""
        (rows, columns), (height, width) = self.grid, self.padded
        scale = torch.tensor([width / columns, height / rows], dtype=grid.dtype, device=grid.device)
        return grid.flip(-1) * scale


@cache
def resizing(
    size: int, cells: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """How one axis is resized bilinearly, corners not aligned (pipeline.py:383-401).

    Returns:
        For each cell of the grid the two places that it lies between, each as a row of a matrix
        (cells, size) with a single 1, and the weight of the second (cells,).

    >>> first, second, weight = resizing(2, 4, torch.float32, torch.device("cpu"))
    >>> first.argmax(1).tolist(), second.argmax(1).tolist(), weight.tolist()
    ([0, 0, 0, 1], [1, 1, 1, 1], [0.0, 0.25, 0.75, 0.25])
    """
    cell = torch.arange(cells, dtype=dtype, device=device)
    place = ((cell + 0.5) * (size / cells) - 0.5).clamp(min=0)
    first = place.floor().long()
    second = (first + 1).clamp(max=size - 1)
    identity = torch.eye(size, dtype=dtype, device=device)
    return identity[first], identity[second], place - first


@cache
def resizing_matrix(size: int, cells: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same as one matrix (cells, size).

    >>> resizing_matrix(2, 4, torch.float32, torch.device("cpu")).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    first, second, weight = resizing(size, cells, dtype, device)
    return torch.lerp(first, second, weight[:, None])


def latent_mask(
    mask: Float[Tensor, "b 1 h w"], grid: tuple[int, int], latent: Sequence[int]
) -> Float[Tensor, "b 1 lh lw"]:
    """M at latent size: nearest to the grid, then nearest again (pipeline.py:617-622,684)."""
    binary = (mask > 0).to(mask.dtype)
    return functional.interpolate(functional.interpolate(binary, grid, mode="nearest"), latent)


def common_reach(p: int, q: int, radius: int, size: int) -> tuple[int, int]:
    """How far windows round two places of an axis may reach so that both stay inside.

    Args:
        p, q: the places, cells from 0.
        radius: they need reach no farther.
        size: cells of the axis.

    Returns:
        Cells before each place, and cells behind it.

    >>> common_reach(2, 9, radius=5, size=12)
    (2, 2)
    """
    last = size - 1
    return min(radius, p, q), min(radius, last - p, last - q)


def directions(
    handles: Float[Tensor, "n 2"], targets: Float[Tensor, "n 2"]
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
    """Unit vectors d_i from handles to targets (zero for pins), and the distances."""
    offset, distance = targets - handles, distances(handles, targets)
    return torch.where(distance[:, None] > 0, offset / distance[:, None], 0.0), distance


def distances(handles: Float[Tensor, "n 2"], targets: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    """How far handles are from targets."""
    offset = targets - handles
    # by way of float64, since float32 square roots differ between processors (see ddim.root);
    # MPS has none
    wide = offset if offset.device.type == "mps" else offset.double()
    return wide.norm(dim=-1).to(offset.dtype)


def sample_patches(
    features: Float[Tensor, "b c h w"],
    sample: Int[Tensor, " n"],
    centres: Float[Tensor, "n 2"],
    radius: int,
    canvas: Canvas,
) -> tuple[Float[Tensor, "n c s s"], Bool[Tensor, "n s s"]]:
    """The patches Omega(p_i, r), bilinear where a centre lies between cells.

    Gradients flow through the features, not through the positions (drag_utils.py:79-94).

    Args:
        features: F(z_t) at the size that the network gives them.
        sample: which map each patch is taken from.
        centres: (row, column) on the grid.
        radius: r; a patch has s = 2 r + 1 cells a side.
        canvas: tells the grid, and which of its cells show the picture; cells beyond repeat the
            border and are marked.

    Returns:
        The patches, and which of their cells lie inside.
    """
    corner = centres.floor()
    block = grid_block(features, sample, corner, radius, canvas)
    # float32 as in the official code, whose traces in float64 depend on it
    near, far = ((corner + 1 - centres), (centres - corner))
    parts = (
        row_weight[:, 0, None, None, None] * column_weight[:, 1, None, None, None] * part
        for row_weight, strip in ((near, block[:, :, :-1]), (far, block[:, :, 1:]))
        for column_weight, part in ((near, strip[..., :-1]), (far, strip[..., 1:]))
    )
    return sum(parts, start=next(parts)), inside_picture(centres, radius, canvas)


def inside_picture(
    centres: Float[Tensor, "n 2"], radius: int, canvas: Canvas
) -> Bool[Tensor, "n s s"]:
    """Which cells of the patches Omega(p_i, r) show the picture."""
    reach = centres[:, :, None] + torch.arange(-radius, radius + 1, device=centres.device)
    # limits as numbers: as a tensor they would have to be sent to the device
    row, column = (
        (reach[:, axis] >= 0) & (reach[:, axis] <= limit - 1)
        for axis, limit in enumerate(canvas.inside)
    )
    return row[:, :, None] & column[:, None, :]


def product_patches(
    features: Float[Tensor, "b c h w"],
    sample: Int[Tensor, " n"],
    centres: Float[Tensor, "n 2"],
    radius: int,
    canvas: Canvas,
) -> tuple[Float[Tensor, "n c s s"], Bool[Tensor, "n s s"]]:
    """`sample_patches` but for rounding, as F_Omega(p_i, r) = R_i F C_i^T.

    Two products each way, where nothing depends on equal cells staying equal to the bit. Compare
    with patches of this function alone: equal maps then give equal patches.
    """
    rows, columns = patch_matrices(centres, radius, features, canvas)
    maps = features.permute(0, 2, 3, 1).flatten(2)  # (b, h, w c), as channels last lie in memory
    if len(maps) == 1:
        strips = (rows.flatten(0, 1) @ maps.squeeze(0)).unflatten(0, rows.shape[:2])
    else:
        strips = rows @ maps.index_select(0, sample)
    patches = columns[:, None] @ strips.unflatten(2, (columns.shape[2], -1))
    return patches.permute(0, 3, 1, 2), inside_picture(centres, radius, canvas)


def patch_matrices(
    centres: Float[Tensor, "n 2"], radius: int, features: Float[Tensor, "b c h w"], canvas: Canvas
) -> tuple[Float[Tensor, "n s h"], Float[Tensor, "n s w"]]:
    """R_i and C_i: the map's rows and columns that each cell of a patch is made of, and weights.

    Bilinear twice: from the map to the cells of the grid, and between these.
    """
    corner = centres.floor()
    past = (centres - corner).to(features.dtype)
    steps = torch.arange(-radius, radius + 2, device=centres.device)
    matrices = []
    for axis in (0, 1):
        cells = (corner[:, axis, None].long() + steps).clamp(0, canvas.inside[axis] - 1)
        size, count = features.shape[2 + axis], canvas.grid[axis]
        weights = resizing_matrix(size, count, features.dtype, features.device)[cells]
        matrices.append(torch.lerp(weights[:, :-1], weights[:, 1:], past[:, axis, None, None]))
    return matrices[0], matrices[1]


def grid_block(
    features: Float[Tensor, "b c h w"],
    sample: Int[Tensor, " n"],
    corner: Float[Tensor, "n 2"],
    radius: int,
    canvas: Canvas,
) -> Float[Tensor, "n c k k"]:
    """The cells from `radius` before each corner to `radius` + 1 behind it, k = 2 r + 2.

    They are made one by one: the map of the whole grid, 16 times F's size, is not. Products with
    ones pick the values, so that equal cells stay equal to the bit, which decides ties in tracking;
    gradients come back by products too, in a fixed order.
    """
    steps = torch.arange(-radius, radius + 2, device=corner.device)
    picks, weights = [], []
    for axis in (0, 1):
        cells = (corner.long()[:, axis, None] + steps).clamp(0, canvas.inside[axis] - 1)
        size, count = features.shape[2 + axis], canvas.grid[axis]
        first, second, weight = resizing(size, count, features.dtype, features.device)
        picks.append(torch.cat((first[cells], second[cells]), dim=1))
        weights.append(weight[cells])
    if len(features) == 1:
        strips = torch.einsum("chw,nkw->nhkc", features[0], picks[1])
    else:
        strips = torch.einsum("nchw,nkw->nhkc", features.index_select(0, sample), picks[1])
    strips = between(strips, 2, weights[1][:, None, :, None])
    block = torch.einsum("nhkc,njh->njkc", strips, picks[0])
    # channels innermost: they are then summed in one order in every cell
    return between(block, 1, weights[0][:, :, None, None]).contiguous().permute(0, 3, 1, 2)


def between(pairs: Tensor, axis: int, weight: Tensor) -> Tensor:
    """(1 - weight) first + weight second, of the two halves along an axis."""
    first, second = pairs.chunk(2, axis)
    return (1 - weight) * first + weight * second
