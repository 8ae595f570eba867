"""The benchmark as a LightningModule: `Trainer.predict` over samples, each process its share.

Lightning's hooks map onto it so: `setup` puts the run's files in order on the first process,
`predict_dataloader` lists what is left to do, `predict_step` edits a batch and leaves its records,
`on_predict_epoch_end` waits for all processes.
"""

from __future__ import annotations

import gc
import json
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torchmetrics import MetricCollection

from gooddrag.bench.effort import Effort
from gooddrag.bench.records import (
    DONE,
    FAILED,
    MISSING,
    PICTURE,
    POINTS,
    RECORD,
    SAMPLES,
    TABLE,
    Run,
    digest_of,
    row_of,
    rows_of,
)
from gooddrag.bench.tasks import EDIT, SCORE, Rules, Share, Task, task_of
from gooddrag.bench.workers import Call, MetricsMaker, scored, show, workers_of
from gooddrag.callbacks.output import remove_old
from gooddrag.callbacks.scalars import edit_summary
from gooddrag.callbacks.writer import now, trajectory_dict
from gooddrag.data.digest import sample_digest
from gooddrag.data.dragset import DragSet
from gooddrag.data.files import plain, write_bytes, write_json
from gooddrag.data.images import read_image, to_uint8, write_png
from gooddrag.memory import out_of_memory
from gooddrag.methods.base import Method
from gooddrag.metrics.score import score
from gooddrag.types import DragSample, Edit

Scores = Call[dict[str, float]]


class Benchmark(LightningModule):
    """Edits samples, scores the pictures that come of it, and leaves a record of each.

    A method sees samples, never metrics or true results.

    Args:
        samples: the data set.
        run: what is run, and where its records go.
        make_method: loads the method onto a device; called only if there is something to edit.
        make_metrics: loads the metrics; called only if there is something to score. With workers
            it has to be picklable, and equal to another that makes the same.
        metrics_config: the metrics' configuration: records with others are scored again.
        rules: see `Rules`.

    Attributes:
        known: rows of the records that were there, for callbacks, on the first process.
        last_news: rows that came after this process's last batch, for callbacks, when all is done.
    """

    def __init__(
        self,
        samples: DragSet,
        run: Run,
        make_method: Callable[[torch.device], Method],
        make_metrics: MetricsMaker,
        metrics_config: Mapping[str, Any],
        rules: Rules,
    ) -> None:
        super().__init__()
        self.samples, self.run, self.rules = samples, run, rules
        self.metrics_sha256 = digest_of(metrics_config)
        self._makers = make_method, make_metrics
        self._effort = Effort()
        self._waiting: deque[list[tuple[Task, Scores | None]]] = deque()
        self.known: list[dict[str, Any]] = []
        self.last_news: list[dict[str, Any]] = []
        self._read_to = 0  # bytes of the table that `news` has told of
        self.workers = workers_of(rules.workers)

    # Loaded when first needed; in the instance's dictionary, where Lightning does not move them.
    @cached_property
    def method(self) -> Method:
        """The method on this process's device."""
        return self._makers[0](self.device)

    @cached_property
    def metrics(self) -> MetricCollection:
        """The metrics."""
        return self._makers[1](self.device)

    def setup(self, stage: str) -> None:
        """Put the run's files in order: run.json, and a table of the records that are there.

        Raises:
            ValueError: the run is there and should not be, or this process is about to do another.
        """
        first = self.trainer.strategy.broadcast(str(self.run.folder.resolve()))
        if first != str(self.run.folder.resolve()):
            raise ValueError(
                f"this process would write into {self.run.folder}, and the first one into {first}: "
                "give all of them the same settings, code and working folder"
            )
        if not self.trainer.is_global_zero:
            return
        if self.rules.existing == "refuse" and self.run.folder.exists():
            raise ValueError(
                f"{self.run.folder} holds this run already: take existing=resume to go on with it, "
                "existing=overwrite to do it again, or another output folder"
            )
        self.run.save()
        again = [MISSING, *([FAILED] if self.rules.retry_failed else [])]
        rows = rows_of(self.run.folder, self.run.names)
        known = [row for row in rows if row["status"] not in again]
        if self.rules.existing == "overwrite":
            known = []
        lines = (json.dumps(plain(row), ensure_ascii=False) + "\n" for row in known)
        write_bytes(self.run.folder / TABLE, "".join(lines).encode())
        self.known = self.news()

    def on_predict_start(self) -> None:
        """A request to end (SIGTERM, as from a cluster) ends like Ctrl-C."""
        signal.signal(signal.SIGTERM, _interrupt)

    def on_predict_epoch_end(self) -> None:
        """Finish, and wait for the other processes: only then are all records there."""
        self._finish_batches(leave=0)
        self.trainer.strategy.barrier("benchmark")
        self.last_news = self.news() if self.trainer.is_global_zero else []

    def predict_dataloader(self) -> Share:
        """What this process has to do."""
        mine = range(self.trainer.global_rank, len(self.samples), self.trainer.world_size)

        def tasks() -> Iterator[Task | None]:
            for index, read in zip(mine, self.workers.read(self.samples, mine), strict=True):
                yield task_of(read, index, self.run, self.rules, self.metrics_sha256)

        return Share(tasks, self.rules.batch)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """A method moves what it needs by itself."""
        return batch

    def predict_step(self, batch: list[Task]) -> list[dict[str, Any]]:
        """Edit, score and record a batch; the first process tells what is new in the table.

        Where there are workers, they score a batch while the next one is edited.
        """
        todo = [task for task in batch if task.sample is not None and not task.edited]
        with torch.enable_grad():
            lost = self._edit(todo) if todo else None
        # all, unless the device was lost
        over = [task for task in batch if task.edited or "failed_in" in task.record]
        self._waiting.append([(task, self._scores(task) if task.edited else None) for task in over])
        self._finish_batches(leave=1 if self.workers.count and lost is None else 0)
        if lost is not None:
            raise lost
        return self.news() if self.trainer.is_global_zero else []

    def break_off(self) -> None:
        """Record what was edited before the end came."""
        try:
            self._finish_batches(leave=0)
        finally:
            self.workers.end()

    def news(self) -> list[dict[str, Any]]:
        """The rows that any process has added to the table since the last call."""
        with open(self.run.folder / TABLE, "rb") as file:
            file.seek(self._read_to)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read_to += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _edit(self, tasks: Sequence[Task]) -> BaseException | None:
        """Edit samples of one size; a batch that fails is tried again picture by picture.

        When it was memory that ran out, the method has tried the low-memory setting for the whole
        batch by then, and keeps it.

        Returns:
            An error after which the device cannot go on, else None.
        """
        samples = [task.sample for task in tasks if task.sample is not None]
        method, start = self.method, time.perf_counter()  # one that cannot be loaded ends the run
        try:
            edits = method(samples, seed=self.run.seed, callbacks=[self._effort])
        except Exception as error:
            lost: BaseException | None = error if _device_lost(error) else None
            if len(tasks) == 1 or lost:
                for task in tasks:
                    task.fail(error, EDIT)
                tasks = []
        else:
            seconds = time.perf_counter() - start
            for task, edit in zip(tasks, edits, strict=True):
                self._keep(task, edit, seconds, len(tasks))
            return None
        if lost is None:
            _release_memory()
        for task in tasks:
            lost = lost or self._edit([task])
        return lost

    def _keep(self, task: Task, edit: Edit, seconds: float, batch: int) -> None:
        """Write the pictures and note what the edit cost: a batch's costs in equal parts."""
        assert task.sample is not None
        sample, way, steps = task.sample, edit.trajectory, self._effort.steps
        folder = self.run.folder_of(task.name)
        try:
            picture = to_uint8(edit.image, self.rules.rounding)
            folder.mkdir(parents=True, exist_ok=True)
            _clear(folder)
            write_png(folder / PICTURE, picture)
        except ValueError as error:  # NaN in the picture
            task.fail(error, EDIT)
            return
        if way is not None:
            content = {"targets": sample.targets.tolist(), **trajectory_dict(way, edit.handles)}
            write_json(folder / "trajectory.json", content)
        done = () if way is None else way.operations
        task.record |= edit_summary(sample, edit) | {
            "edited_handles": edit.handles.tolist(),
            "seconds": {phase: value / batch for phase, value in edit.seconds.items()},
            "seconds_total": seconds / batch,
            "batch": batch,
            "low_memory": self._effort.low_memory,
            "gradient_steps": sum(len(operation.losses) for operation in done),
            "adapt_steps": steps.get("adapt", 0),
            "adapt_cached": steps.get("adapt") == 0,
        }
        task.edited = True

    def _scores(self, task: Task) -> Scores:
        """Let the picture be scored as its file holds it."""
        assert task.sample is not None
        picture, metrics = self.run.folder_of(task.name) / PICTURE, self.metrics
        if self.workers.count:
            shown = self._shown(task.sample)
            where = None if (shown / POINTS).exists() else shown
            return self.workers.submit(
                scored, self._makers[1], self.samples, task.index, picture, where, index=task.index
            )
        truth, sample = partial(self.samples.truth, task.index), task.sample
        return self.workers.submit(
            lambda: score(metrics, sample, read_image(picture), truth()), index=task.index
        )

    def _finish_batches(self, leave: int) -> None:
        """Write the records of batches whose edits are done; the last ones may wait for theirs."""
        while len(self._waiting) > leave:
            batch = self._waiting.popleft()
            for task, scores in batch:
                self._finish(task, scores)

    def _finish(self, task: Task, scores: Scores | None) -> None:
        """Write the record last, when all else is there."""
        folder = self.run.folder_of(task.name)
        folder.mkdir(parents=True, exist_ok=True)
        if scores is None:
            _clear(folder)
        else:
            self._note(task, scores)
        if task.sample is not None and not (self._shown(task.sample) / POINTS).exists():
            show(self.samples, task.index, self._shown(task.sample), task.sample)
        task.record["finished"] = now()
        write_json(folder / RECORD, task.record)
        self.run.append(row_of(task.record) | {"folder": str(self.run.folder)})

    def _note(self, task: Task, scores: Scores) -> None:
        """The numbers, or why there are none."""
        task.record["metrics_sha256"] = self.metrics_sha256
        try:
            found = scores.result()
        except Exception as error:
            task.record["metrics"] = {}
            task.fail(error, SCORE)
            return
        good = {"status": DONE, "failed_in": None, "error": None, "traceback": None}
        task.record |= good | {"metrics": found}

    def _shown(self, sample: DragSample) -> Path:
        """Where the drawn source and the truth are, once for all runs."""
        return self.run.output / SAMPLES / sample_digest(sample)[:16]


def run_benchmark(trainer: Trainer, benchmark: Benchmark) -> None:
    """`Trainer.predict`; Ctrl-C and SIGTERM come as KeyboardInterrupt.

    Raises:
        KeyboardInterrupt: the run was ended; its records so far are on disk.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        trainer.predict(benchmark, return_predictions=False)
    except BaseException as stop:
        benchmark.break_off()
        # what Lightning makes of Ctrl-C
        if isinstance(stop, SystemExit) and isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _release_memory() -> None:
    """What a failed attempt has left: its cycles hold tensors."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _device_lost(error: BaseException) -> bool:
    """After an error on a CUDA device other than a lack of memory, every later call fails too."""
    return "CUDA error" in str(error) and not out_of_memory(error)


def _clear(folder: Path) -> None:
    """Remove an earlier result, its record first, and what a killed process left half written."""
    (folder / RECORD).unlink(missing_ok=True)
    remove_old(folder)
    for name in (".edited.*.png", ".trajectory.*.json", ".record.*.json"):
        for path in folder.glob(name):
            path.unlink()
