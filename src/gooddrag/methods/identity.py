"""The method that changes nothing: where every measure begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gooddrag.events import Phases
from gooddrag.memory import peak_memory
from gooddrag.methods.base import Editor
from gooddrag.types import DragSample, Edit


class Identity(Editor):
    """Returns the pictures as they are; no model is loaded."""

    def _edit(self, samples: Sequence[DragSample], seed: int, phases: Phases) -> list[Edit]:
        """The source is the result, and the handles are where they were."""
        memory = peak_memory(torch.device("cpu"))
        return [Edit(s.image.clone(), s.handles, None, {}, memory) for s in samples]
