"""Denoising the edited latent beside the unedited one, with mutual self-attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gooddrag.backbones.base import Backbone
from gooddrag.ddim import Timesteps, move, predict_z0
from gooddrag.geometry import Canvas

Latent = Float[Tensor, "b c h w"]


@dataclass(frozen=True, kw_only=True)
class MutualAttention:
    """When and where the edited branch attends to the unedited one's keys and values.

    Attributes:
        when: "after_drag" from the first denoising step without dragging on (official,
            pipeline.py:701-704), "always", or "never".
        start_layer: the first of the 16 self-attention layers concerned (attn_utils.py:80).
        start_step: denoising steps to wait after `when` sets in.

    Raises:
        ValueError: an unknown `when`.
    """

    when: str
    start_layer: int
    start_step: int

    def __post_init__(self) -> None:
        if self.start_layer < 0 or self.start_step < 0:
            raise ValueError(
                "attention.start_layer and start_step cannot be negative, found "
                f"{self.start_layer} and {self.start_step}"
            )
        if self.when not in ("after_drag", "always", "never"):
            raise ValueError(
                f"attention.when must be after_drag, always or never, found {self.when!r}"
            )

    def active(self, step: int, last_dragged: list[int]) -> list[bool]:
        """For which samples it is on at a step, given the last step each was dragged in."""
        begin = [0 if self.when == "always" else last + 1 for last in last_dragged]
        return [self.when != "never" and step >= first + self.start_step for first in begin]


@dataclass(frozen=True)
class PairedDenoising:
    """One denoising step of (unedited, edited) pairs in one batch (pipeline.py:705-712).

    Attributes:
        known: z_{t-1}^0 of the first steps, where the unedited branch has been walked already. The
            edited one then goes alone as long as it attends to nobody.
    """

    backbone: Backbone
    text: Float[Tensor, "b tokens d"]
    times: Timesteps
    attention: MutualAttention
    known: Sequence[Latent] = field(default=(), kw_only=True)

    @torch.no_grad()
    def step(
        self, unedited: Latent, edited: Latent, step: int, last_dragged: list[int]
    ) -> tuple[Latent, Latent, Latent]:
        """Denoise both by the step-th step.

        Args:
            unedited, edited: z_t^0 and z_t^k.
            step: index of the step, 0 at the inverted latent.
            last_dragged: for each sample the last step it was dragged in.

        Returns:
            z_{t-1}^0, z_{t-1}^k, and the z_0 that the edited one predicts.
        """
        t = self.times.descending[step]
        a_t, a_prev = self.times.down(t)
        mutual: Bool[Tensor, " b"] = torch.tensor(self.attention.active(step, last_dragged))
        if step < len(self.known) and not mutual.any():
            eps = self.backbone.noise(edited, t, self.text)
            return self.known[step], move(edited, eps, a_t, a_prev), predict_z0(edited, eps, a_t)
        pairs = torch.stack((unedited, edited), dim=1).flatten(0, 1)
        with self.backbone.mutual_attention(mutual, self.attention.start_layer):
            eps = self.backbone.noise(pairs, t, self.text)
        moved = move(pairs, eps, a_t, a_prev).unflatten(0, (-1, 2))
        predicted = predict_z0(pairs, eps, a_t).unflatten(0, (-1, 2))
        return moved[:, 0], moved[:, 1], predicted[:, 1]


def decode_one(
    backbone: Backbone, canvas: Canvas, z_0: Float[Tensor, "1 c h w"]
) -> Float[Tensor, "3 height width"]:
    """One latent as a picture of the sample's size, on the CPU."""
    return canvas.crop(backbone.decode(z_0))[0].cpu()
