"""GoodDrag from a warped start: a latent that is moved first needs few gradient steps, not many.

This project's own. The inverted latent is warped as in `fastdrag`, which brings each handle's
surroundings to its target but tears and blurs; GoodDrag's alternation then mends what arrived: the
loss asks for the original patch at the target from the first step on, and tracking sees how far off
the handle still is.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gooddrag.drag import DragOptimization
from gooddrag.methods.fastdrag import warp
from gooddrag.methods.latent_drag import LatentDrag


class WarpedOptimization(DragOptimization):
    """The dragging of a batch of samples from warped latents, handles at their targets.

    Args:
        pixels_per_latent: of the backbone.
        parts: see `DragOptimization`.
    """

    def __init__(self, *, pixels_per_latent: int, **parts: Any) -> None:
        super().__init__(**parts)

        def cells(grid: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
            """Places on the grid as places among the latent's cells, (row, column)."""
            pixels = self.canvas.to_pixels(grid).flip(-1)
            return (pixels + 0.5).to(self.z) / pixels_per_latent - 0.5

        handles, targets = cells(self.pairs.start), cells(self.pairs.targets)
        with torch.no_grad():
            for i in range(len(self.z)):
                own = self.pairs.sample == i
                self.z[i] = warp(self.z[i], self.mask[i], handles[own], targets[own])
        self.handles = self.pairs.targets.clone()
        self.seen = self.handles.cpu()


class WarpedDrag(LatentDrag):
    """A `LatentDrag` whose latents are warped before they are dragged."""

    def _optimization(self, **parts: Any) -> DragOptimization:
        return WarpedOptimization(pixels_per_latent=self.backbone.pixels_per_latent, **parts)
