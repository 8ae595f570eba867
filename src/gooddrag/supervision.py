"""Motion supervision: the loss whose gradient moves the latent.

The information-preserving loss of GoodDrag (arXiv 2404.07206, section 3.3),

    L(z_t^k) = sum_i || F_{Omega(p_i^k + beta d_i^k, r1)}(z_t^k)
                        - sg F_{Omega(p_i^0, r1)}(z_t^0) ||_1
               + lam || (z_{t-1}^k - sg z_{t-1}^0) (1 - M) ||_1,

compares with the ORIGINAL patch of the UNEDITED latent; DragDiffusion's compares with the current
patch of the current latent. Everything else is shared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gooddrag.geometry import Canvas, directions, distances, product_patches

SCALES = ("official", "dragdiffusion", "paper")


def supervised_positions(
    handles: Float[Tensor, "n 2"], targets: Float[Tensor, "n 2"], beta: float
) -> Float[Tensor, "n 2"]:
    """p_i + min(beta, |q_i - p_i|) d_i on the grid: never beyond the target (pipeline.py:493)."""
    direction, distance = directions(handles, targets)
    return handles + direction * distance.clamp(max=beta)[:, None]


def arrived(
    handles: Float[Tensor, "n 2"], targets: Float[Tensor, "n 2"], radius: float
) -> Bool[Tensor, " n"]:
    """Which handles are nearer to their targets than `radius` grid cells (drag_utils.py:97-100)."""
    return distances(handles, targets) < radius


def patch_weight(scale: str, radius: int, channels: int) -> float:
    """The factor before a patch's MEAN absolute difference.

    Args:
        scale: "official" (2 r1)^2 (pipeline.py:502); "dragdiffusion" (2 r1 + 1)^2, the number of
            cells; "paper" the number of values, which makes the mean the written sum.
        radius: r1.
        channels: of the feature map.

    Raises:
        ValueError: an unknown scale.
    """
    cells = (2 * radius + 1) ** 2
    weights = {
        "official": float((2 * radius) ** 2),
        "dragdiffusion": float(cells),
        "paper": float(cells * channels),
    }
    if scale not in weights:
        raise ValueError(f"the loss scale must be one of {', '.join(SCALES)}, found {scale!r}")
    return weights[scale]


def patch_difference(
    moved: Float[Tensor, "n c s s"],
    reference: Float[Tensor, "n c s s"],
    valid: Bool[Tensor, "n s s"],
) -> Float[Tensor, " n"]:
    """Mean absolute difference of each pair's patches; cells that are not valid count as equal."""
    difference = (reference.detach() - moved).abs() * valid[:, None]
    return difference.mean(dim=(1, 2, 3))


def mask_term(
    z_prev: Float[Tensor, "b c h w"],
    z_prev_unedited: Float[Tensor, "b c h w"],
    mask: Float[Tensor, "b 1 h w"],
) -> Float[Tensor, " b"]:
    """|| (z_{t-1}^k - sg z_{t-1}^0) (1 - M) ||_1, a plain sum for each sample (pipeline.py:505)."""
    return ((z_prev - z_prev_unedited.detach()) * (1.0 - mask)).abs().flatten(1).sum(dim=1)


def sum_by_sample(
    values: Float[Tensor, " n"], sample: Tensor, samples: int
) -> Float[Tensor, " samples"]:
    """Add up the values of each sample's pairs."""
    return torch.zeros(samples, dtype=values.dtype, device=values.device).index_add(
        0, sample, values
    )


@dataclass(frozen=True, kw_only=True)
class MotionSupervision:
    """The loss with its settings: which patches, how far, how heavy.

    Attributes:
        r1: patch radius, grid cells.
        beta: step length, grid cells.
        lam: weight of the mask term.
        scale: see `patch_weight`.
        reference: "original" compares with the unedited picture's first patch
            (information-preserving), "current" with the patch where the handle is now
            (self-referential, DragDiffusion).
        arrival: a pair nearer than this many grid cells has arrived.
        arrived: "skip" leaves arrived pairs out, so that pins hold nothing (pipeline.py:489-493);
            "hold" supervises them too.

    Raises:
        ValueError: a setting out of range.
    """

    r1: int
    beta: float
    lam: float
    scale: str
    reference: str
    arrival: float
    arrived: str

    def __post_init__(self) -> None:
        choices = {
            "scale": SCALES,
            "reference": ("original", "current"),
            "arrived": ("skip", "hold"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"supervision.{name} must be one of {', '.join(allowed)}, "
                    f"found {getattr(self, name)!r}"
                )
        if self.r1 < 0 or self.beta <= 0 or self.lam < 0 or self.arrival < 0:
            raise ValueError(
                "r1, lam and the arrival radius cannot be negative and beta must be positive, "
                f"found r1={self.r1}, lam={self.lam}, arrival={self.arrival}, beta={self.beta}"
            )

    def drag_term(
        self,
        features: Float[Tensor, "b c h w"],
        original: tuple[Float[Tensor, "n c s s"], Bool[Tensor, "n s s"]],
        sample: Int[Tensor, " n"],
        handles: Float[Tensor, "n 2"],
        targets: Float[Tensor, "n 2"],
        canvas: Canvas,
    ) -> Float[Tensor, " b"]:
        """The feature term of each sample of the batch.

        Args:
            features: F(z_t^k).
            original: patches of F(z_t^0) at the first handles, and which cells are valid.
            sample: which sample each pair belongs to.
            handles, targets: p_i^k and q_i, (row, column) on the grid.
            canvas: tells the half-resolution grid.
        """
        position = supervised_positions(handles, targets, self.beta)
        moved, valid = product_patches(features, sample, position, self.r1, canvas)
        reference, reference_valid = original
        if self.reference == "current":
            reference, reference_valid = product_patches(
                features.detach(), sample, handles, self.r1, canvas
            )
        difference = patch_difference(moved, reference, valid & reference_valid)
        weight = patch_weight(self.scale, self.r1, features.shape[1])
        if self.arrived == "skip":
            difference = difference * ~arrived(handles, targets, self.arrival)
        return sum_by_sample(weight * difference, sample, len(features))
