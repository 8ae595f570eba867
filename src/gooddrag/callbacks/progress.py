"""The progress of an edit in a terminal or a log file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text
from torch import Tensor

from gooddrag.callbacks.scalars import edit_summary, mean_distance
from gooddrag.events import PHASES, EditCallback
from gooddrag.types import DragOperation, DragSample, Edit

LABELS = {
    "adapt": "LoRA adaptation",
    "invert": "inversion",
    "reference": "reference",
    "drag": "dragging",
    "denoise": "denoising",
    "decode": "decoding",
}
CACHED = "from the cache"
LOSS_EVERY = 10  # steps between two losses that are shown
STYLE: dict[str, Any] = {"box": box.SIMPLE_HEAD, "title_justify": "left", "pad_edge": False}


class ProgressBar(EditCallback):
    """A bar for every phase, and a summary at the end; on no terminal a line per phase.

    Args:
        console: where to write; by default standard error.
        summary: print the table at the end.
    """

    def __init__(self, console: Console | None = None, summary: bool = True) -> None:
        self.console = Console(stderr=True) if console is None else console
        self.summary = summary
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._samples: tuple[DragSample, ...] = ()
        self._distances: dict[int, float] = {}
        self._steps: dict[str, int] = {}
        self._totals: dict[str, int] = {}
        self._losses: dict[str, str] = {}

    def on_edit_start(self, samples: Sequence[DragSample]) -> None:
        """Remember the targets, and start with no bars."""
        self.close()
        self._samples, self._losses = tuple(samples), {}
        self._steps, self._totals = {}, {}
        self._distances = {
            i: mean_distance(sample.handles, sample.targets) for i, sample in enumerate(samples)
        }

    def on_phase_start(self, phase: str, total: int) -> None:
        """Open a bar."""
        self._steps[phase], self._totals[phase] = 0, total
        if not self.console.is_terminal:
            return
        self._settle()
        if self._progress is None:
            self._progress = self._new_progress()
            self._progress.start()
        if phase in self._tasks:
            self._progress.reset(self._tasks[phase], total=total)
        else:
            label = LABELS.get(phase, phase)
            self._tasks[phase] = self._progress.add_task(label, total=total, note="")

    def on_phase_advance(self, phase: str, loss: Tensor | None = None) -> None:
        """Move the phase's bar on."""
        self._steps[phase] = self._steps.get(phase, 0) + 1
        if self._progress is None or phase not in self._tasks:
            return
        # reading it waits for the device, which a drag operation has done anyway
        if loss is not None and (phase == "drag" or self._steps[phase] % LOSS_EVERY == 1):
            self._losses[phase] = f"loss {float(loss):.4g}"
        notes = [self._losses[phase]] if phase in self._losses else []
        if phase == "drag" and self._distances:
            mean = sum(self._distances.values()) / len(self._distances)
            notes.append(f"{mean:.1f} px to go")
        self._progress.update(self._tasks[phase], advance=1, note="  ".join(notes))

    def on_drag_operation(self, operation: DragOperation) -> None:
        """Remember how far the handles are from their targets."""
        targets = self._samples[operation.sample].targets
        self._distances[operation.sample] = mean_distance(operation.handles, targets)

    def on_phase_end(self, phase: str, seconds: float) -> None:
        """Freeze the bar's clock, or write the line."""
        if self._progress is not None and phase in self._tasks:
            self._progress.stop_task(self._tasks[phase])
            if self._cached(phase):
                self._progress.update(self._tasks[phase], note=CACHED)
        elif not self.console.is_terminal:
            count = self._steps.get(phase, 0)
            steps = CACHED if self._cached(phase) else f"{count} step{'s' * (count != 1)}"
            self._line(f"{LABELS.get(phase, phase)}: {steps}, {seconds:.1f} s")

    def on_edit_end(self, samples: Sequence[DragSample], edits: Sequence[Edit]) -> None:
        """Close the bars and print the summary."""
        self._settle()
        self.close()
        if self.summary and edits:
            self.console.print(_edits_table(samples, edits))
            notes = {phase: CACHED for phase in edits[0].seconds if self._cached(phase)}
            self.console.print(_seconds_table(edits[0].seconds, notes))

    def on_edit_exception(self, samples: Sequence[DragSample], error: BaseException) -> None:
        """Close the bars where they are, so that the terminal is as it was."""
        self.close()

    def close(self) -> None:
        """Give the terminal back; does no harm if no bar is open."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = None
        self._tasks = {}

    def _cached(self, phase: str) -> bool:
        """A LoRA or an inversion that takes no steps is there already."""
        return phase in ("adapt", "invert") and self._totals.get(phase) == 0

    def _settle(self) -> None:
        """Fill the bars of phases that went well but ended before their largest number of steps."""
        if self._progress is not None:
            for task in self._progress.tasks:
                self._progress.update(
                    task.id, total=task.completed or 1, completed=task.completed or 1
                )

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _new_progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            refresh_per_second=5,
        )


def _edits_table(samples: Sequence[DragSample], edits: Sequence[Edit]) -> Table:
    """How far the handles were and are from their targets."""
    table = Table(title="pixels from handle to target, mean, as tracked", **STYLE)
    table.min_width = 52  # the title in one line
    for column in ("sample", "before", "after", "operations", "stopped"):
        table.add_column(column, justify="left" if column in ("sample", "stopped") else "right")
    for sample, edit in zip(samples, edits, strict=True):
        found = edit_summary(sample, edit)
        distances = (f"{found[f'distance_{when}']:.1f}" for when in ("before", "after"))
        operations = "-" if found["operations"] is None else str(found["operations"])
        table.add_row(Text(sample.name), *distances, operations, found["stop"] or "-")
    return table


def _seconds_table(seconds: Mapping[str, float], notes: Mapping[str, str]) -> Table:
    """How long each phase took."""
    order = sorted(seconds, key=lambda phase: (phase not in PHASES, [*PHASES, phase].index(phase)))
    table = Table(title="seconds", show_header=False, **STYLE)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for phase in order:
        table.add_row(LABELS.get(phase, phase), f"{seconds[phase]:.1f}", notes.get(phase, ""))
    table.add_row("total", f"{sum(seconds.values()):.1f}", "")
    return table
