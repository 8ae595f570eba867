"""DragNoise: drag the UNet's bottleneck at one step, and let it speak in the steps after.

arXiv 2404.01050 (CVPR 2024), written from what is known of the paper, whose full text was not at
hand; no code of it was used. The latent is left as it was inverted. What is optimised is s_t, the
output of the UNet's middle block, so that gradients pass through the decoder only; the optimised
s_t then replaces the bottleneck of the following steps, until the picture's details are made.

The parts are those of the other methods: motion supervision, point tracking, the mask term on
z_{t-1}, which here depends on s_t by way of the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.ddim import move
from gooddrag.denoising import Latent, PairedDenoising
from gooddrag.drag import DragOptimization
from gooddrag.methods.latent_drag import LatentDrag

Bottleneck = Float[Tensor, "b s sh sw"]


@dataclass(frozen=True)
class SemanticPropagation(PairedDenoising):
    """Denoising in which the edited latents' bottleneck is s, until `until` steps are left."""

    backbone: StableDiffusion
    s: Bottleneck
    until: int

    def step(
        self, unedited: Latent, edited: Latent, step: int, last_dragged: list[int]
    ) -> tuple[Latent, Latent, Latent]:
        """Denoise both by the step-th step."""
        if len(self.times.descending) - step <= self.until:
            return super().step(unedited, edited, step, last_dragged)
        s = self.s.detach().to(edited.device)
        with self.backbone.replaced_bottleneck(s, slice(1, None, 2)):
            return super().step(unedited, edited, step, last_dragged)


class BottleneckOptimization(DragOptimization):
    """The dragging of a batch of samples: s_t is the only parameter.

    Args:
        until: see `SemanticPropagation`.
        parts: see `DragOptimization`; the schedule drags in the first step alone.
    """

    backbone: StableDiffusion

    def __init__(self, *, until: int, **parts: Any) -> None:
        super().__init__(**parts)
        plain = self.denoising
        self.z.requires_grad_(False)
        self.s = nn.Parameter(self.backbone.bottleneck(self.z, self.t, plain.text))
        self.denoising = SemanticPropagation(
            self.backbone, plain.text, plain.times, plain.attention, self.s, until
        )

    @property
    def optimised(self) -> nn.Parameter:
        """What the gradient steps change."""
        return self.s

    def on_train_epoch_start(self) -> None:
        """Take the reference's z_{t-1} from the drag's own first forward.

        It has to be equal to the bit: a mask term of rounding noise instead of 0 would push with
        the full strength of its sign (see `unedited_pass`).
        """
        super().on_train_epoch_start()
        self._ahead = self._forward()
        z_prev = move(self.z, self._ahead[0].detach(), *self.denoising.times.down(self.t))
        self.references = {self.step: replace(self.reference, z_prev=z_prev)}

    def _forward(self) -> tuple[Latent, Float[Tensor, "b f h w"]]:
        with self.backbone.replaced_bottleneck(self.s):
            return super()._forward()


class DragNoise(LatentDrag):
    """A `LatentDrag` of the bottleneck.

    Args:
        until: denoising steps at the end that make bottlenecks of their own again.
        parts: see `LatentDrag`.

    Raises:
        ValueError: a schedule with another step than the first.
    """

    def __init__(self, *, until: int, schedule: Sequence[int], **parts: Any) -> None:
        super().__init__(schedule=schedule, **parts)
        self.until = until
        if len(self.schedule) != 1:
            raise ValueError(
                "DragNoise optimises the bottleneck of one step: take schedule=drag_first, "
                f"found a schedule of {len(self.schedule)} steps"
            )

    def _optimization(self, **parts: Any) -> DragOptimization:
        return BottleneckOptimization(until=self.until, **parts)
