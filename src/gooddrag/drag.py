"""Alternating drag and denoise (AlDD) as a Lightning fit.

An epoch is one dragged denoising step: B drag operations, then the denoising. A batch is one drag
operation: J gradient steps on z_t, then one point tracking.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from lightning import LightningModule
from torch import Tensor, nn

from gooddrag.backbones.base import Backbone
from gooddrag.ddim import move, predict_z0
from gooddrag.denoising import PairedDenoising, decode_one
from gooddrag.geometry import Canvas
from gooddrag.reference import Pairs, Reference
from gooddrag.stops import Stops
from gooddrag.supervision import MotionSupervision, arrived, mask_term
from gooddrag.tracking import PointTracking
from gooddrag.types import DragOperation, Tracking, Trajectory

Latent = Float[Tensor, "b c h w"]


def loss_terms(
    supervision: MotionSupervision,
    canvas: Canvas,
    features: Float[Tensor, "b f h w"],
    z_prev: Latent,
    patches: Float[Tensor, "n f s s"],
    valid: Bool[Tensor, "n s s"],
    z_prev_unedited: Latent,
    mask: Float[Tensor, "b 1 h w"],
    sample: Int[Tensor, " n"],
    handles: Float[Tensor, "n 2"],
    targets: Float[Tensor, "n 2"],
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """The two terms of L(z_t^k) for each sample, as a function of tensors alone."""
    original = (patches, valid)
    drag = supervision.drag_term(features, original, sample, handles, targets, canvas)
    return drag, supervision.lam * mask_term(z_prev, z_prev_unedited, mask)


@dataclass(frozen=True, kw_only=True)
class DragSettings:
    """Numbers of the dragging that belong to no other part.

    Attributes:
        J: gradient steps per drag operation.
        lr, betas: of Adam on z_t.
        restart_adam: a new Adam at each dragged denoising step (pipeline.py:539).
        patience: dragging ends after this many trackings in a row that moved no handle
            (pipeline.py:568-571); None never ends it so.
        patience_restarts: count anew at each denoising step (the official count runs on).
        on_arrival: when all handles have arrived, dragging ends for "good" (pipeline.py:563-566),
            for this denoising "step", or "never".
    """

    J: int
    lr: float
    betas: tuple[float, float]
    restart_adam: bool
    patience: int | None
    patience_restarts: bool
    on_arrival: str

    def __post_init__(self) -> None:
        if self.on_arrival not in ("good", "step", "never"):
            raise ValueError(
                f"method.on_arrival must be good, step or never, found {self.on_arrival!r}"
            )
        if self.J < 1 or self.lr <= 0:
            raise ValueError(
                f"J must be at least 1 and lr positive, found J={self.J}, lr={self.lr}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"method.betas must lie between 0 and 1, found {list(self.betas)}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1 or null, found {self.patience}")


class DragOptimization(LightningModule):
    """The dragging of a batch of samples: z_t is the only parameter.

    Samples do not see each other: losses add up, Adam works by element, and a sample that has
    stopped keeps its latent.

    Args:
        backbone: frozen, with the samples' adapters active.
        z_T: inverted latents.
        mask: 1 where latents may change.
        pairs: all samples' point pairs.
        references: one `Reference` per dragged step, by its index.
        schedule: drag operations per denoising step; see `gooddrag.schedule`.
        denoising: the step that ends each epoch.
        supervision, tracking, settings: see there.
        canvas: the picture's geometry.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        z_T: Latent,
        mask: Float[Tensor, "b 1 h w"],
        pairs: Pairs,
        references: Sequence[Reference] | Mapping[int, Reference],
        schedule: Sequence[int],
        denoising: PairedDenoising,
        supervision: MotionSupervision,
        tracking: PointTracking,
        settings: DragSettings,
        canvas: Canvas,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.phase = "drag"
        self.z = nn.Parameter(z_T.detach().clone())
        # the backbone is no nn.Module: a registered UNet would go to the CPU after the fit
        self.backbone, self.denoising, self.unedited = backbone, denoising, z_T
        self.mask, self.pairs = mask, pairs
        numbered = references if isinstance(references, Mapping) else enumerate(references)
        self.references: dict[int, Reference] = dict(numbered)
        self.schedule, self.settings, self.canvas = list(schedule), settings, canvas
        self.supervision, self.tracking = supervision, tracking
        self.dragged_steps = [i for i, count in enumerate(schedule) if count]
        self.handles = pairs.start.clone()
        # What the host decides by, so that it waits for the device once per tracking and no more:
        # the handles as they were last read.
        self.owner, self.targets = pairs.sample.cpu(), pairs.targets.cpu()
        self.seen = self.handles.cpu()
        self.pair_counts = self.owner.bincount(minlength=len(z_T)).tolist()
        self.trajectories = [Trajectory(pixels) for pixels, _ in self._positions()]
        self.stops = Stops(
            self.trajectories,
            self.owner,
            patience=settings.patience,
            patience_restarts=settings.patience_restarts,
            on_arrival=settings.on_arrival,
        )
        self.operations: list[DragOperation] = []
        self.step, self.gradient_steps, self.untouched = 0, 0, True
        self.looks_ahead = z_T.is_cuda
        self._ahead: tuple[Latent, Tensor] | None = None

    # -- Lightning's hooks, in the order of the fit ---------------------------------------------

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on z_t (pipeline.py:539)."""
        lr, betas = self.settings.lr, self.settings.betas
        return torch.optim.Adam([self.optimised], lr=lr, betas=betas, fused=self.z.is_cuda)

    def train_dataloader(self) -> range:
        """The drag operations of this epoch's denoising step."""
        return range(self.schedule[self.dragged_steps[self.current_epoch]])

    def on_train_epoch_start(self) -> None:
        """Denoise through steps without dragging, then enter the next dragged one."""
        self._denoise_until(self.dragged_steps[self.current_epoch])
        self.gradient_steps = 0
        self.stops.enter_step()
        if self.settings.restart_adam:
            self.optimizers().optimizer.state.clear()  # type: ignore[union-attr]

    def on_train_batch_start(self, batch: object, index: int) -> int | None:
        """Skip the rest of the epoch (-1) once no sample is being dragged any more."""
        return None if self.dragging.any() else -1

    def training_step(self, _: object, index: int) -> None:
        """One drag operation: J gradient steps on z_t, then one tracking."""
        self.operations, operations = [], len(self.train_dataloader())
        losses: list[tuple[Tensor, Tensor]] = []
        for j in range(self.settings.J):
            eps, features = self._forward()
            if j == 0 and not self._enter_operation(index, features):
                return
            if j == 0:
                taking_part = self.stops.now
            losses.append(self._losses(eps, features))
            self._gradient_step(losses[-1][0] + losses[-1][1])
        z_0 = predict_z0(self.z.detach(), eps.detach(), self.denoising.times.alpha(self.t))
        # sent to the host ahead of the handles, whose arrival is waited for
        terms = torch.stack([torch.stack((d, d + m)) for d, m in losses]).detach()
        terms = terms.to("cpu", non_blocking=terms.is_cuda and self.tracking.when != "before")
        if self.tracking.when == "fresh":
            self._ahead = self._forward()  # the next operation's first
            features = self._ahead[1]
        if self.tracking.when != "before":
            moved = self._track(features, is_last=index + 1 == operations)
            self.stops.lose_patience(moved, self.step)
        self._report(taking_part, terms, z_0)

    def on_train_batch_end(self, outputs: object, batch: object, index: int) -> None:
        """The fit ends with the last sample's dragging."""
        if not self.stops.active.any():
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        """Denoise to the next step."""
        self._denoise_until(self.step + 1)

    # -- the parts of a drag operation ----------------------------------------------------------

    @property
    def t(self) -> int:
        """The timestep of the present denoising step."""
        return self.denoising.times.descending[self.step]

    @property
    def reference(self) -> Reference:
        """The unedited branch at the present denoising step."""
        return self.references[self.step]

    @property
    def optimised(self) -> nn.Parameter:
        """What the gradient steps change."""
        return self.z

    @property
    def dragging(self) -> Bool[Tensor, " b"]:
        """The samples that are being dragged now, on the CPU."""
        return self.stops.dragging

    @property
    def last_dragged(self) -> list[int]:
        """For each sample the last step it is dragged in, as far as is known."""
        return self.stops.last_dragged(self.dragged_steps[-1] if self.dragged_steps else -1)

    def _forward(self) -> tuple[Latent, Float[Tensor, "b f h w"]]:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            return ahead
        return self.backbone.noise_and_features(self.z, self.t, self.denoising.text)

    def _enter_operation(self, index: int, features: Tensor) -> bool:
        """Track where the settings want it before the loss, and see who has arrived."""
        if index == 0 and self.tracking.on_entry:
            self._track(features)
        elif self.tracking.when == "before" and not self.untouched:
            self.stops.lose_patience(self._track(features), self.step)
        self.untouched = False
        self.stops.see_arrived(self._arrived(), self.step)
        return bool(self.dragging.any())

    def _losses(self, eps: Latent, features: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of L for each sample."""
        z_prev = move(self.z, eps, *self.denoising.times.down(self.t))
        drag, mask = self.backbone.replayed(
            ("loss", self.supervision, self.canvas),
            partial(loss_terms, self.supervision, self.canvas),
            (
                features,
                z_prev,
                *self.reference.patches,
                self.reference.z_prev,
                self.mask,
                self.pairs.sample,
                self.handles,
                self.pairs.targets,
            ),
        )
        return drag, mask

    def _gradient_step(self, loss: Float[Tensor, " b"]) -> None:
        """One step of Adam; samples at rest keep what they have."""
        optimizer, before = self.optimizers(), None
        if not self.dragging.all():
            dragging = self.dragging.to(loss.device)
            loss, before = torch.where(dragging, loss, 0.0), self.optimised.detach().clone()
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.manual_backward(loss.sum())
        self._check_overflow()
        optimizer.step()  # type: ignore[union-attr]
        if before is not None:
            with torch.no_grad():
                kept = torch.where(dragging[:, None, None, None], self.optimised, before)
                self.optimised.copy_(kept)
        self.gradient_steps += 1

    def _check_overflow(self) -> None:
        """Only float16 can overflow; elsewhere looking would cost a device synchronisation."""
        gradient = self.optimised.grad
        if self.backbone.dtype != torch.float16 or gradient is None:
            return
        if not torch.isfinite(gradient).all():
            raise ValueError(
                "the gradient overflows float16: take backbone.dtype=bfloat16 or float32"
            )

    def _track(self, features: Tensor, is_last: bool = True) -> Bool[Tensor, " b"]:
        """Find the handles of the samples being dragged; tells which samples' have moved.

        Args:
            features: F(z_t).
            is_last: whether nothing follows on this z_t, as far as is known.
        """
        found = self.tracking.find(
            features, self.reference.vectors, self.pairs.sample, self.handles, self.canvas
        )
        if not self.dragging.all():
            dragging = self.dragging[self.owner, None].to(found.device)
            found = torch.where(dragging, found, self.handles)
        before, self.handles, self.seen = self.seen, found, self._read(found, is_last)
        pair_moved = (self.seen != before).any(dim=1)
        moved = torch.zeros_like(self.dragging).index_put_(
            (self.owner[pair_moved],), torch.tensor(True)
        )
        positions = self._positions()
        for i in self.stops.now:
            tracking = Tracking(self.step, self.t, self.gradient_steps, *positions[i])
            self.trajectories[i].trackings.append(tracking)
        return moved

    def _read(self, handles: Tensor, is_last: bool) -> Tensor:
        """Bring handles to the host; a device does the next forward while the host looks at them.

        That forward is lost if they end the dragging.
        """
        read = handles.to("cpu", non_blocking=handles.is_cuda)
        copied = (
            torch.cuda.current_stream(handles.device).record_event() if handles.is_cuda else None
        )
        if self.looks_ahead and not is_last and self._ahead is None:
            self._ahead = self._forward()
        if copied is not None:
            copied.synchronize()
        return read

    def _arrived(self) -> Bool[Tensor, " n"]:
        """Which pairs are done, as the host sees them."""
        return arrived(self.seen, self.targets, self.supervision.arrival)

    # -- around the operations ------------------------------------------------------------------

    def _denoise_until(self, step: int) -> None:
        """Denoise both branches until the given step is next."""
        self._ahead = None
        while self.step < step:
            self.unedited, z, _ = self.denoising.step(
                self.unedited, self.z.detach(), self.step, self.last_dragged
            )
            with torch.no_grad():
                self.z.copy_(z)
            self.step += 1

    def _report(self, samples: list[int], terms: Float[Tensor, "steps 2 b"], z_0: Latent) -> None:
        """Record the operation for each sample that took part."""
        drag, total = terms.permute(1, 2, 0).tolist()
        positions, t = self._positions(), self.t
        for i in samples:
            done = DragOperation(
                sample=i,
                step=self.step,
                timestep=t,
                k=len(self.trajectories[i].operations) + 1,
                losses=tuple(total[i]),
                drag_losses=tuple(drag[i]),
                handles=positions[i][0],
            )
            self.trajectories[i].operations.append(done)
            preview = partial(decode_one, self.backbone, self.canvas, z_0[i : i + 1])
            self.operations.append(replace(done, preview=preview))

    def _positions(self) -> list[tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]]:
        """Each sample's handles, in pixels and on the grid.

        In pixels they lie inside the picture: rounding to the grid may lead one cell beyond it.
        """
        height, width = self.canvas.size
        pixels = self.canvas.to_pixels(self.seen)
        pixels = torch.minimum(pixels, torch.tensor([width - 1, height - 1], dtype=pixels.dtype))
        parts = (places.split(self.pair_counts) for places in (pixels, self.seen))
        return list(zip(*parts, strict=True))
