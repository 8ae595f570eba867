"""What a method is: samples in, edits out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gooddrag.events import EditCallback
from gooddrag.types import DragSample, Edit


class Method(Protocol):
    """A way to perform drags. Methods never see metrics."""

    def __call__(
        self,
        samples: Sequence[DragSample],
        *,
        seed: int = 0,
        callbacks: Sequence[EditCallback] = (),
    ) -> list[Edit]:
        """Edit a batch of samples whose pictures have one size, in order."""
        ...
