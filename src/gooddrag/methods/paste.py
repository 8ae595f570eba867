"""Copy and paste in the picture: the trap that a distance between patches cannot see.

DAI compares the patch round each handle in the source with the patch round its target in the
result. This method copies just that patch: its DAI is 0, and its pictures are no edits at all,
since the original stays where it was and the copy has a square edge.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from gooddrag.events import Phases
from gooddrag.geometry import common_reach
from gooddrag.memory import peak_memory
from gooddrag.methods.base import Editor
from gooddrag.types import DragSample, Edit


def paste(
    image: Float[Tensor, "3 h w"],
    handles: Float[Tensor, "n 2"],
    targets: Float[Tensor, "n 2"],
    radius: int,
) -> Float[Tensor, "3 h w"]:
    """out[Omega(q_i, r)] = image[Omega(p_i, r)], pair after pair; a later pair covers an earlier.

    Args:
        image: RGB in [0, 1].
        handles, targets: p_i and q_i, (x, y) in pixels, rounded to whole ones.
        radius: r, pixels; at a border only what lies inside the picture round both points is
            copied.
    """
    height, width = image.shape[-2:]
    limits = torch.tensor([width - 1, height - 1])
    places = (points.cpu().round().long().minimum(limits) for points in (handles, targets))
    out = image.clone()
    for (px, py), (qx, qy) in zip(*(points.tolist() for points in places), strict=True):
        left, right = common_reach(px, qx, radius, width)
        up, down = common_reach(py, qy, radius, height)
        patch = image[:, py - up : py + down + 1, px - left : px + right + 1]
        out[:, qy - up : qy + down + 1, qx - left : qx + right + 1] = patch
    return out


class Paste(Editor):
    """Copies the patch round each handle to its target; the mask plays no part.

    Args:
        radius: of the patches, pixels.

    Raises:
        ValueError: a negative radius.
    """

    def __init__(self, *, radius: int) -> None:
        if radius < 0:
            raise ValueError(f"method.radius cannot be negative, found {radius}")
        self.radius = radius

    def _edit(self, samples: Sequence[DragSample], seed: int, phases: Phases) -> list[Edit]:
        """Copies; the handles are where the copies are."""
        memory = peak_memory(torch.device("cpu"))
        return [
            Edit(paste(s.image, s.handles, s.targets, self.radius), s.targets, None, {}, memory)
            for s in samples
        ]
