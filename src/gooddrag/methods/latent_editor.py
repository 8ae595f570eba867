"""What methods share that edit in the latent space of a diffusion model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from gooddrag import ddim
from gooddrag.adapt import LoraAdapter
from gooddrag.backbones.base import Adapter
from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.denoising import PairedDenoising, decode_one
from gooddrag.events import Phases
from gooddrag.geometry import Canvas, latent_mask
from gooddrag.memory import out_of_memory
from gooddrag.methods.base import Editor
from gooddrag.remembered import Remembered
from gooddrag.types import DragSample, Edit

Adapt = Callable[[StableDiffusion, Sequence[DragSample], Phases], list[Adapter] | None]
Latent = Float[Tensor, "b c h w"]
Images = Float[Tensor, "b 3 height width"]


class LatentEditor(Editor):
    """From pictures to latents and back; what happens to them is up to the method.

    Args:
        backbone: the diffusion model.
        adapt: gives each sample its LoRA, or None.
        fit: see `Canvas.of`.
        empty_mask: an absent mask or one without a single editable pixel leaves everything
            "free", or everything "frozen".

    Raises:
        ValueError: an unknown word.
    """

    def __init__(
        self, *, backbone: StableDiffusion, adapt: Adapt, fit: str, empty_mask: str
    ) -> None:
        self.backbone, self.adapt = backbone, adapt
        self.fit, self.empty_mask = fit, empty_mask
        self._encoded: Remembered[tuple[Latent, Latent]] = Remembered()
        self._inverted: Remembered[Latent] = Remembered()
        if empty_mask not in ("free", "frozen"):
            raise ValueError(f"empty_mask must be free or frozen, found {empty_mask!r}")
        Canvas.of((64, 64), backbone.pixels_per_latent, fit)  # refuses before minutes of adaptation
        if isinstance(adapt, LoraAdapter):
            backbone.plan(adapt.settings.batch_size)

    def _attempt(self, samples: Sequence[DragSample], seed: int, phases: Phases) -> list[Edit]:
        """Edit; when the device runs out of memory, once more with the low-memory setting."""
        try:
            return self._edit(samples, seed, phases)
        except (RuntimeError, MemoryError) as error:
            if self.backbone.low_memory or not out_of_memory(error):
                raise
            told = str(error).strip().splitlines() or [type(error).__name__]
        print(
            f"out of memory ({told[0]}): trying once more with the low-memory setting",
            file=sys.stderr,
        )
        self._forget()
        self.backbone.save_memory()
        phases.seconds.clear()
        phases.tell("on_edit_retry", samples)
        return self._edit(samples, seed, phases)

    def _forget(self) -> None:
        """Let go of what is remembered for another drag."""
        for part in vars(self).values():
            if isinstance(part, Remembered):
                part.forget()

    def _canvas(self, samples: Sequence[DragSample]) -> Canvas:
        """The one canvas of the batch."""
        sizes = {sample.size for sample in samples}
        if len(sizes) != 1:
            listed = ", ".join(f"{w} x {h}" for h, w in sorted(sizes))
            raise ValueError(f"pictures of one batch must have one size, found {listed or 'none'}")
        return Canvas.of(sizes.pop(), self.backbone.pixels_per_latent, self.fit)

    def _posterior(self, samples: Sequence[DragSample], canvas: Canvas) -> tuple[Latent, Latent]:
        """Mean and standard deviation of z_0; the last ones are remembered.

        Of another picture nothing more is, from here on.
        """
        images = canvas.pad(torch.stack([s.image for s in samples]))
        found = self._encoded.find(images)
        if found is None:
            self._forget()
            found = self.backbone.encode(images)
            self._encoded.keep(images, found)
        return found

    def _encode(self, samples: Sequence[DragSample], canvas: Canvas) -> Latent:
        """z_0: the posterior's mean (pipeline.py:355-356)."""
        return self._posterior(samples, canvas)[0]

    def _masks(self, samples: Sequence[DragSample], canvas: Canvas) -> Float[Tensor, "b 1 ph pw"]:
        """M on the canvas."""
        empty = torch.full((1, *canvas.size), float(self.empty_mask == "free"))
        masks = torch.stack(
            [empty if s.mask is None or not s.mask.any() else s.mask.float() for s in samples]
        )
        return canvas.pad(masks)

    def _mask(
        self, samples: Sequence[DragSample], canvas: Canvas, z_0: Latent
    ) -> Float[Tensor, "b 1 h w"]:
        """M at latent size."""
        masks = self._masks(samples, canvas)
        return latent_mask(masks, canvas.grid, z_0.shape[-2:]).to(z_0.device)

    def _invert(
        self,
        times: ddim.Timesteps,
        adapters: Sequence[Adapter] | None,
        z_0: Latent,
        text: Tensor,
        phases: Phases,
    ) -> Latent:
        """z_T; the last one is remembered, for another drag of the same pictures."""
        made_of = (z_0, text, adapters, times.descending)
        z_T = self._inverted.find(made_of)
        with phases("invert", len(times.descending) if z_T is None else 0) as advance:
            if z_T is None:
                z_T = ddim.invert(z_0, partial(self.backbone.noise, text=text), times, advance)
        self._inverted.keep(made_of, z_T)
        return z_T

    def _denoise(
        self,
        denoising: PairedDenoising,
        unedited: Latent,
        edited: Latent,
        steps: range,
        last_dragged: list[int],
        canvas: Canvas,
        phases: Phases,
    ) -> Latent:
        """The rest of the denoising, edited beside unedited, to z_0'."""
        with phases("denoise", len(steps)) as advance:
            for step in steps:
                unedited, edited, z_0 = denoising.step(unedited, edited, step, last_dragged)
                self._show(z_0, range(len(z_0)), step, canvas, phases)
                advance()
        return edited

    def _show(
        self, z_0: Latent, samples: Sequence[int], step: int, canvas: Canvas, phases: Phases
    ) -> None:
        """Offer each sample's predicted z_0 to the callbacks, which decode it if they want to."""
        for row, sample in enumerate(samples):
            preview = partial(decode_one, self.backbone, canvas, z_0[row : row + 1])
            phases.tell("on_denoise_step", sample, step, preview)

    def _decode(self, z_0: Latent, canvas: Canvas, phases: Phases) -> Images:
        """Pictures of the samples' size, on the CPU."""
        with phases("decode", 1) as advance:
            images = canvas.crop(self.backbone.decode(z_0)).cpu()
            advance()
        return images
