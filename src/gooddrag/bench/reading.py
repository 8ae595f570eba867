"""All results below folders: which there are, and what their methods are called."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gooddrag.bench.records import DIGITS, DONE, MISSING, RUN, read_record, read_run

SECONDS = ("seconds_total", "seconds_edit")
COSTS = (*SECONDS, "gradient_steps")
BASELINES = ("identity", "paste")  # what every table of drag edits needs to be read

Identity = tuple[str, str, str]
"""What makes two runs the same method: its label, its configuration's digest, the code."""


@dataclass(frozen=True)
class Result:
    """One sample, edited by one method with one seed.

    Attributes:
        data, label, seed, name: which.
        status: "done", "failed" or "missing".
        record: all that is known of it.
        folder: where its files are.
        output: where the run's output folder is.
        numbers: metrics and `COSTS` by name, those that apply; seconds_edit are without the LoRA's.
    """

    data: str
    label: str
    seed: int
    name: str
    status: str
    record: Mapping[str, Any]
    folder: Path
    output: Path
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class Experiment:
    """A recipe of conf/experiment that names variants: which runs a report is about.

    Attributes:
        name: of the recipe.
        variants: their names, in the order of the report's rows.
    """

    name: str
    variants: Sequence[str]


def read_results(folders: Sequence[Path], experiment: Experiment | None = None) -> list[Result]:
    """All results below the folders, method by method; of one that is there twice, a finished one.

    Args:
        folders: hold runs, at any depth.
        experiment: only its runs, called and ordered as its variants are.

    Raises:
        ValueError: a folder that is not there or holds no run, or a run that cannot be read.
    """
    abouts = _runs(folders)
    if experiment is None:
        labels = _labels(abouts.values())
        rows = sorted(labels, key=lambda method: _place(labels[method]))
    else:
        abouts = {run: about for run, about in abouts.items() if _variant(about, experiment)}
        if not abouts:
            name = experiment.name
            raise ValueError(f"no runs of {name} there: run gooddrag bench -m experiment={name}")
        named = {identity(about): _variant(about, experiment) for about in abouts.values()}
        rows = sorted(named, key=lambda method: experiment.variants.index(named[method]))
        labels = _told_apart(named)
    found: dict[tuple[str, str, int, str], Result] = {}
    order = {method: place for place, method in enumerate(rows)}
    for run, about in sorted(abouts.items(), key=lambda run: order[identity(run[1])]):
        for name in about["names"]:
            result = _result(run, about, labels[identity(about)], name)
            key = (result.data, result.label, result.seed, name)
            if key not in found or found[key].status != DONE:
                found[key] = result
    return list(found.values())


def labelled_runs(folders: Sequence[Path]) -> list[tuple[str, Path, int]]:
    """(label, folder, seed) of each run below the folders; none if there is none."""
    runs = {path.parent: read_run(path.parent) for f in folders for path in sorted(f.rglob(RUN))}
    labels = _labels(runs.values())
    return [(labels[identity(about)], run, about["seed"]) for run, about in runs.items()]


def labels_of(results: Iterable[Result]) -> list[str]:
    """The methods' names, in the order of the results."""
    return list(dict.fromkeys(result.label for result in results))


def devices_of(results: Iterable[Result]) -> dict[str, list[str]]:
    """Which methods' edits were made on each device; baselines cost nothing on any."""
    pairs = {
        (str(result.record["device"]), result.label)
        for result in results
        if result.record.get("device") and result.label not in BASELINES
    }
    found: dict[str, list[str]] = {}
    for device, label in sorted(pairs):
        found.setdefault(device, []).append(label)
    return found


def by_sample(results: Iterable[Result], number: str) -> dict[str, float]:
    """Each sample's number, its mean over seeds, by name in the order of names."""
    values: dict[str, list[float]] = {}
    for result in results:
        if number in result.numbers:
            values.setdefault(result.name, []).append(result.numbers[number])
    return {name: math.fsum(values[name]) / len(values[name]) for name in sorted(values)}


def in_pairs(
    some: Sequence[Result], others: Sequence[Result], number: str
) -> tuple[dict[str, float], dict[str, float]]:
    """The number of each sample that both have, in each of them, by name.

    A mean over the seeds that both have of the sample, since one seed is not another; over all
    where they share none. Seconds of different devices are no pairs.
    """
    if number in SECONDS and _elsewhere(some, others):
        return {}, {}
    has = [{(r.name, r.seed) for r in part if number in r.numbers} for part in (some, others)]
    shared = has[0] & has[1]
    names = {name for name, _ in shared}

    def of(results: Sequence[Result]) -> dict[str, float]:
        paired = [r for r in results if (r.name, r.seed) in shared or r.name not in names]
        return by_sample(paired, number)

    one, other = of(some), of(others)
    both = [name for name in one if name in other]
    return {name: one[name] for name in both}, {name: other[name] for name in both}


def _elsewhere(some: Sequence[Result], others: Sequence[Result]) -> bool:
    """Whether both were edited on known devices, and not on the same."""
    one, other = devices_of(some).keys(), devices_of(others).keys()
    return bool(one and other and one != other)


def _runs(folders: Sequence[Path]) -> dict[Path, dict[str, Any]]:
    """What the run.json of each run says."""
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
    runs = {path.parent.resolve(): None for folder in folders for path in sorted(folder.rglob(RUN))}
    if not runs:
        raise ValueError(f"no results below {', '.join(map(str, folders))}: run gooddrag bench")
    return {run: read_run(run) for run in runs}


def _result(run: Path, about: Mapping[str, Any], label: str, name: str) -> Result:
    record = read_record(run / name) or {"name": name, "status": MISSING}
    numbers = {cost: record.get(cost) for cost in COSTS} | dict(record.get("metrics") or {})
    if (whole := record.get("seconds_total")) is not None:
        numbers["seconds_edit"] = whole - record.get("seconds", {}).get("adapt", 0)
    finite = {
        key: float(value)
        for key, value in numbers.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
    done = record["status"] == DONE
    return Result(
        data=about["data"],
        label=label,
        seed=about["seed"],
        name=name,
        status=record["status"],
        record=record,
        folder=run / name,
        output=run.parent,
        numbers=finite if done else {},
    )


def identity(about: Mapping[str, Any]) -> Identity:
    """What tells a run's method from others, by its run.json."""
    return about["label"], about["config_sha256"], about["code"]


def _variant(about: Mapping[str, Any], experiment: Experiment) -> str:
    """What a run is called in an experiment; "" if it is no part of it."""
    variant: str = about.get("experiments", {}).get(experiment.name, "")
    return variant if variant in experiment.variants else ""


def _place(label: str) -> tuple[int, str]:
    """The baselines first, then by name."""
    first = [name for name in BASELINES if label == name or label.startswith(f"{name} ")]
    return (BASELINES.index(first[0]), "") if first else (len(BASELINES), label)


def _labels(abouts: Iterable[Mapping[str, Any]]) -> dict[Identity, str]:
    """A name for each method; where two share one, what tells them apart stands behind it."""
    changes: dict[Identity, list[str]] = {}
    for about in abouts:
        shortest = min((changes.get(identity(about), about["changes"]), about["changes"]), key=len)
        changes[identity(about)] = shortest
    labels = {}
    for method, words in changes.items():
        alike = [other for other in changes if other[0] == method[0]]
        common = set(words).intersection(*(changes[other] for other in alike))
        labels[method] = " ".join([method[0], *(w for w in words if w not in common)])
    return _told_apart(labels)


def _told_apart(labels: Mapping[Identity, str]) -> dict[Identity, str]:
    """The labels; behind those that are equal, the configuration's digest or the code."""
    for i, digits in ((1, DIGITS), (2, None)):  # the configuration, then the code
        labels = {
            method: f"{label} ({method[i][:digits]})"
            if any(labels[o] == label and o[i] != method[i] for o in labels)
            else label
            for method, label in labels.items()
        }
    return dict(labels)
