"""Point tracking: where did the handle go?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from gooddrag.geometry import Canvas, sample_patches


@torch.no_grad()
def track(
    features: Float[Tensor, "b c h w"],
    reference: Float[Tensor, "n c"],
    sample: Int[Tensor, " n"],
    handles: Float[Tensor, "n 2"],
    radius: int,
    canvas: Canvas,
) -> Float[Tensor, "n 2"]:
    """p_i^{k+1} = argmin over q in Omega(p_i^k, r2) of || F_q(z_t) - F_{p_i^0}(z_t^0) ||_1.

    The first minimum in row-major order wins. The window ends at the picture's border, where the
    official code fails (drag_utils.py:54-76).

    Args:
        features: F(z_t).
        reference: F_{p_i^0}(z_t^0) of each pair.
        sample: which map each pair belongs to.
        handles: p_i^k, (row, column) on the grid.
        radius: r2.
        canvas: tells the half-resolution grid.

    Returns:
        p_i^{k+1}, (row, column) on the grid.
    """
    window, valid = sample_patches(features, sample, handles, radius, canvas)
    distance = feature_distance(window, reference)
    best = distance.masked_fill(~valid, torch.inf).flatten(1).argmin(dim=1)
    side = 2 * radius + 1
    offset = torch.stack((best // side, best % side), dim=1) - radius
    return handles + offset


def feature_distance(
    features: Float[Tensor, "n c h w"], reference: Float[Tensor, "n c"]
) -> Float[Tensor, "n h w"]:
    """|| F_q - F_{p_i^0}(z_t^0) ||_1 in every cell q, for each pair."""
    return (reference[:, :, None, None] - features).abs().sum(dim=1)


@torch.no_grad()
def distance_maps(
    features: Float[Tensor, "b c h w"],
    reference: Float[Tensor, "n c"],
    sample: Int[Tensor, " n"],
    canvas: Canvas,
) -> Float[Tensor, "n rows columns"]:
    """The distance that `track` looks at near the handle, in all cells that show the picture.

    For pictures only: features of the whole grid are made, 16 times as many as F has.

    Args:
        features: F(z_t).
        reference: F_{p_i^0}(z_t^0) of each pair.
        sample: which map each pair belongs to.
        canvas: tells the half-resolution grid.

    Returns:
        A map for each pair, on the grid.
    """
    rows, columns = canvas.inside
    maps = []
    for i, vector in zip(sample.tolist(), reference, strict=True):
        grid = functional.interpolate(features[i : i + 1], canvas.grid, mode="bilinear")
        maps.append(feature_distance(grid[..., :rows, :columns], vector[None])[0])
    return torch.stack(maps)


@dataclass(frozen=True, kw_only=True)
class PointTracking:
    """When handles are tracked, and how far they are looked for.

    Attributes:
        r2: radius of the search window, grid cells.
        when: "stale" tracks after the last gradient step of an operation, in the features
            computed BEFORE it (the official code, pipeline.py:544,585,594); "fresh" after it, in
            new features (the paper); "before" at the start of each operation but the first, in
            the features that its first step needs anyway (DragDiffusion).
        on_entry: track once more on entering each dragged step (pipeline.py:551-558).

    Raises:
        ValueError: a setting out of range.
    """

    r2: int
    when: str
    on_entry: bool

    def __post_init__(self) -> None:
        if self.when not in ("stale", "fresh", "before"):
            raise ValueError(f"tracking.when must be stale, fresh or before, found {self.when!r}")
        if self.r2 < 0:
            raise ValueError(f"r2 cannot be negative, found {self.r2}")

    def find(
        self,
        features: Float[Tensor, "b c h w"],
        reference: Float[Tensor, "n c"],
        sample: Int[Tensor, " n"],
        handles: Float[Tensor, "n 2"],
        canvas: Canvas,
    ) -> Float[Tensor, "n 2"]:
        """Where the handles are now; see `track`."""
        return track(features, reference, sample, handles, self.r2, canvas)
