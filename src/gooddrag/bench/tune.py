"""Tuning: Optuna chooses settings, a benchmark tries each, and a database remembers.

A trial is a run of the benchmark of its own, so that its records are kept like all others, and a
trial that was cut off is taken up again where it ended if the same settings come back.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gooddrag.bench.reading import by_sample, read_results
from gooddrag.bench.records import DONE, RUN, read_run

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
            trial, of which Optuna learns nothing.
        space: of each setting, its values.
        study: its name.
        storage: the database's URL.
        trials: how many should be finished, those in the database included.
        direction: "minimize" or "maximize".
        seed: of the choices; trials that are there already change it, so that none is repeated.

    Raises:
        ValueError: Optuna is not installed, an unknown direction, no trials, or as many failed in a
            row as there should be in all.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be {' or '.join(DIRECTIONS)}, found {direction!r}")
    if trials < 1:
        raise ValueError(f"trials must be at least 1, found {trials}")
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
        found.optimize(attempt, n_trials=1, catch=(ValueError,))
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


def measured(output: Path, changes: Sequence[str], number: str) -> float:
    """The mean of a number over the samples of the runs with these changes.

    Raises:
        ValueError: there are none, or not all of their samples are done: a mean over the survivors
            says nothing.
    """
    folders = [path.parent for path in sorted(output.glob(f"*/{RUN}"))]
    ours = [f for f in folders if set(changes) <= set(read_run(f)["changes"])]
    results = read_results(ours) if ours else []
    values = by_sample(results, number).values()
    ok = sum(result.status == DONE for result in results)
    if ok < len(results) or not values:
        raise ValueError(f"{ok} of {len(results)} samples are done, {len(values)} have {number}")
    return math.fsum(values) / len(values)
