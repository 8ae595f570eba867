"""What of a benchmark is left to do: samples, given the records that are there."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gooddrag.bench.records import FAILED, PACKED, PICTURE, Run, read_record
from gooddrag.callbacks.writer import start_record
from gooddrag.types import DragSample

EXISTING = ("resume", "overwrite", "refuse")
READ, EDIT, SCORE = "read", "edit", "score"  # where a sample can fail


@dataclass
class Task:
    """One sample of the benchmark.

    Attributes:
        index: in the data set.
        name: of the sample.
        sample: None if it cannot be read.
        record: what is known so far.
        edited: whether its edit is there already and only the metrics are to be computed.
    """

    index: int
    name: str
    sample: DragSample | None
    record: dict[str, Any] = field(default_factory=dict)
    edited: bool = False

    def fail(self, error: BaseException, where: str) -> None:
        """Note that it failed; the record keeps text only, so that nothing is kept in memory."""
        told = "".join(traceback.format_exception(error))
        reason = f"{type(error).__name__}: {error}"
        self.record |= {"status": FAILED, "failed_in": where, "error": reason, "traceback": told}


@dataclass(frozen=True)
class Rules:
    """What is done with samples and with records that are there.

    Attributes:
        batch: pictures edited side by side.
        workers: processes that read samples and score pictures meanwhile; 0 leaves it to this one.
        existing: records of the same edit: "resume" keeps them, "overwrite" replaces them,
            "refuse" stops before anything is done.
        retry_failed: with resume, samples that failed are tried again.
        rounding: of edited.png, see `to_uint8`.

    Raises:
        ValueError: an unknown word, or a batch of no picture.
    """

    batch: int
    workers: int
    existing: str
    retry_failed: bool
    rounding: str

    def __post_init__(self) -> None:
        if self.existing not in EXISTING:
            raise ValueError(f"existing must be {', '.join(EXISTING)}; found {self.existing!r}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, found {self.batch}")


class Share:
    """What one process has to do, in batches of pictures of one size; samples are read on the way.

    Args:
        find: gives the tasks, and None where nothing is left to do, as they are asked for.
        batch: pictures side by side.
    """

    def __init__(self, find: Callable[[], Iterable[Task | None]], batch: int) -> None:
        self.find, self.batch = find, batch

    def __iter__(self) -> Iterator[list[Task]]:
        waiting: dict[object, list[Task]] = {}
        for task in filter(None, self.find()):
            if task.sample is None:
                yield [task]
                continue
            kind = (task.edited, task.sample.size)
            alike = waiting.setdefault(kind, [])
            alike.append(task)
            if len(alike) == self.batch:
                yield waiting.pop(kind)
        yield from waiting.values()


def task_of(
    read: Callable[[], DragSample],
    index: int,
    run: Run,
    rules: Rules,
    metrics_sha256: str,
) -> Task | None:
    """What is to be done with a sample; None if its record is valid.

    Args:
        read: gives the sample.
        index: of the sample.
        run: whose records they are.
        rules: what is done with records that are there.
        metrics_sha256: digest of the metrics: records with others are scored again.

    Raises:
        ValueError: the folder holds the record of another picture of the same name.
    """
    name = run.names[index]
    task = Task(index, name, None, {"name": name, **_about(run)})
    try:
        task.sample = read()
    except Exception as error:
        task.fail(error, READ)
    else:
        task.record = _started(task.sample, run) | _about(run)
    old = read_record(run.folder_of(name)) or {}
    todo = _todo(task, old, run, rules, metrics_sha256)
    if todo == SCORE:
        task.record, task.edited = old, True
    return task if todo else None


def _todo(
    task: Task, old: Mapping[str, Any], run: Run, rules: Rules, metrics_sha256: str
) -> str | None:
    """What is to be done, given the record that is there: EDIT, SCORE or nothing."""
    failed_in, digest = old.get("failed_in"), task.record.get("sample_sha256")
    again = failed_in is not None and rules.retry_failed
    if not old or rules.existing == "overwrite":
        return EDIT
    if digest is None:  # it cannot be read; a result of when it could is kept
        return EDIT if again and failed_in == READ else None
    if old.get("sample_sha256", digest) != digest:
        raise ValueError(
            f"{run.folder_of(task.name)} holds the result of another picture of that "
            "name: give another output folder, or existing=overwrite to replace it"
        )
    if any(old.get(key) != value for key, value in run.key.items()) or failed_in == READ:
        return EDIT
    if failed_in == EDIT:
        return EDIT if again else None
    scored = not again and old.get("metrics_sha256") == metrics_sha256
    if not (run.folder_of(task.name) / PICTURE).exists():
        return None if scored and old.get(PACKED) else EDIT
    return None if scored else SCORE


def _started(sample: DragSample, run: Run) -> dict[str, Any]:
    """What is known of a sample before its edit; the configuration stands in run.json."""
    record = start_record(sample, {}, run.seed)
    del record["config"]
    return record | {"category": sample.category, "task": sample.task}


def _about(run: Run) -> dict[str, Any]:
    return {"data": run.data, "label": run.label, **run.key}
