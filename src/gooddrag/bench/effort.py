"""What a method did while it edited, for the record."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gooddrag.events import EditCallback
from gooddrag.types import DragSample


class Effort(EditCallback):
    """How much work a method did, counted by its callbacks, and whether memory ran out."""

    def __init__(self) -> None:
        self.steps: dict[str, int] = {}
        self.low_memory = False

    def on_edit_start(self, samples: Sequence[DragSample]) -> None:
        """Count anew."""
        self.steps = {}

    def on_edit_retry(self, samples: Sequence[DragSample]) -> None:
        """Count anew; the low-memory setting stays."""
        self.steps, self.low_memory = {}, True

    def on_phase_start(self, phase: str, total: int) -> None:
        """A phase that takes no step, because a cache had its result, is counted as well."""
        self.steps.setdefault(phase, 0)

    def on_phase_advance(self, phase: str, loss: Tensor | None = None) -> None:
        """Count a step."""
        self.steps[phase] = self.steps.get(phase, 0) + 1
