"""Workers: other processes change nothing but the time, and end with the one that edits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from gooddrag.backbones.shared import sharing
from gooddrag.bench.records import rows_of
from gooddrag.bench.runner import Benchmark, run_benchmark
from gooddrag.bench.tasks import Rules
from gooddrag.bench.workers import Call, Workers, _done, _Spawning, scored, turn_of
from gooddrag.data.dragset import DragSet
from gooddrag.data.sets import world
from gooddrag.request import MetricsMaker
from tests import tiny
from tests.test_bench import RULES, TIMES, Recorder, compose, plain, trainer
from tests.test_report import make_run

SAMPLES = world("test", 0, 0, 3, 64)


def metrics() -> MetricsMaker:
    words = ["metrics=truth_error", "metrics.truth_error._target_=gooddrag.metrics.TruthError"]
    return MetricsMaker(json.dumps(plain(compose("bench", words).metrics)))


def fail(number: int) -> int:
    raise ValueError(f"no such luck as {number}")


@pytest.fixture(scope="module")
def two():
    """Two processes, for all tests here: they take seconds to start."""
    workers = Workers(2)
    yield workers
    workers.end()


class TestHere:
    def test_what_is_submitted_is_done(self):
        assert Workers(0).submit(max, 1, 2, index=0).result() == 2

    def test_errors_come_with_the_result(self):
        future = Workers(0).submit(fail, 1, index=0)
        with pytest.raises(ValueError, match="no such luck as 1"):
            future.result()

    def test_samples_are_read_when_they_are_asked_for(self):
        asked = []
        samples = DragSet({f"s{i}": i for i in range(3)}, lambda i: asked.append(i) or _sample(i))
        reads = Workers(0).read(samples, range(3))
        next(reads)
        assert asked == []
        next(reads)()
        assert asked == [1]

    def test_no_fewer_than_none(self):
        with pytest.raises(ValueError, match="found -1"):
            Workers(-1)


def _sample(i):
    return replace(tiny.make_sample(i), name=f"s{i}")


def run_of(folder, workers, method, **rules):
    """Run three samples of DragWorld; gives the run."""
    run = make_run(folder, names=SAMPLES.names, code="test")
    given = Rules(**RULES | rules)
    benchmark = Benchmark(SAMPLES, run, lambda device: method, metrics(), {}, given)
    benchmark.workers = workers
    run_benchmark(trainer(), benchmark)
    return run


def test_processes_change_nothing(two, tmp_path):
    reads = [read() for read in two.read(SAMPLES, range(3))]
    for sample, expected in zip(reads, SAMPLES, strict=True):
        assert sample.name == expected.name
        assert torch.equal(sample.image, expected.image)
    rows = {}
    for workers in (Workers(0), two):
        run = run_of(tmp_path / str(workers.count), workers, Recorder(), batch=2)
        rows[workers.count] = rows_of(run.folder, run.names)
        shown = sorted(path.name for path in (run.output / "samples").rglob("*.png"))
        assert shown == ["points.png"] * 3 + ["truth.png"] * 3
    for here, there in zip(rows[0], rows[2], strict=True):
        for key in here.keys() - {*TIMES, "seconds_total"}:
            number = isinstance(here[key], float)
            expected = pytest.approx(there[key], rel=1e-5) if number else there[key]
            assert here[key] == expected, key


def test_what_fails_there_is_told_here(two, tmp_path):
    future = two.submit(scored, metrics(), SAMPLES, 0, tmp_path / "no.png", None, index=0)
    with pytest.raises(ValueError, match=r"no\.png") as found:
        future.result()
    assert "Traceback" in str(found.value.__cause__)


def test_what_was_edited_before_the_end_is_recorded(two, tmp_path):
    def stop(samples):
        if samples[0].name == SAMPLES.names[2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path, two, Recorder(stop))
    method = Recorder()
    run = run_of(tmp_path, Workers(0), method)
    assert method.batches == [[SAMPLES.names[2]]]
    assert {row["status"] for row in rows_of(run.folder, run.names)} == {"done"}


def processes(workers):
    """Those of the workers, when all wait for something to do."""
    for call in [workers.submit(time.sleep, 0.5, index=i) for i in range(workers.count)]:
        call.result()
    time.sleep(0.2)
    return [process for pool in workers._pools for process in pool._processes.values()]


def test_a_sample_has_its_process(two):
    first, *others = ([two.submit(os.getpid, index=i).result() for i in range(9)] for _ in range(3))
    assert others == [first] * 2
    assert set(first) == {process.pid for process in processes(two)}


@pytest.mark.parametrize("kinds", [2, 3, 5, 9])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 9, 14])
def test_kinds_that_take_turns_have_all_processes(kinds, count):
    turns = [turn_of(index, count) for index in range(kinds * count * 20)]
    assert {turns.count(turn) for turn in range(count)} == {kinds * 20}
    assert all(set(turns[kind::kinds]) == set(range(count)) for kind in range(kinds))


def test_what_a_killed_one_had_to_do_is_done_here(two):
    other = processes(two)[1 - turn_of(0, 2)].pid
    calls = [two.submit(_killed_there, os.getpid(), index=0) for _ in range(3)]
    assert [call.result() for call in calls] == [os.getpid()] * 3
    assert two.submit(os.getpid, index=0).result() != os.getpid()  # by a new one
    assert other in {process.pid for process in processes(two)}


def _killed_there(here):
    if os.getpid() != here:
        os.kill(os.getpid(), signal.SIGKILL)
    return here


def test_an_idle_one_that_was_killed_is_replaced(two):
    turn = turn_of(0, 2)
    killed, manager = processes(two)[turn], two._pools[turn]._executor_manager_thread
    os.kill(killed.pid, signal.SIGKILL)
    manager.join(20)
    assert not manager.is_alive()  # the process would wait for it in the end
    assert two.submit(max, 1, 2, index=0).result() == 2


class Unreadable(Exception):
    def __init__(self, *, needed: int) -> None:
        super().__init__(needed)


def _unreadable() -> None:
    raise Unreadable(needed=1)


def test_what_comes_back_unreadable_ends_its_process(two):
    """Which lives, and leaves SIGTERM alone: the pool would wait for it for ever."""
    turn = turn_of(0, 2)
    process, manager = processes(two)[turn], two._pools[turn]._executor_manager_thread
    with pytest.raises(Unreadable):
        two.submit(_unreadable, index=0).result()  # as it is here, where it is called again
    manager.join(20)
    assert not manager.is_alive()
    assert not process.is_alive()
    process.close()


def test_a_worker_that_is_ended_ends():
    process = _Spawning().Process(target=_deaf)
    process.start()
    process.terminate()
    process.join(20)
    assert process.exitcode == -signal.SIGKILL


def _deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


ORPHANS = """
import os, time
from gooddrag.bench.workers import Workers

if __name__ == "__main__":
    workers = Workers(1)
    print(workers.submit(os.getpid, index=0).result(), flush=True)
    workers.submit(time.sleep, 1000, index=0)
    time.sleep(1000)
"""


@pytest.mark.slow
def test_none_outlives_a_kill(tmp_path):
    (tmp_path / "edits.py").write_text(ORPHANS)
    with subprocess.Popen(
        [sys.executable, tmp_path / "edits.py"], stdout=subprocess.PIPE
    ) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    until = time.monotonic() + 20
    while os.path.exists(f"/proc/{worker}") and time.monotonic() < until:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{worker}")


def test_the_jobs_of_a_sweep_read_a_sample_once(two, monkeypatch):
    asked = []
    monkeypatch.setattr(
        two,
        "submit",
        lambda function, *given, index: (
            asked.append(given[1]) or Call(_done(partial(function, *given)), None)
        ),
    )
    with sharing():
        for _ in range(2):
            _, second, _ = (read() for read in two.read(SAMPLES, range(3)))
            assert torch.equal(second.image, SAMPLES[1].image)
        assert asked == [0, 1, 2]
        next(two.read(world("test", 0, 0, 3, 32), range(1)))()
        assert asked == [0, 1, 2, 0]
    for _ in range(2):
        next(two.read(SAMPLES, range(1)))()
    assert asked == [0, 1, 2, 0, 0, 0]
