"""The curves of an edit as a table.

Lightning's CSVLogger writes on the first rank only, while under DDP every rank edits samples of
its own; and it rewrites the file whenever a new column turns up.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from gooddrag.callbacks.scalars import operation_scalars
from gooddrag.events import EditCallback
from gooddrag.types import DragOperation, DragSample, Edit

COLUMNS = ("sample", "phase", "index", "step", "timestep", "loss", "drag_loss", "distance")


class CsvEdit(EditCallback):
    """Writes metrics.csv: a row per LoRA step and per drag operation, as they happen.

    Columns: the sample's name (empty for LoRA steps, which are the batch's); the phase ("adapt"
    or "drag"); the number of the LoRA step or drag operation, from 1; the denoising step and
    timestep; losses, averaged over the operation's gradient steps; the mean distance from handle
    to target after tracking, in pixels.

    Args:
        folder: the output folder; several samples share the file.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._file: TextIO | None = None
        self._samples: tuple[DragSample, ...] = ()
        self._adapt_steps = 0

    def on_edit_start(self, samples: Sequence[DragSample]) -> None:
        """Open the table."""
        self._close()
        self._samples, self._adapt_steps = tuple(samples), 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = open(self.folder / "metrics.csv", "w", newline="", encoding="utf-8")  # noqa: SIM115
        self._write(dict(zip(COLUMNS, COLUMNS, strict=True)))

    def on_edit_retry(self, samples: Sequence[DragSample]) -> None:
        """Begin the table again."""
        self.on_edit_start(samples)

    def on_phase_advance(self, phase: str, loss: Tensor | None = None) -> None:
        """A row for a LoRA step."""
        if phase == "adapt" and loss is not None:
            self._adapt_steps += 1
            self._write({"phase": "adapt", "index": self._adapt_steps, "loss": float(loss)})

    def on_drag_operation(self, operation: DragOperation) -> None:
        """A row for a drag operation."""
        sample = self._samples[operation.sample]
        place = {"step": operation.step, "timestep": operation.timestep}
        row = {"sample": sample.name, "phase": "drag", "index": operation.k, **place}
        self._write(row | operation_scalars(operation, sample))

    def on_edit_end(self, samples: Sequence[DragSample], edits: Sequence[Edit]) -> None:
        """Close the table."""
        self._close()

    def on_edit_exception(self, samples: Sequence[DragSample], error: BaseException) -> None:
        """Close the table with what it holds."""
        self._close()

    def _write(self, row: dict[str, Any]) -> None:
        if self._file is not None:
            csv.DictWriter(self._file, COLUMNS).writerow(row)
            self._file.flush()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None
