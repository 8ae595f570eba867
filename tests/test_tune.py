"""gooddrag tune: Optuna's choices, and a study that goes on after a restart."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from unittest import mock

import pytest

from gooddrag import cli
from gooddrag.bench.records import read_record, row_of
from gooddrag.bench.tune import NoNumberError, Range, begun, finished, measured, tune
from gooddrag.composition import space_of
from gooddrag.data import write_sample
from tests import tiny
from tests.test_report import fill, make_run

PROGRAM = Path(sys.executable).with_name("gooddrag")


class TestSpace:
    def test_words(self):
        words = ["a=tag(log, interval(0.1, 1.0))", "b=range(2, 5)", "c=choice(x, y)", "d=1,3"]
        assert space_of(words) == {
            "a": Range(0.1, 1.0, whole=False, log=True),
            "b": Range(2, 4, whole=True, log=False),
            "c": ["x", "y"],
            "d": [1, 3],
        }

    @pytest.mark.parametrize("word", ["a=1", "a", "a=range(0, 1, 0.5)", "a=interval(", "=3"])
    def test_no_range(self, word):
        with pytest.raises(ValueError, match=r"."):
            space_of([word])


class TestTune:
    @pytest.fixture(autouse=True)
    def _optuna(self):
        pytest.importorskip("optuna", reason="tuning is an extra: pip install 'gooddrag[tune]'")

    def run(self, tmp_path, objective, trials, **changes):
        options = {"study": "s", "storage": f"sqlite:///{tmp_path / 'study.db'}", "seed": 0}
        options |= {"direction": "minimize"} | changes
        space = {"x": Range(-4.0, 4.0, whole=False, log=False), "k": Range(1, 3, True, False)}
        return tune(objective, space | {"c": ["a", "b"]}, trials=trials, **options)

    def test_it_finds_a_minimum_and_goes_on_after_a_restart(self, tmp_path):
        tried = []

        def objective(chosen):
            tried.append(chosen)
            return (chosen["x"] - 1) ** 2 + chosen["k"] + (chosen["c"] == "a")

        self.run(tmp_path, objective, 10)
        study = self.run(tmp_path, objective, 40)
        assert len(tried) == len(study.trials) == finished(study) == 40
        assert len({chosen["x"] for chosen in tried}) == 40
        assert study.best_params["k"] == 1
        assert study.best_value < 1.5
        assert self.run(tmp_path, objective, 40).best_value == study.best_value
        assert len(tried) == 40

    def test_no_trials(self, tmp_path):
        with pytest.raises(ValueError, match="trials must be at least 1"):
            self.run(tmp_path, lambda chosen: 1.0, 0)

    def test_nothing_to_choose(self, tmp_path):
        options = {"study": "s", "storage": "sqlite://", "direction": "minimize", "seed": 0}
        with pytest.raises(ValueError, match="nothing to choose"):
            tune(lambda chosen: 1.0, {}, trials=1, **options)

    def test_a_number_that_there_is_not_ends_it(self, tmp_path):
        calls = []

        def unknown(chosen):
            calls.append(chosen)
            raise NoNumberError("no number 'er', only err")

        with pytest.raises(ValueError, match="no number 'er', only err"):
            self.run(tmp_path, unknown, 3)
        assert len(calls) == 1

    def test_what_was_cut_off_does_not_count(self, tmp_path):
        def stop(chosen):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path, stop, 3)
        assert finished(self.run(tmp_path, lambda chosen: 1.0, 3)) == 3

    def test_failures(self, tmp_path):
        calls = []

        def every_other(chosen):
            calls.append(chosen)
            if len(calls) % 2:
                raise ValueError("no luck")
            return 1.0

        assert finished(self.run(tmp_path, every_other, 3)) == 3

        def never(chosen):
            raise ValueError("no luck")

        with pytest.raises(ValueError, match="2 trials have failed"):
            self.run(tmp_path, never, 2, study="other")

    def test_direction(self, tmp_path):
        with pytest.raises(ValueError, match="minimize or maximize, found 'up'"):
            self.run(tmp_path, lambda chosen: 1.0, 1, direction="up")


def benched(run, values, names=None):
    """Records as a benchmark leaves them, of which the last one asked for some names."""
    fill(run, values)
    (run.folder / "table.jsonl").unlink(missing_ok=True)
    for name in names or run.names:
        if (record := read_record(run.folder / name)) is not None:
            run.append(row_of(record))
    return run.folder


class TestMeasured:
    def test_the_mean_of_samples_over_seeds(self, tmp_path):
        first = benched(make_run(tmp_path), [1.0, 2.0, 3.0, 4.0])
        second = benched(make_run(tmp_path, seed=1), [3.0, 4.0, 5.0, 6.0])
        assert measured([first, second], [1, 0], "err") == 3.5
        assert measured([first], [0], "psnr") == 25.0

    def test_what_an_earlier_benchmark_asked_for_besides(self, tmp_path):
        run = make_run(tmp_path)
        folder = benched(run, [1.0, 2.0, 30.0, ValueError("no")], run.names[:2])
        assert measured([folder], [0], "err") == 1.5

    def test_runs_of_others(self, tmp_path):
        benched(make_run(tmp_path, data="other"), [9.0] * 4)
        folder = benched(make_run(tmp_path), [9.0] * 4)
        before = begun(tmp_path)
        assert len(before) == 2
        benched(make_run(tmp_path), [1.0] * 4)
        changed = [run for run, time in begun(tmp_path).items() if before[run] != time]
        assert changed == [folder]

    def test_not_one_run_for_each_seed(self, tmp_path):
        one = benched(make_run(tmp_path), [1.0] * 4)
        other = benched(make_run(tmp_path, data="other"), [1.0] * 4)
        for runs, seeds in (([], [0]), ([one], [0, 1]), ([one, other], [0]), ([one], [1])):
            with pytest.raises(ValueError, match="one run for each of the seeds"):
                measured(runs, seeds, "err")

    def test_no_mean_over_survivors(self, tmp_path):
        folder = benched(make_run(tmp_path), [1.0, 2.0, ValueError("no"), float("nan")])
        with pytest.raises(ValueError, match="3 of 4 samples are done, and 2 have err"):
            measured([folder], [0], "err")

    def test_a_number_without_a_value_is_known(self, tmp_path):
        folder = benched(make_run(tmp_path), [float("nan")] * 4)
        with pytest.raises(ValueError, match="0 have err"):
            measured([folder], [0], "err")
        with pytest.raises(NoNumberError, match=r"no number 'er', only err, .*psnr"):
            measured([folder], [0], "er")


class TestTheCommand:
    @pytest.fixture
    def tune(self, tmp_path, monkeypatch, capfd):
        """Gives the exit status, and the last lines on stdout and stderr."""
        pytest.importorskip("optuna", reason="tuning is an extra: pip install 'gooddrag[tune]'")
        for i in range(2):
            write_sample(tiny.make_sample(i), tmp_path / "data" / f"cat_{i}")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")

        def run(*words, fixed=()):
            data = ["data=folder", f"data.root={tmp_path / 'data'}", "trainer=cpu", *fixed]
            asked = [str(PROGRAM), "tune", "output=out", f"bench={json.dumps(data)}", *words]
            monkeypatch.setattr(sys, "argv", asked)
            with mock.patch.dict(os.environ), pytest.raises(SystemExit) as stop:
                cli.main()
            told = capfd.readouterr()
            return stop.value.code, *((out.splitlines() or [""])[-1] for out in told)

        return run

    def test_it(self, tune, tmp_path):
        words = ["trials=2", "number=dai_5", "seeds=[0,1]", "space=['method.radius=range(0, 4)']"]
        status, said, problem = tune(*words, fixed=["method=paste"])
        assert status == 0, problem
        assert "best of 2 trials: dai_5" in said
        assert (tmp_path / "out" / "study.db").exists()
        assert len(list((tmp_path / "out").glob("folder-paste-seed*/run.json"))) in (2, 4)

    def test_methods_with_a_label(self, tune):
        # neither is among the changes that a run names
        words = ["trials=1", "number=dai_5", "space=['method=choice(paste)']"]
        status, said, problem = tune(*words, fixed=["label=mine"])
        assert status == 0, problem
        assert said.endswith(": method=paste")

    def test_a_number_that_there_is_not(self, tune, tmp_path):
        words = ["trials=3", "number=dai5", "space=['method=choice(paste,identity)']"]
        status, _, problem = tune(*words)
        assert status == 2
        assert re.search(r"no number 'dai5', only .*dai_5", problem)
        assert len(list((tmp_path / "out").glob("*/run.json"))) == 1

    @pytest.mark.parametrize(
        ("words", "fixed", "said"),
        [
            (["space=[]"], [], "nothing to choose"),
            ([], ["method=paste,identity"], "one value each, found 'method=paste,identity'"),
        ],
    )
    def test_what_cannot_work(self, tune, tmp_path, words, fixed, said):
        status, _, problem = tune(*words, fixed=fixed)
        assert status == 2
        assert said in problem
        assert not list((tmp_path / "out").glob("*/run.json"))
