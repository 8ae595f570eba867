"""MD, mean distance: how far from its target does the handle's feature lie in the edit?

Two protocols are in use, whose figures must not be mixed. They differ in the pictures' size, where
is searched, and the unit; what the featurizer does differs too, and is told in conf/metrics.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from gooddrag.metrics.base import SampleMean, check_sizes
from gooddrag.metrics.features import Featurizer

PROTOCOLS = ("dragbench", "regiondrag")
# Channels resized at a time: all 1280 of SD 2.1 would fill gigabytes.
_CHANNELS = 64


def match(
    source: Float[Tensor, "c fh fw"],
    edited: Float[Tensor, "c fh fw"],
    handles: Float[Tensor, "n 2"],
    size: tuple[int, int],
    interpolation: str,
    allowed: Bool[Tensor, "n h w"] | None = None,
) -> Float[Tensor, "n 2"]:
    """argmax over q of cos(F_p(source), F_q(edited)), with features resized to the picture's size.

    Args:
        source, edited: features F of both pictures.
        handles: p_i, (x, y) in pixels.
        size: (height, width) of the picture.
        interpolation: of the features, "bilinear" or "nearest".
        allowed: where each handle may be found; None means everywhere.

    Returns:
        The places found, (x, y) in whole pixels; the first in row-major order where several are
        equally near.
    """
    x, y = handles.round().long().to(source.device).unbind(dim=1)
    product = source.new_zeros(len(handles), *size)
    square, length = source.new_zeros(size), source.new_zeros(len(handles))
    for ours, theirs in zip(
        _resized(source, size, interpolation), _resized(edited, size, interpolation), strict=True
    ):
        vectors = ours[:, y, x]
        product += torch.einsum("cn,chw->nhw", vectors, theirs)
        square += theirs.square().sum(dim=0)
        length += vectors.square().sum(dim=0)
    cosine = product / (square.sqrt() * length.sqrt()[:, None, None]).clamp(min=1e-8)
    if allowed is not None:
        cosine = cosine.masked_fill(~allowed.to(cosine.device), -torch.inf)
    best = cosine.flatten(1).argmax(dim=1)
    return torch.stack((best % size[1], best // size[1]), dim=1).to(handles)


def _resized(
    features: Float[Tensor, "c fh fw"], size: tuple[int, int], interpolation: str
) -> Iterator[Tensor]:
    for channels in features.split(_CHANNELS):
        yield functional.interpolate(channels[None], size, mode=interpolation)[0]


def nearby(
    handles: Float[Tensor, "n 2"], targets: Float[Tensor, "n 2"], size: tuple[int, int]
) -> Bool[Tensor, "n h w"]:
    """RegionDrag's mask of each pair: discs round handle and target.

    Their radius is the pair's distance divided by sqrt(2), and at least 5 pixels.

    Args:
        handles, targets: (x, y) in pixels.
        size: (height, width) of the picture.
    """
    radius = ((handles - targets).norm(dim=1) / 2**0.5).clamp(min=5)[:, None, None]
    y, x = (torch.arange(side, device=handles.device) for side in size)
    discs = [
        (x - points[:, 0, None, None]).square() + (y[:, None] - points[:, 1, None, None]).square()
        < radius.square()
        for points in (handles, targets)
    ]
    return discs[0] | discs[1]


def dragbench_distances(
    source: Float[Tensor, "c fh fw"],
    edited: Float[Tensor, "c fh fw"],
    handles: Float[Tensor, "n 2"],
    targets: Float[Tensor, "n 2"],
    size: tuple[int, int],
) -> Float[Tensor, " n"]:
    """DragBench's protocol: searched in the whole picture; pixels.

    Source: DragDiffusion's run_eval_point_matching.py:86-121. Arguments as of `match`.
    """
    return (match(source, edited, handles, size, "bilinear") - targets).norm(dim=1)


def regiondrag_distances(
    source: Float[Tensor, "c fh fw"],
    edited: Float[Tensor, "c fh fw"],
    handles: Float[Tensor, "n 2"],
    targets: Float[Tensor, "n 2"],
    size: tuple[int, int],
) -> Float[Tensor, " n"]:
    """RegionDrag's and Inpaint4Drag's protocol: searched near the pair; percent of the sides.

    x is divided by the width and y by the height, and the length taken 100 times. Arguments as of
    `match`.
    """
    allowed = nearby(handles, targets, size)
    found = match(source, edited, handles, size, "nearest", allowed)
    height, width = size
    return 100 * ((found - targets) / found.new_tensor([width, height])).norm(dim=1)


class MeanDistance(SampleMean):
    """Mean distance in one protocol: `md_dragbench` (pixels) or `md_regiondrag` (percent).

    DragBench's mean is over all pairs of all pictures, RegionDrag's over pictures of the mean over
    their pairs.

    Args:
        protocol: "dragbench" or "regiondrag".
        featurizer: gives the features.

    Raises:
        ValueError: an unknown protocol.
    """

    higher_is_better = False

    def __init__(self, *, protocol: str, featurizer: Featurizer) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"MD's protocol must be dragbench or regiondrag, found {protocol!r}")
        super().__init__([f"md_{protocol}"])
        self.protocol, self.featurizer = protocol, featurizer

    def update(
        self,
        source: Tensor,
        edited: Tensor,
        handles: Tensor,
        targets: Tensor,
        prompt: str,
        name: str,
    ) -> None:
        """Count one edit.

        Args:
            source, edited: RGB in [0, 1].
            handles, targets: (x, y) in pixels.
            prompt, name: the sample's.
        """
        check_sizes(source, edited)
        ours = self.featurizer(source, prompt, f"{name}/source")
        theirs = self.featurizer(edited, prompt, f"{name}/edited")
        distances = dragbench_distances if self.protocol == "dragbench" else regiondrag_distances
        size = (source.shape[1], source.shape[2])
        found = distances(ours, theirs, handles, targets, size)
        for distance in found if self.protocol == "dragbench" else found.mean(dim=0, keepdim=True):
            self.add({self.names[0]: distance})
