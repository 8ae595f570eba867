"""The one channel for progress: a Lightning callback with the phases of an edit added.

Progress bars, videos, W&B and web pages subclass `EditCallback`. Adaptation and dragging are
Lightning fits and call the Lightning hooks as well; the phases around them call these.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from gooddrag.types import DragOperation, DragSample, Edit

PHASES = ("adapt", "invert", "reference", "drag", "denoise", "decode")


class EditCallback(Callback):
    """A Lightning callback that also hears the phases of an edit; every hook is optional."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lightning's hook, for the fits inside an edit: passes on what happened."""
        for operation in getattr(pl_module, "operations", ()):
            self.on_drag_operation(operation)
        if phase := getattr(pl_module, "phase", None):
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            self.on_phase_advance(phase, loss)

    def on_edit_start(self, samples: Sequence[DragSample]) -> None:
        """A batch of edits begins."""

    def on_edit_retry(self, samples: Sequence[DragSample]) -> None:
        """Memory ran out; the batch begins anew with the low-memory setting."""

    def on_phase_start(self, phase: str, total: int) -> None:
        """A phase of `PHASES` begins; `total` is how often it will advance at most."""

    def on_phase_advance(self, phase: str, loss: Tensor | None = None) -> None:
        """One step of the phase is done (an optimiser step, an inversion step, an operation).

        Turning the loss into a number waits for the device: a callback should do so only when it
        needs the number.
        """

    def on_phase_end(self, phase: str, seconds: float) -> None:
        """The phase is over."""

    def on_drag_operation(self, operation: DragOperation) -> None:
        """One sample has had one drag operation; called once per sample of the batch."""

    def on_denoise_step(self, sample: int, step: int, preview: Callable[[], Tensor]) -> None:
        """One sample has been denoised by one step; `preview()` decodes what it predicts."""

    def on_edit_end(self, samples: Sequence[DragSample], edits: Sequence[Edit]) -> None:
        """The batch is done."""

    def on_edit_exception(self, samples: Sequence[DragSample], error: BaseException) -> None:
        """The batch ended by an exception (KeyboardInterrupt included), which is raised on."""


class Phases:
    """Times the phases of an edit and tells the callbacks.

    Args:
        callbacks: told in order.
    """

    def __init__(self, callbacks: Sequence[EditCallback]) -> None:
        self.callbacks = tuple(callbacks)
        self.seconds: dict[str, float] = {}

    def tell(self, hook: str, *args: object) -> None:
        """Call `hook` of every callback."""
        for callback in self.callbacks:
            getattr(callback, hook)(*args)

    @contextmanager
    def __call__(self, phase: str, total: int) -> Iterator[Callable[..., None]]:
        """Run one phase; the value is a function that advances it by one step."""
        self.tell("on_phase_start", phase, total)
        start = time.perf_counter()
        try:
            yield lambda loss=None: self.tell("on_phase_advance", phase, loss)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()  # else the next phase would pay for this one
        finally:
            seconds = time.perf_counter() - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
            self.tell("on_phase_end", phase, seconds)
