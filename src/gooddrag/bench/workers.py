"""Processes that read samples and score pictures while this one edits.

DragWorld's pictures are rendered, and its scenes fitted to edits, on one core in up to a second for
each sample. A GPU edits several in that time, and should not wait. What concerns one sample goes to
one process, which keeps what it has rendered of its last 64: where it has no more of them, the next
run of a sweep is scored in a third of the time.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from random import Random
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torchmetrics import MetricCollection

from gooddrag.backbones.shared import Shelf, shelf
from gooddrag.bench.records import POINTS, TRUTH
from gooddrag.data.dragset import DragSet
from gooddrag.data.images import read_image, to_uint8, write_png
from gooddrag.drawing import overlay
from gooddrag.metrics.score import score
from gooddrag.types import DragSample

SHARED = 500  # samples that the jobs of a sweep share at most: of DragWorld half a gigabyte
AHEAD = 4  # samples for each worker that may be read before they are asked for
T = TypeVar("T")
MetricsMaker = Callable[[torch.device], MetricCollection]


_kept: WeakKeyDictionary[Shelf, dict[tuple[bytes, int], DragSample]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Call(Generic[T]):
    """A call that may be under way in another process.

    Attributes:
        future: what comes of it there.
        here: makes the same call in this process.
    """

    future: Future[T]
    here: Callable[[], T]

    def result(self) -> T:
        """What it returns, or raises. Lost with a killed process, it is made here.

        That process is no reason why a sample should count as failed: memory ran out, say, while
        several of them read at a time.
        """
        try:
            return self.future.result()
        except BrokenProcessPool:
            return self.here()


class Workers:
    """Calls functions in processes of their own, or here if there are none.

    Args:
        count: of processes; with 0 what is submitted is done at once, in this one.

    Raises:
        ValueError: a negative count.
    """

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"workers cannot be negative, found {count}")
        self.count = count
        self._pools = [_pool() for _ in range(count)]

    def submit(self, function: Callable[..., T], *arguments: Any, index: int) -> Call[T]:
        """Call it, in the process of a sample.

        Args:
            function: what to call.
            arguments: picklable where there are processes.
            index: of the sample.
        """
        here = partial(function, *arguments)
        if not self._pools:
            return Call(_done(here), here)
        turn = turn_of(index, self.count)
        try:
            return Call(self._pools[turn].submit(function, *arguments), here)
        except BrokenProcessPool:
            print(
                "a worker has ended (is memory short?): what it had before it is done here, "
                "the rest by a new one",
                file=sys.stderr,
            )
            self._pools[turn] = _pool()
            return Call(self._pools[turn].submit(function, *arguments), here)

    def read(self, samples: DragSet, indices: Iterable[int]) -> Iterator[Callable[[], DragSample]]:
        """For each index a function that gives the sample; processes read some ahead."""
        if not self.count:
            yield from (partial(samples.__getitem__, index) for index in indices)
            return
        left, reads = iter(indices), _Reads(self, samples)
        ahead = deque(reads(index) for index in islice(left, AHEAD * self.count))
        for index in left:
            ahead.append(reads(index))
            yield ahead.popleft()
        yield from ahead

    def end(self) -> None:
        """Let what waits for its turn be; the next call begins with new processes."""
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        self._pools = [_pool() for _ in range(self.count)]


class _Reads:
    """Lets a set's samples be read; the jobs of a sweep share what they have read."""

    def __init__(self, workers: Workers, samples: DragSet) -> None:
        self.workers, self.samples = workers, samples
        self.kept = {} if (now := shelf()) is None else _kept.setdefault(now, {})
        self.key = hashlib.sha256(pickle.dumps(samples)).digest()

    def __call__(self, index: int) -> Callable[[], DragSample]:
        found = self.kept.get((self.key, index))
        if found is not None:
            return lambda: found
        read = self.workers.submit(_packed, self.samples, index, index=index)

        def unpacked() -> DragSample:
            # as bytes on its way: as tensors each of its parts would be an open file
            sample: DragSample = pickle.loads(read.result())
            if len(self.kept) < SHARED:
                self.kept[self.key, index] = sample
            return sample

        return unpacked


@lru_cache(maxsize=1)
def workers_of(count: int) -> Workers:
    """The workers that the jobs of a sweep share: they take seconds to start."""
    return Workers(count)


def scored(
    make_metrics: MetricsMaker, samples: DragSet, index: int, picture: Path, shown: Path | None
) -> dict[str, float]:
    """An edit's numbers, computed from its file by a worker.

    Args:
        make_metrics: loads the metrics.
        samples: the data set.
        index: of the sample.
        picture: the edit's file.
        shown: where the sample is to be shown for reports; None if it is already.
    """
    if shown is not None:
        show(samples, index, shown)
    metrics = _metrics(make_metrics)
    return score(metrics, samples[index], read_image(picture), samples.truth(index))


def show(samples: DragSet, index: int, folder: Path, sample: DragSample | None = None) -> None:
    """Write the drawn source and the truth, for reports.

    Args:
        samples: the data set.
        index: of the sample.
        folder: where to.
        sample: if it was read already.
    """
    sample = sample or samples[index]
    folder.mkdir(parents=True, exist_ok=True)
    truth = samples.truth(index)
    if truth is not None:
        write_png(folder / TRUTH, to_uint8(truth.truth))
    drawn = overlay(sample.image, sample.handles, sample.targets, sample.mask)
    write_png(folder / POINTS, to_uint8(drawn))


@lru_cache(maxsize=1)
def _metrics(make_metrics: MetricsMaker) -> MetricCollection:
    return make_metrics(torch.device("cpu"))


def turn_of(index: int, count: int) -> int:
    """Which of the processes a sample has.

    Of each `count` samples one; they are turned as chance would have it, since of a set whose kinds
    take turns each kind could have one process.
    """
    return (index + Random(index // count).randrange(count)) % count


def _packed(samples: DragSet, index: int) -> bytes:
    return pickle.dumps(samples[index])


def _done(function: Callable[[], T]) -> Future[T]:
    """A future that has its result, or its exception."""
    future: Future[T] = Future()
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
    return future


class _Process(SpawnProcess):
    """Ends at once where its pool ends it, as it does when what comes back cannot be read.

    Workers leave SIGTERM alone (see `_begin`), and the pool would wait for this one for ever.
    """

    def terminate(self) -> None:
        """Send SIGKILL."""
        self.kill()


class _Spawning(SpawnContext):
    """Not forked: a process that has used CUDA, or threads, cannot be."""

    Process = _Process


def _pool() -> Executor:
    return ProcessPoolExecutor(1, _Spawning(), initializer=_begin)


def _begin() -> None:
    """A worker has one thread, leaves signals to the process that edits, and ends with it."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_it() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=end_with_it, daemon=True).start()
