"""gooddrag tune: Optuna's choices, and a study that goes on after a restart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gooddrag.bench.tune import Range, finished, measured, tune
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


class TestMeasured:
    def test_means_of_the_runs_with_these_changes(self, tmp_path):
        fill(make_run(tmp_path, changes=["method.J=1"]), [1.0, 2.0, 3.0, 4.0])
        fill(make_run(tmp_path, changes=["method.J=1"], seed=1), [3.0, 4.0, 5.0, 6.0])
        fill(make_run(tmp_path, changes=["method.J=2"]), [9.0] * 4)
        assert measured(tmp_path, ["method.J=1"], "err") == 3.5

    def test_no_mean_over_survivors(self, tmp_path):
        fill(make_run(tmp_path, changes=["method.J=1"]), [1.0, 2.0, ValueError("no"), None])
        with pytest.raises(ValueError, match="2 of 4 samples are done"):
            measured(tmp_path, ["method.J=1"], "err")
        with pytest.raises(ValueError, match="0 of 0"):
            measured(tmp_path, ["method.J=2"], "err")


def test_the_command(tmp_path):
    pytest.importorskip("optuna", reason="tuning is an extra: pip install 'gooddrag[tune]'")
    for i in range(2):
        write_sample(tiny.make_sample(i), tmp_path / "data" / f"cat_{i}")
    fixed = ["method=paste", "data=folder", f"data.root={tmp_path / 'data'}", "trainer=cpu"]
    words = ["output=out", "trials=2", "number=dai_5", "seeds=[0,1]"]
    words += ["space=['method.radius=range(0, 4)']", f"bench={json.dumps(fixed)}"]
    done = subprocess.run(
        [PROGRAM, "tune", *words],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "best of 2 trials: dai_5" in done.stdout.splitlines()[-1]
    assert (tmp_path / "out" / "study.db").exists()
    assert len(list((tmp_path / "out").glob("folder-paste-seed*/run.json"))) in (2, 4)
