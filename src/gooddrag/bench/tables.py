"""From records to numbers: means, intervals, and differences from one method, sample by sample.

A sample's number is its mean over seeds; means and bootstrap intervals are over samples. Each has
its n_ok / n_total beside it, where n_total counts every sample of every seed that was asked for. Of
those that are done a metric may have no number: how many have one is counted for each number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from gooddrag.bench.reading import COSTS, Result, by_sample, in_pairs, labels_of
from gooddrag.bench.records import DONE, row_of
from gooddrag.metrics.statistics import Interval, bootstrap_difference, bootstrap_mean
from gooddrag.seeding import generator

ALL, KINDS = "all", ("category", "task")


@dataclass(frozen=True)
class Summary:
    """The numbers of one method on one group of samples.

    Attributes:
        kind, group: "all", or say "task" and "rotation".
        label: the method.
        ok, total: results that are done, and those that were asked for.
        seeds: how many.
        means: of each number that any sample has.
        differences: of these from the method that is compared with, over the samples of both.
        having: of the results that are done, how many have each number.
        pairs: samples that are done here and with the method that is compared with.
        samples: those that were asked for here or there.
    """

    kind: str
    group: str
    label: str
    ok: int
    total: int
    seeds: int
    means: Mapping[str, Interval]
    differences: Mapping[str, Interval]
    having: Mapping[str, int]
    pairs: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a report shows; conf/tables has the numbers and says what they are.

    Raises:
        ValueError: a number that is out of range.
    """

    against: str
    resamples: int
    level: float
    seed: int
    pairs: int
    thumbnail: int
    sheet: int
    show: Sequence[str]
    plot: Sequence[str]
    higher: Sequence[str]

    def __post_init__(self) -> None:
        for name, least in {"resamples": 1, "pairs": 1, "thumbnail": 1, "sheet": 0}.items():
            if getattr(self, name) < least:
                found = getattr(self, name)
                raise ValueError(f"tables.{name} must be at least {least}, found {found}")
        if not 0 < self.level < 1:
            raise ValueError(f"tables.level must lie between 0 and 1, found {self.level}")

    def shown(self, numbers: Iterable[str]) -> list[str]:
        """The metrics to show, in the order of the patterns; all if none matches."""
        metrics = [name for name in numbers if name not in COSTS]
        found = [name for pattern in self.show for name in metrics if fnmatchcase(name, pattern)]
        return list(dict.fromkeys(found)) or metrics

    def plotted(self, numbers: Iterable[str]) -> list[str]:
        """The metrics that figures show, in the order of the patterns; two if none matches."""
        metrics = [name for name in numbers if name not in COSTS]
        found = [name for pattern in self.plot for name in metrics if fnmatchcase(name, pattern)]
        return list(dict.fromkeys(found)) or self.shown(metrics)[:2]

    def verdict(self, number: str, difference: Interval) -> str:
        """Whether a difference is "better" or "worse"; "" if that cannot be said."""
        if difference.count < self.pairs or difference.low <= 0 <= difference.high:
            return ""
        return "better" if (difference.mean > 0) == self.is_higher_better(number) else "worse"

    def is_higher_better(self, number: str) -> bool:
        """Of a metric; of costs less is better."""
        return any(fnmatchcase(number, pattern) for pattern in self.higher)


def numbers_of(results: Iterable[Result]) -> list[str]:
    """The names of metrics and costs that any result has, metrics as they came, costs last."""
    found = dict.fromkeys(name for result in results for name in result.numbers)
    return [name for name in found if name not in COSTS] + [c for c in COSTS if c in found]


def groups_of(results: Sequence[Result]) -> list[tuple[str, str, list[Result]]]:
    """(kind, group, results): all of them, then those of each category and of each task.

    A result that has no record, or a record of a sample that could not be read, belongs where
    another method's record says that the sample does.
    """
    groups = [(ALL, "", list(results))]
    for kind in KINDS:
        of_name = {r.name: r.record[kind] for r in results if r.record.get(kind)}
        groups += [
            (kind, group, [r for r in results if of_name.get(r.name) == group])
            for group in sorted(set(of_name.values()))
        ]
    return groups


def summaries(
    results: Sequence[Result], settings: Settings, advance: Callable[[], object] = lambda: None
) -> list[Summary]:
    """The numbers of every method on every group of one data set.

    Args:
        results: of one data set.
        settings: of the bootstrap, and the method to compare with.
        advance: called after each method and group.
    """
    found = []
    for kind, group, members in groups_of(results):
        base = [result for result in members if result.label == settings.against]
        for label in labels_of(results):
            ours = [result for result in members if result.label == label]
            found.append(_summary((kind, group, label), ours, base, settings))
            advance()
    return found


def _summary(
    names: tuple[str, str, str], ours: Sequence[Result], base: Sequence[Result], settings: Settings
) -> Summary:
    """The numbers of one method on one group of samples, given those it is compared with."""
    kind, group, label = names
    means, differences, having = {}, {}, {}
    done, done_there = ([r for r in some if r.status == DONE] for some in (ours, base))
    for number in numbers_of(ours):
        draws = _Draws(settings, (label, kind, group, number))
        means[number] = draws.mean(list(by_sample(ours, number).values()))
        having[number] = sum(number in result.numbers for result in done)
        before, after = in_pairs(base, ours, number)
        if after and label != settings.against:
            differences[number] = draws.difference(list(before.values()), list(after.values()))
    return Summary(
        *names,
        ok=len(done),
        total=len(ours),
        seeds=len({result.seed for result in ours}),
        means=means,
        differences=differences,
        having=having,
        pairs=len({r.name for r in done} & {r.name for r in done_there}),
        samples=len({result.name for result in (*ours, *base)}),
    )


class _Draws:
    """The bootstrap; its draws depend on the settings' seed and the names of what is drawn."""

    def __init__(self, settings: Settings, names: Sequence[str]) -> None:
        self.settings, self.names = settings, names

    @property
    def _options(self) -> dict[str, Any]:
        draws = generator(self.settings.seed, "report", *self.names)
        settings = self.settings
        return {"resamples": settings.resamples, "level": settings.level, "generator": draws}

    def mean(self, values: Sequence[float]) -> Interval:
        return bootstrap_mean(torch.tensor(values, dtype=torch.float64), **self._options)

    def difference(self, before: Sequence[float], after: Sequence[float]) -> Interval:
        pairs = (torch.tensor(values, dtype=torch.float64) for values in (before, after))
        return bootstrap_difference(*pairs, **self._options)


def samples_csv(results: Sequence[Result]) -> str:
    """A line for each sample of each run."""
    rows = [
        row_of(result.record)
        | {"data": result.data, "label": result.label, "seed": result.seed}
        | {"folder": str(result.folder)}
        for result in results
    ]
    return _csv(rows)


def summary_csv(found: Mapping[str, Sequence[Summary]], settings: Settings) -> str:
    """A line for each number of each method on each group of each data set."""
    rows = []
    for data, of_data in found.items():
        for summary in of_data:
            about: dict[str, Any] = {
                "data": data,
                "kind": summary.kind,
                "group": summary.group,
                "method": summary.label,
                "n_ok": summary.ok,
                "n_total": summary.total,
                "seeds": summary.seeds,
            }
            for number, mean in summary.means.items():
                row = about | {"number": number, "n_number": summary.having[number]}
                row |= _columns("", mean)
                if (difference := summary.differences.get(number)) is not None:
                    row |= {"against": settings.against} | _columns("difference_", difference)
                rows.append(row)
            if not summary.means:
                rows.append(about)
    return _csv(rows)


def _columns(prefix: str, interval: Interval) -> dict[str, float]:
    return {
        f"{prefix}mean": interval.mean,
        f"{prefix}low": interval.low,
        f"{prefix}high": interval.high,
        f"{prefix}samples": interval.count,
    }


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
