"""What a method is: samples in, edits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from gooddrag.events import EditCallback, Phases
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


class Editor(ABC):
    """The frame that every method here puts its edit in: callbacks hear how it begins and ends."""

    def __call__(
        self,
        samples: Sequence[DragSample],
        *,
        seed: int = 0,
        callbacks: Sequence[EditCallback] = (),
    ) -> list[Edit]:
        """Edit a batch of pictures of one size; one edit is a batch of one.

        Args:
            samples: pictures of one size.
            seed: of the numbers that are drawn while editing; each sample draws its own, by this
                and its name. LoRA adaptation has a seed of its own among its settings.
            callbacks: hear about progress.

        Raises:
            ValueError: samples that the method cannot edit, or not in one batch.
        """
        phases = Phases(callbacks)
        try:
            phases.tell("on_edit_start", samples)
            edits = self._attempt(samples, seed, phases)
            phases.tell("on_edit_end", samples, edits)
        except BaseException as error:
            phases.tell("on_edit_exception", samples, error)
            raise
        return edits

    def _attempt(self, samples: Sequence[DragSample], seed: int, phases: Phases) -> list[Edit]:
        """Edit; methods that can do with less memory try once more with less."""
        return self._edit(samples, seed, phases)

    @abstractmethod
    def _edit(self, samples: Sequence[DragSample], seed: int, phases: Phases) -> list[Edit]:
        """The method's table of contents."""
