"""Against the true result, which DragWorld knows: PSNR, SSIM and absolute error, by region."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from gooddrag.metrics.base import SampleMean, check_sizes
from gooddrag.world import WorldEdit

REGIONS = ("", "_inside", "_outside")
# Rounding to 8 bits alone leaves this PSNR: beyond it there is nothing to tell, and no infinity
# to spoil a mean.
ROUNDING_PSNR = 10 * math.log10(12 * 255**2)


def absolute_error(
    edited: Float[Tensor, "3 h w"], truth: Float[Tensor, "3 h w"], where: Bool[Tensor, "h w"]
) -> Float[Tensor, ""]:
    """Mean absolute difference over a region, of values in [0, 1]; NaN of an empty region."""
    return (edited - truth)[:, where].abs().mean()


def signal_to_noise(
    edited: Float[Tensor, "3 h w"], truth: Float[Tensor, "3 h w"], where: Bool[Tensor, "h w"]
) -> Float[Tensor, ""]:
    """PSNR in dB over a region, at most `ROUNDING_PSNR`; NaN of an empty region.

    >>> grey = torch.full((3, 2, 2), 0.5)
    >>> everywhere = torch.ones(2, 2, dtype=torch.bool)
    >>> round(float(signal_to_noise(grey + 0.1, grey, everywhere)), 3)
    20.0
    >>> round(float(signal_to_noise(grey, grey, everywhere)), 2)
    58.92
    """
    if not where.any():
        return edited.new_tensor(torch.nan)
    ratio = peak_signal_noise_ratio(edited[:, where], truth[:, where], data_range=1.0)
    return ratio.clamp(max=ROUNDING_PSNR)


def similarity_map(
    edited: Float[Tensor, "3 h w"], truth: Float[Tensor, "3 h w"]
) -> Float[Tensor, "h w"]:
    """SSIM at each pixel: Gaussian window of sigma 1.5, mean over channels."""
    _, channels = structural_similarity_index_measure(
        edited[None], truth[None], data_range=1.0, return_full_image=True
    )
    return channels[0].mean(dim=0)


def truth_errors(
    edited: Float[Tensor, "3 eh ew"],
    truth: Float[Tensor, "3 h w"],
    mask: Float[Tensor, "1 h w"],
) -> dict[str, Tensor]:
    """`psnr`, `ssim` and `mae` overall, and with `_inside` and `_outside` the mask.

    Args:
        edited, truth: RGB in [0, 1].
        mask: 1 where the picture may change.

    Raises:
        ValueError: the pictures' sizes differ.
    """
    check_sizes(truth, edited)
    similarity, inside = similarity_map(edited, truth), mask[0] > 0
    found = {}
    for region, where in zip(REGIONS, (torch.ones_like(inside), inside, ~inside), strict=True):
        found[f"psnr{region}"] = signal_to_noise(edited, truth, where)
        found[f"ssim{region}"] = similarity[where].mean()
        found[f"mae{region}"] = absolute_error(edited, truth, where)
    return found


class TruthError(SampleMean):
    """Means of `truth_errors` over DragWorld's edits."""

    def __init__(self) -> None:
        super().__init__([f"{kind}{r}" for kind in ("psnr", "ssim", "mae") for r in REGIONS])

    def update(self, edited: Tensor, world: WorldEdit) -> None:
        """Count one edit.

        Args:
            edited: RGB in [0, 1].
            world: the edit as DragWorld knows it.
        """
        truth, mask = world.truth.to(edited.device), world.mask.to(edited.device)
        self.add(truth_errors(edited, truth, mask))
