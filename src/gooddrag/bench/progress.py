"""The progress of a benchmark in a terminal or a log file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gooddrag.bench.records import FAILED
from gooddrag.bench.runner import Benchmark


class BenchmarkBar(Callback):
    """A bar over all samples of all processes; in a log file a line for each.

    Args:
        console: where to write; by default standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = Console(stderr=True) if console is None else console
        self._progress: Progress | None = None
        self._status: dict[str, str] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the records that are there."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Benchmark)
        self.run, self._status = pl_module.run, {}
        self._count(pl_module.known)
        if self._status:
            self._line(f"{self.run.label}: {self._counts()} are there already")
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                refresh_per_second=2,
            )
            self._progress.start()
            self._task = self._progress.add_task(
                self.run.label, total=len(self.run.names), completed=len(self._status), note=""
            )

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count what has come, and say what has failed."""
        self._show(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what other processes did last, and give the terminal back."""
        assert isinstance(pl_module, Benchmark)
        self._show(pl_module.last_news)
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._close()

    def _show(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            self._count([row])
            if row["status"] == FAILED:
                self._line(f"{row['name']} failed: {row['error']}")
            elif self._progress is None:
                self._line(f"{self._counts()}: {row['name']}, {row['seconds_total']:.1f} s")
        if self._progress is not None:
            note = f"{self._failed()} failed" if self._failed() else ""
            self._progress.update(self._task, completed=len(self._status), note=note)

    def _count(self, rows: Sequence[dict[str, Any]]) -> None:
        self._status |= {row["name"]: row["status"] for row in rows}

    def _failed(self) -> int:
        return sum(status == FAILED for status in self._status.values())

    def _counts(self) -> str:
        return f"{len(self._status)} of {len(self.run.names)}"

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = None
