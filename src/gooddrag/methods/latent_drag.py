"""Drag editing by optimising a diffusion latent: GoodDrag, and DragDiffusion as another recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gooddrag import ddim
from gooddrag.backbones.base import Adapter
from gooddrag.backbones.stable_diffusion import StableDiffusion
from gooddrag.denoising import MutualAttention, PairedDenoising
from gooddrag.drag import DragOptimization, DragSettings
from gooddrag.events import Phases
from gooddrag.fitting import quiet_trainer
from gooddrag.geometry import Canvas
from gooddrag.memory import peak_memory, reset_peak_memory
from gooddrag.methods.latent_editor import Adapt, Latent, LatentEditor
from gooddrag.reference import Pairs, Reference, Unedited, unedited_pass
from gooddrag.remembered import Remembered
from gooddrag.supervision import MotionSupervision
from gooddrag.tracking import PointTracking
from gooddrag.types import DragSample, Edit


class LatentDrag(LatentEditor):
    """Adapt, invert, drag and denoise alternately, denoise the rest, decode.

    Nothing random happens after adaptation, whose seed is one of its settings (`seed=3` on the
    command line sets it): the seed of a call is unused.

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
        super().__init__(backbone=backbone, adapt=adapt, fit=fit, empty_mask=empty_mask)
        self.schedule = list(schedule)
        self.supervision, self.tracking, self.attention = supervision, tracking, attention
        self.settings = settings
        self._unedited: Remembered[list[Unedited]] = Remembered()
        self.times = ddim.Timesteps(backbone.alphas_cumprod, steps, strength)
        self.grid_rounding = grid_rounding
        # refuses an unknown word before minutes of adaptation
        Canvas((64, 64), (64, 64)).to_grid(torch.zeros(1, 2), grid_rounding)
        if len(self.schedule) > len(self.times.descending):
            raise ValueError(
                f"the schedule drags in {len(self.schedule)} denoising steps, but only "
                f"{len(self.times.descending)} of {steps} are walked at strength {strength}: "
                "raise method.B, or lower method.K"
            )

    def _edit(self, samples: Sequence[DragSample], seed: int, phases: Phases) -> list[Edit]:
        """The method's table of contents."""
        canvas = self._canvas(samples)
        self._check_radius(canvas)
        self._check_batch(samples)
        backbone, times = self.backbone, self.times
        reset_peak_memory(backbone.device)

        z_0 = self._encode(samples, canvas)  # lets go of another picture's memory first
        adapters = self.adapt(backbone, samples, phases)
        text = backbone.embed([sample.prompt for sample in samples])
        mask = self._mask(samples, canvas, z_0)
        pairs = Pairs.of(samples, canvas, self.grid_rounding, backbone.device)

        with backbone.adapted(adapters):
            z_T = self._invert(times, adapters, z_0, text, phases)

            references = self._references(z_T, text, adapters, pairs, canvas, phases)
            known = [reference.z_prev for reference in references]
            denoising = PairedDenoising(backbone, text, times, self.attention, known=known)

            with phases("drag", sum(self.schedule)):
                drag = self._drag(z_T, mask, pairs, references, denoising, canvas, phases)

            z_0 = self._denoise_rest(drag, canvas, phases)

        images = self._decode(z_0, canvas, phases)
        memory = peak_memory(backbone.device)
        return [
            Edit(image, trajectory.handles, trajectory, dict(phases.seconds), memory)
            for image, trajectory in zip(images, drag.trajectories, strict=True)
        ]

    def _check_radius(self, canvas: Canvas) -> None:
        """Refuse patches larger than the map from anywhere, which memory might not hold."""
        r1, (height, width) = self.supervision.r1, canvas.grid
        if r1 >= max(height, width):
            raise ValueError(
                f"method.r1 is {r1}, but the picture has no more than {height} x {width} grid "
                "cells (rows x columns): take a smaller one"
            )

    def _check_batch(self, samples: Sequence[DragSample]) -> None:
        """Refuse what would let samples see each other: one Adam for some that rest."""
        settings = self.settings
        rest_awhile = settings.on_arrival == "step" and not settings.restart_adam
        if len(samples) > 1 and rest_awhile:
            raise ValueError(
                "with method.on_arrival=step and method.restart_adam=false pictures are edited one "
                f"at a time, found a batch of {len(samples)}: take batch=1"
            )

    def _references(
        self,
        z_T: Latent,
        text: Tensor,
        adapters: Sequence[Adapter] | None,
        pairs: Pairs,
        canvas: Canvas,
        phases: Phases,
    ) -> list[Reference]:
        """The unedited branch where the pairs are; it is remembered, the whole of its features.

        Where memory is short they wait on the CPU, whence they take longer than a pass.
        """
        backbone, steps = self.backbone, self.dragged_steps
        made_of = (z_T, text, adapters)
        known = self._unedited.find(made_of)
        references, branch = [], []
        with phases("reference", 0 if known else steps) as advance:
            walk = unedited_pass(backbone, z_T, text, self.times, steps, advance)
            for unedited in known or walk:
                references.append(unedited.reference(pairs, canvas, self.supervision.r1))
                branch.append(unedited.to_host() if backbone.low_memory else unedited)
        self._unedited.keep(made_of, branch)
        return references

    @property
    def dragged_steps(self) -> int:
        """Denoising steps until the last dragged one is over."""
        return max(i + 1 for i, count in enumerate(self.schedule) if count)

    def _denoise_rest(self, drag: DragOptimization, canvas: Canvas, phases: Phases) -> Latent:
        """The edited z_0, through the steps that come after the dragging."""
        return self._denoise(
            drag.denoising,
            drag.unedited,
            drag.z.detach().to(self.backbone.device),
            range(drag.step, len(self.times.descending)),
            drag.last_dragged,
            canvas,
            phases,
        )

    def _drag(
        self,
        z_T: Tensor,
        mask: Tensor,
        pairs: Pairs,
        references: Sequence[Reference] | Mapping[int, Reference],
        denoising: PairedDenoising,
        canvas: Canvas,
        phases: Phases,
    ) -> DragOptimization:
        """The fit of `DragOptimization`."""
        module = self._optimization(
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
        if epochs:
            quiet_trainer(self.backbone.device, phases.callbacks, max_epochs=epochs).fit(module)
        return module

    def _optimization(self, **parts: Any) -> DragOptimization:
        """What is optimised, and how; see `DragOptimization` for the parts."""
        return DragOptimization(**parts)
