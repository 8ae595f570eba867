"""Tuning: Optuna chooses settings, a benchmark tries each, and a database remembers.

A trial is a benchmark of its own, with a run for each seed: its records are kept like all others,
and one that was cut off is taken up again where it ended if the same settings come back.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gooddrag.bench.reading import by_sample, read_results
from gooddrag.bench.records import DONE, TABLE, read_run

if TYPE_CHECKING:
    from optuna import Study, Trial

DIRECTIONS = ("minimize", "maximize")


@dataclass(frozen=True)
class Range:
    """A setting's values: numbers from low to high, both included.

    Attributes:
        low, high: the ends.
        whole: whole numbers only.
        log: whether small numbers are tried as closely as large ones, by their logarithm.
    """

    low: float
    high: float
    whole: bool
    log: bool


class NoNumberError(Exception):
    """Nothing that was measured has this name: no trial will have it."""


Space = Mapping[str, Range | Sequence[Any]]


def tune(
    objective: Callable[[dict[str, Any]], float],
    space: Space,
    *,
    study: str,
    storage: str,
    trials: int,
    direction: str,
    seed: int,
) -> Study:
    """Try settings until enough trials are finished.

    Args:
        objective: of settings, the number to be made small or large; a ValueError of it is a failed
            trial, of which Optuna learns nothing, and `NoNumberError` ends the study.
        space: of each setting, its values.
        study: its name.
        storage: the database's URL.
        trials: how many should be finished, those in the database included.
        direction: "minimize" or "maximize".
        seed: of the choices; trials that are there already change it, so that none is repeated.

    Raises:
        ValueError: Optuna is not installed, an unknown direction, no trials, nothing to choose, no
            such number, or as many failed in a row as there should be in all.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be {' or '.join(DIRECTIONS)}, found {direction!r}")
    if trials < 1:
        raise ValueError(f"trials must be at least 1, found {trials}")
    if not space:
        raise ValueError("there is nothing to choose: give space=['method.lr=interval(0.01, 0.1)']")
    try:
        import optuna
    except ImportError:
        raise ValueError("tuning needs Optuna: pip install 'gooddrag[tune]'") from None

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    towards = optuna.study.StudyDirection[direction.upper()]
    found = optuna.create_study(
        study_name=study, storage=storage, direction=towards, load_if_exists=True
    )
    found.sampler = optuna.samplers.TPESampler(seed=seed + len(found.trials))

    def attempt(trial: Trial) -> float:
        try:
            return objective({key: _suggest(trial, key, values) for key, values in space.items()})
        except ValueError as error:
            print(f"trial {trial.number} failed: {error}", file=sys.stderr)
            raise

    failures = 0
    while finished(found) < trials:
        before = finished(found)
        try:
            found.optimize(attempt, n_trials=1, catch=(ValueError,))
        except NoNumberError as error:
            raise ValueError(str(error)) from None
        failures = failures + 1 if finished(found) == before else 0
        if failures == trials:
            raise ValueError(f"{failures} trials have failed, one after the other; see above")
    return found


def finished(study: Study) -> int:
    """How many trials have a result."""
    return sum(trial.state.name == "COMPLETE" for trial in study.trials)


def _suggest(trial: Trial, key: str, values: Range | Sequence[Any]) -> Any:
    if not isinstance(values, Range):
        return trial.suggest_categorical(key, list(values))
    if values.whole:
        return trial.suggest_int(key, int(values.low), int(values.high), log=values.log)
    return trial.suggest_float(key, values.low, values.high, log=values.log)


def begun(output: Path) -> dict[Path, int]:
    """When something was last written to each run's table, by the run's folder.

    A benchmark begins its table anew, also where all records are there: so a change tells which
    runs it is of, whatever its settings are called, and whatever other runs are below the folder.
    """
    return {path.parent: path.stat().st_mtime_ns for path in output.glob(f"*/{TABLE}")}


def measured(runs: Sequence[Path], seeds: Sequence[int], number: str) -> float:
    """The mean of a number over the samples of one trial.

    Args:
        runs: folders of the runs that the trial has made; of their records those that the table
            names are its own.
        seeds: that it was asked for.
        number: its name.

    Raises:
        ValueError: there is not one run for each seed, or not all of their samples are done and
            have the number: a mean over the survivors says nothing.
        NoNumberError: no sample that is done knows a number of this name.
    """
    of_run = {read_run(folder)["seed"]: folder for folder in runs}
    if len(runs) != len(of_run) or of_run.keys() != set(seeds):
        found = ", ".join(sorted(folder.name for folder in runs)) or "none"
        raise ValueError(f"a trial is one run for each of the seeds {list(seeds)}, found {found}")
    asked = {(seed, name) for seed, folder in of_run.items() for name in _names(folder)}
    results = [r for r in read_results(runs) if (r.seed, r.name) in asked]
    done = [result for result in results if result.status == DONE]
    known = {name for r in done for name in (*r.numbers, *(r.record.get("metrics") or {}))}
    if done and number not in known:
        raise NoNumberError(f"there is no number {number!r}, only {', '.join(sorted(known))}")
    having = sum(number in result.numbers for result in done)
    if not results or having < len(results):
        raise ValueError(
            f"{len(done)} of {len(results)} samples are done, and {having} have {number}: a mean "
            "over these alone says nothing"
        )
    values = by_sample(results, number).values()
    return math.fsum(values) / len(values)


def _names(run: Path) -> set[str]:
    """The samples that a run's table names: those of the last benchmark that did the run."""
    lines = (run / TABLE).read_text(encoding="utf-8").splitlines()
    return {json.loads(line)["name"] for line in lines}
