"""What a report says: its tables, the remarks beside them, and both as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gooddrag.bench.reading import BASELINES, COSTS, Result, devices_of, labels_of
from gooddrag.bench.records import DONE, file_name
from gooddrag.bench.sheet import Row
from gooddrag.bench.tables import ALL, Settings, Summary, numbers_of
from gooddrag.metrics.statistics import Interval

PICTURES = ("cost_*.svg", "differences_*.svg", "sheet_*.jpg")  # beside a report

TITLES = {
    "seconds_total": "seconds",
    "seconds_edit": "without LoRA",
    "gradient_steps": "gradient steps",
}
NONE = "-"
FEWER = " (3 of 4): of 4 that are done 3 have this number."
NAMED = 3  # samples that failed alike
SMALL = 1e-3  # below, numbers are written with an exponent


@dataclass(frozen=True)
class Cell:
    """A mean, the interval below it, and whether that says "better" or "worse"."""

    text: str
    below: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Table:
    """A titled table; a folded one is opened by a click."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """All that a report says of one data set.

    Attributes:
        results, tables: its numbers.
        figures: SVG by name.
        rows: of the contact sheet; none where the pictures were left behind.
    """

    results: Sequence[Result]
    tables: Sequence[Table]
    figures: Mapping[str, str]
    rows: Sequence[Row]


def tables(results: Sequence[Result], found: Sequence[Summary], settings: Settings) -> list[Table]:
    """The tables of one data set: all samples, differences, then categories and tasks."""
    numbers = numbers_of(results)
    shown = [*settings.shown(numbers), *(cost for cost in COSTS if cost in numbers)]
    whole = [summary for summary in found if summary.kind == ALL]
    level = f"{100 * settings.level:g} %"
    made = [
        Table(
            "All samples",
            f"Means over samples, each sample's over its seeds first, with bootstrap intervals of "
            f"{level} over samples. ↑ more is better, ↓ less is."
            f"{FEWER if any(map(_lacks, whole)) else ''}",
            _header(shown, settings),
            [_means(summary, shown) for summary in whole],
        )
    ]
    compared = [summary for summary in whole if summary.differences]
    if compared:
        note = (
            f"Each method minus {settings.against}, over the samples that both have; bold where "
            f"the interval of {level} leaves out 0 (from {settings.pairs} pairs on). Pairs are the "
            "samples that are done in both, and of their seeds those that both have."
        )
        header = ["method", "pairs / samples", *_header(shown, settings)[3:]]
        rows = [_differences(summary, shown, settings) for summary in compared]
        made.append(Table(f"Paired differences from {settings.against}", note, header, rows))
    groups = dict.fromkeys((summary.kind, summary.group) for summary in found)
    for kind, group in [key for key in groups if key[0] != ALL]:
        rows = [_means(s, shown) for s in found if (s.kind, s.group) == (kind, group)]
        title = f"{kind.capitalize()}: {group}"
        made.append(Table(title, "", _header(shown, settings), rows, folded=True))
    rest = [number for number in numbers if number not in shown]
    if rest:
        rows = [_means(summary, rest) for summary in whole]
        made.append(Table("Other metrics", "", _header(rest, settings), rows, folded=True))
    return made


def notes(results: Sequence[Result], settings: Settings) -> list[str]:
    """What a reader has to know before the numbers."""
    labels, said = labels_of(results), []
    missing = [name for name in BASELINES if name not in labels]
    if missing:
        said.append(
            f"{' and '.join(missing)} {'was' if len(missing) == 1 else 'were'} not run: without "
            "the unedited picture's row, and that of copy and paste, which DAI takes for perfect, "
            f"the numbers are hard to read. Run gooddrag bench -m method={','.join(missing)} with "
            "the same data and output, or experiment=NAME where the report is an experiment's."
        )
    if settings.against not in labels:
        listed = " or ".join(f"""'tables.against="{label}"'""" for label in labels)
        said.append(f"There is no {settings.against} to compare with: take {listed}.")
    asked = {label: {r.name for r in results if r.label == label} for label in labels}
    if any(names != asked[labels[0]] for names in asked.values()):
        said.append(
            "The methods were not run on the same samples: compare them by the paired differences."
        )
    if (samples := len({result.name for result in results})) < settings.pairs:
        said.append(
            f"{_count(samples, 'sample')} only, for a look: intervals say little of so few."
        )
    bad = sum(result.status != DONE for result in results)
    if bad:
        said.append(
            f"{bad} of {len(results)} results failed or are missing; they are listed below."
        )
    edited = [r for r in results if r.label not in BASELINES]
    if edited and len({result.seed for result in edited}) == 1:
        said.append("One seed only: dragging is chaotic in float32, so another run may differ.")
    cached = sum(bool(result.record.get("adapt_cached")) for result in results)
    if cached:
        said.append(f"{cached} LoRAs came from the cache: seconds do not hold their training.")
    batched = any((result.record.get("batch") or 1) > 1 for result in results)
    if batched:
        said.append("Batches were edited side by side: a sample's seconds are its part of them.")
    devices = devices_of(results)
    if len(devices) > 1:
        listed = "; ".join(f"{device}: {', '.join(on)}" for device, on in devices.items())
        said.append(f"Seconds are of several devices, and compare on one alone ({listed}).")
    return said


def failures(results: Iterable[Result]) -> list[tuple[str, str]]:
    """(where, why) of what is not done; of many alike the first are named."""
    alike: dict[tuple[str, int, str], list[str]] = {}
    for r in results:
        if r.status != DONE:
            why = str(r.record.get("error") or r.status)
            alike.setdefault((r.label, r.seed, why), []).append(r.name)
    return [
        (f"{label}, seed {seed}, {_named(names)}", why)
        for (label, seed, why), names in alike.items()
    ]


def _named(names: Sequence[str]) -> str:
    if len(names) <= NAMED:
        return ", ".join(names)
    return f"{_count(len(names), 'sample')}: {', '.join(names[:NAMED])} and so on"


def markdown(sections: Mapping[str, Section], settings: Settings) -> str:
    """The report as Markdown."""
    lines = ["# Report", ""]
    for data, section in sections.items():
        results = section.results
        lines += [f"## {data}: {heading(results)}", ""]
        lines += [f"- {note}" for note in notes(results, settings)] + [""]
        lines += [f"![{name}]({figure_name(name, data)})\n" for name in section.figures]
        for table in section.tables:
            lines += [f"### {table.title}", "", *([table.note, ""] if table.note else [])]
            lines += [_line(table.header), _line(["---"] * len(table.header))]
            lines += [_line([_plain(cell) for cell in row]) for row in table.rows] + [""]
        if bad := failures(results):
            lines += ["### Failed or missing", "", *(f"- {w}: {one_line(e)}" for w, e in bad), ""]
        if section.rows:
            lines += [f"![samples beside methods]({sheet_name(data)})", ""]
    return "\n".join(lines)


def sheet_name(data: str) -> str:
    """The file of a data set's contact sheet."""
    return f"sheet_{file_name(data)}.jpg"


def figure_name(name: str, data: str) -> str:
    """The file of a figure of a data set."""
    return f"{name}_{file_name(data)}.svg"


def heading(results: Sequence[Result]) -> str:
    """How many samples, methods and seeds."""
    samples, labels = {r.name for r in results}, labels_of(results)
    seeds = sorted({result.seed for result in results})
    counts = (
        _count(len(samples), "sample"),
        _count(len(labels), "method"),
        f"{_count(len(seeds), 'seed')} ({', '.join(map(str, seeds))})",
    )
    return ", ".join(counts)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _header(numbers: Sequence[str], settings: Settings) -> list[str]:
    arrows = ("↑" if settings.is_higher_better(number) else "↓" for number in numbers)
    named = [f"{TITLES.get(n, n)} {a}" for n, a in zip(numbers, arrows, strict=True)]
    return ["method", "n_ok / n_total", "seeds", *named]


def _means(summary: Summary, numbers: Sequence[str]) -> list[Cell]:
    counts = [Cell(f"{summary.ok} / {summary.total}"), Cell(str(summary.seeds))]
    cells = [
        _counted(_cell(summary.means.get(number)), summary.having.get(number), summary.ok)
        for number in numbers
    ]
    return [Cell(summary.label), *counts, *cells]


def _lacks(summary: Summary) -> bool:
    """Whether some of what is done has no number of a metric."""
    return any(count != summary.ok for count in summary.having.values())


def _differences(summary: Summary, numbers: Sequence[str], settings: Settings) -> list[Cell]:
    cells = []
    for number in numbers:
        interval = summary.differences.get(number)
        cell = _cell(interval, "+")
        if interval is not None:
            cell = replace(cell, verdict=settings.verdict(number, interval))
            cell = _counted(cell, interval.count, summary.pairs)
        cells.append(cell)
    return [Cell(summary.label), Cell(f"{summary.pairs} / {summary.samples}"), *cells]


def _counted(cell: Cell, count: int | None, of: int) -> Cell:
    """The cell; where it is about fewer than there are, it says so."""
    if count is None or count == of:
        return cell
    return replace(cell, below=f"{cell.below} ({count} of {of})".strip())


def _cell(interval: Interval | None, sign: str = "") -> Cell:
    """Mean and interval, with two or three digits of the interval's width."""
    if interval is None:
        return Cell(NONE)
    values, width = (interval.mean, interval.low, interval.high), interval.high - interval.low
    if max(map(abs, values)) < SMALL:
        mean, *ends = (f"{value:{sign}.2g}" for value in values)
    else:
        digits = 2 - _exponent(width) if width > 0 else 3 if interval.mean % 1 else 0
        mean, *ends = (f"{value:{sign}.{max(0, digits)}f}" for value in values)
    return Cell(mean, f"[{', '.join(ends)}]" if width > 0 else "")


def _exponent(value: float) -> int:
    """Of ten, of the first digit.

    >>> _exponent(0.034), _exponent(5.0)
    (-2, 0)
    """
    return int(f"{value:e}".partition("e")[2])


def _plain(cell: Cell) -> str:
    text = " ".join(part for part in (cell.text, cell.below) if part)
    return f"**{text}**" if cell.verdict else text


def _line(words: Sequence[str]) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"


def one_line(text: str, most: int = 300) -> str:
    """The text without line breaks, cut off where it is too long."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
