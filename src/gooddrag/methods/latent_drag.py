"""Drag editing by optimising a diffusion latent: GoodDrag, and DragDiffusion as another recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gooddrag import ddim
from gooddrag.adapt import digest_of
from gooddrag.backbones.base import Adapter
from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.denoising import MutualAttention, PairedDenoising, decode_one
from gooddrag.drag import DragOptimization, DragSettings, Pairs, reference_pass
from gooddrag.events import EditCallback, Phases
from gooddrag.fitting import quiet_trainer
from gooddrag.geometry import Canvas, latent_mask
from gooddrag.memory import out_of_memory, peak_memory, reset_peak_memory
from gooddrag.supervision import MotionSupervision
from gooddrag.tracking import PointTracking
from gooddrag.types import DragSample, Edit

Adapt = Callable[[StableDiffusion, Sequence[DragSample], Phases], list[Adapter] | None]


class LatentDrag:
    """Adapt, invert, drag and denoise alternately, denoise the rest, decode.

    Args:
        backbone: the diffusion model.
        adapt: gives each sample its LoRA, or None.
        schedule: drag operations per denoising step, from the inverted latent on.
        supervision: the loss.
        tracking: the point tracking.
        attention: mutual self-attention while denoising.
        settings: of the optimisation.
        steps: DDIM steps on the whole ladder.
        strength: the part of the ladder that is inverted and denoised.
        fit: see `Canvas.of`.
        grid_rounding: see `Canvas.to_grid`.
        empty_mask: an absent mask or one without a single editable pixel leaves everything
            "free", or everything "frozen" (official: the mask term then holds the whole picture).

    Raises:
        ValueError: settings that cannot work together.
    """

    def __init__(
        self,
        *,
        backbone: StableDiffusion,
        adapt: Adapt,
        schedule: Sequence[int],
        supervision: MotionSupervision,
        tracking: PointTracking,
        attention: MutualAttention,
        settings: DragSettings,
        steps: int,
        strength: float,
        fit: str,
        grid_rounding: str,
        empty_mask: str,
    ) -> None:
        self.backbone, self.adapt = backbone, adapt
        self.schedule = list(schedule)
        self.supervision, self.tracking, self.attention = supervision, tracking, attention
        self.settings = settings
        self.times = ddim.Timesteps(backbone.alphas_cumprod, steps, strength)
        self.fit, self.grid_rounding, self.empty_mask = fit, grid_rounding, empty_mask
        self._inverted: tuple[object, Tensor] | None = None
        if empty_mask not in ("free", "frozen"):
            raise ValueError(f"empty_mask must be free or frozen, found {empty_mask!r}")
        # refuses unknown words before minutes of adaptation
        canvas = Canvas.of((64, 64), backbone.pixels_per_latent, fit)
        canvas.to_grid(torch.zeros(1, 2), grid_rounding)
        if len(self.schedule) > len(self.times.descending):
            raise ValueError(
                f"the schedule drags in {len(self.schedule)} denoising steps, but only "
                f"{len(self.times.descending)} of {steps} are walked at strength {strength}: "
                "raise method.B, or lower method.K"
            )

    def __call__(
        self,
        samples: Sequence[DragSample],
        *,
        seed: int = 0,
        callbacks: Sequence[EditCallback] = (),
    ) -> list[Edit]:
        """Edit a batch of pictures of one size; one edit is a batch of one.

        Nothing random happens after adaptation, whose seed is one of its settings (`seed=3` on the
        command line sets it): `seed` here is for methods that draw numbers while editing.

        Args:
            samples: pictures of one size.
            seed: unused.
            callbacks: hear about progress.

        Raises:
            ValueError: pictures of different sizes.
        """
        phases = Phases(callbacks)
        try:
            phases.tell("on_edit_start", samples)
            edits = self._edit_within_memory(samples, phases)
            phases.tell("on_edit_end", samples, edits)
        except BaseException as error:
            phases.tell("on_edit_exception", samples, error)
            raise
        return edits

    def _edit_within_memory(self, samples: Sequence[DragSample], phases: Phases) -> list[Edit]:
        """Edit; when the device runs out of memory, once more with the low-memory setting."""
        try:
            return self._edit(samples, phases)
        except (RuntimeError, MemoryError) as error:
            if self.backbone.low_memory or not out_of_memory(error):
                raise
        self.backbone.save_memory()
        phases.seconds.clear()
        phases.tell("on_edit_retry", samples)
        return self._edit(samples, phases)

    def _edit(self, samples: Sequence[DragSample], phases: Phases) -> list[Edit]:
        """The method's table of contents."""
        canvas = self._canvas(samples)
        backbone, times = self.backbone, self.times
        reset_peak_memory(backbone.device)

        adapters = self.adapt(backbone, samples, phases)
        text = backbone.embed([sample.prompt for sample in samples])
        z_0 = self._encode(samples, canvas)
        mask = self._mask(samples, canvas, z_0)
        pairs = Pairs.of(samples, canvas, self.grid_rounding, backbone.device)
        denoising = PairedDenoising(backbone, text, times, self.attention)

        with backbone.adapted(adapters):
            z_T = self._invert(adapters, z_0, text, phases)

            with phases("reference", self.dragged_steps) as advance:
                references = reference_pass(
                    backbone,
                    z_T,
                    text,
                    times,
                    self.dragged_steps,
                    pairs,
                    canvas,
                    self.supervision.r1,
                    advance,
                )

            with phases("drag", sum(self.schedule)):
                drag = self._drag(z_T, mask, pairs, references, denoising, canvas, phases)

            with phases("denoise", len(times.descending) - drag.step) as advance:
                z_0 = self._denoise(drag, denoising, canvas, phases, advance)

        with phases("decode", 1) as advance:
            images = canvas.crop(backbone.decode(z_0)).cpu()
            advance()

        memory = peak_memory(backbone.device)
        return [
            Edit(image, trajectory.handles, trajectory, dict(phases.seconds), memory)
            for image, trajectory in zip(images, drag.trajectories, strict=True)
        ]

    def _invert(
        self,
        adapters: Sequence[Adapter] | None,
        z_0: Tensor,
        text: Tensor,
        phases: Phases,
    ) -> Tensor:
        """z_T; the last one is remembered, for another drag of the same pictures."""
        with_adapters = None if adapters is None else [digest_of(adapter) for adapter in adapters]
        key = (digest_of({"z_0": z_0, "text": text}), with_adapters, self.times.descending)
        if self._inverted is None or self._inverted[0] != key:
            noise = partial(self.backbone.noise, text=text)
            with phases("invert", len(self.times.descending)) as advance:
                self._inverted = (key, ddim.invert(z_0, noise, self.times, advance))
        else:
            with phases("invert", 0):
                pass
        return self._inverted[1]

    @property
    def dragged_steps(self) -> int:
        """Denoising steps until the last dragged one is over."""
        return max(i + 1 for i, count in enumerate(self.schedule) if count)

    def _drag(
        self,
        z_T: Tensor,
        mask: Tensor,
        pairs: Pairs,
        references: list,
        denoising: PairedDenoising,
        canvas: Canvas,
        phases: Phases,
    ) -> DragOptimization:
        """The fit of `DragOptimization`."""
        module = DragOptimization(
            backbone=self.backbone,
            z_T=z_T,
            mask=mask,
            pairs=pairs,
            references=references,
            schedule=self.schedule,
            denoising=denoising,
            supervision=self.supervision,
            tracking=self.tracking,
            settings=self.settings,
            canvas=canvas,
        )
        epochs = len(module.dragged_steps)
        quiet_trainer(self.backbone.device, phases.callbacks, max_epochs=epochs).fit(module)
        return module

    def _denoise(
        self,
        drag: DragOptimization,
        denoising: PairedDenoising,
        canvas: Canvas,
        phases: Phases,
        advance: Callable[[], object],
    ) -> Tensor:
        """The rest of the denoising, from where the dragging left z_t to z_0'."""
        unedited, z = drag.unedited, drag.z.detach().to(self.backbone.device)
        for step in range(drag.step, len(self.times.descending)):
            unedited, z, z_0 = denoising.step(unedited, z, step, drag.last_dragged)
            for i in range(len(z)):
                preview = partial(decode_one, self.backbone, canvas, z_0[i : i + 1])
                phases.tell("on_denoise_step", i, step, preview)
            advance()
        return z

    def _canvas(self, samples: Sequence[DragSample]) -> Canvas:
        sizes = {sample.size for sample in samples}
        if len(sizes) != 1:
            listed = ", ".join(f"{w} x {h}" for h, w in sorted(sizes))
            raise ValueError(f"pictures of one batch must have one size, found {listed or 'none'}")
        return Canvas.of(sizes.pop(), self.backbone.pixels_per_latent, self.fit)

    def _encode(self, samples: Sequence[DragSample], canvas: Canvas) -> Tensor:
        """z_0: the posterior's mean (pipeline.py:355-356)."""
        return self.backbone.encode(canvas.pad(torch.stack([s.image for s in samples])))[0]

    def _mask(self, samples: Sequence[DragSample], canvas: Canvas, z_0: Tensor) -> Tensor:
        """M at latent size."""
        empty = torch.full((1, *canvas.size), float(self.empty_mask == "free"))
        masks = torch.stack(
            [empty if s.mask is None or not s.mask.any() else s.mask.float() for s in samples]
        )
        return latent_mask(canvas.pad(masks), canvas.grid, z_0.shape[-2:]).to(z_0.device)
