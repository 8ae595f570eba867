"""The figures of a report: what quality costs, and paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gooddrag.bench import svg
from gooddrag.bench.reading import BASELINES, Result, devices_of
from gooddrag.bench.svg import Axis, Box
from gooddrag.bench.tables import ALL, Settings, Summary, numbers_of
from gooddrag.metrics.statistics import Interval

NAMES = {
    "seconds_total": "seconds an edit",
    "seconds_edit": "seconds an edit, without its LoRA",
    "gradient_steps": "gradient steps",
    "true_handle_error": "true handle error, pixels",
    "mae_inside": "mean absolute error inside the mask",
}
PANEL, LEFT, BOTTOM, TOP, RIGHT = (400, 280), 70, 48, 14, 26
ROW, COLUMN = 24, 300  # of the differences: height of a method's row, width of a number's plot


def figures(
    results: Sequence[Result], found: Sequence[Summary], settings: Settings
) -> dict[str, str]:
    """The figures of one data set as SVG, by name; those for which there are numbers.

    Args:
        results: of the data set.
        found: their numbers.
        settings: which numbers are plotted.
    """
    whole = [summary for summary in found if summary.kind == ALL]
    plotted = settings.plotted(numbers_of(results))
    cached = any(result.record.get("adapt_cached") for result in results)
    costs = ["seconds_edit" if cached else "seconds_total", "gradient_steps"]
    if len(devices_of(results)) > 1:
        costs = costs[1:]  # seconds of several devices say nothing of methods
    made = {
        "cost": cost_figure(whole, plotted, costs, settings),
        "differences": difference_figure(whole, plotted, settings),
    }
    return {name: content for name, content in made.items() if content}


def cost_figure(
    found: Sequence[Summary], numbers: Sequence[str], costs: Sequence[str], settings: Settings
) -> str:
    """Each number over each cost: a dot for each method with its intervals; "" without any.

    A row for each number; of a single cost all numbers in one.

    A cost that all methods share is left out.

    What the unedited picture and the pasted patch have, which cost nothing, are lines, or words
    where they would be far outside.
    """
    edited = [s for s in found if s.label not in BASELINES]
    costs = [cost for cost in costs if len({s.means[cost].mean for s in edited if s.ok}) > 1]
    shown = [n for n in numbers if any(n in s.means for s in edited)]
    pairs = [(number, cost) for number in shown for cost in costs]
    if not pairs:
        return ""
    width, height = LEFT + PANEL[0] + RIGHT, TOP + PANEL[1] + BOTTOM
    parts = []
    columns = len(costs) if len(costs) > 1 else len(shown)
    for i, (number, cost) in enumerate(pairs):
        across, down = i % columns, i // columns
        parts.append(f'<g transform="translate({across * width} {down * height})">')
        parts += _cost_panel(found, number, cost, settings)
        parts.append("</g>")
    rows = -(-len(pairs) // columns)
    return svg.picture(columns * width, rows * height, parts)


def _cost_panel(found: Sequence[Summary], number: str, cost: str, settings: Settings) -> list[str]:
    shown = [
        (s.label, s.means[cost], s.means[number])
        for s in found
        if s.label not in BASELINES and cost in s.means and number in s.means
    ]
    lines = {s.label: s.means[number] for s in found if s.label in BASELINES and number in s.means}
    x = Axis.over([v for _, c, _ in shown for v in (c.low, c.high)], LEFT, LEFT + PANEL[0])
    values = [v for _, _, n in shown for v in (n.low, n.high)]
    low, high = min(values), max(values)
    reach = high - low or abs(high)
    near = {k: n for k, n in lines.items() if low - reach <= n.mean <= high + reach}
    y = Axis.over([*values, *(n.mean for n in near.values())], TOP + PANEL[1], TOP)
    parts = _frame(x, y, NAMES.get(cost, cost), NAMES.get(number, number))
    far = ", ".join(f"{k} {n.mean:.3g}" for k, n in lines.items() if k not in near)
    parts.append(svg.text(x.start + 8, TOP + 10, far))
    taken = [Box(x.start, TOP, x.start + 8 + svg.width_of(far), TOP + 12)]
    taken += [Box(x(c.low), y(n.mean) - 1, x(c.high), y(n.mean) + 1) for _, c, n in shown]
    taken += [Box(x(c.mean) - 1, y(n.high), x(c.mean) + 1, y(n.low)) for _, c, n in shown]
    for label, interval in near.items():
        height = y(interval.mean)
        taken.append(Box(x.start, height - 1, x.end, height + 1))
        taken.append(Box(x.end - 4 - svg.width_of(label), height - svg.SIZE - 2, x.end, height))
        parts.append(svg.line(x.start, height, x.end, height, svg.INK, 1, "5 4"))
        parts.append(svg.text(x.end - 4, height - 4, label, "end"))
    places = [(x(c.mean), y(n.mean), label) for label, c, n in shown]
    for (label, c, n), (px, py, _) in zip(shown, places, strict=True):
        colour = svg.INK if label == settings.against else svg.BLUE
        parts.append(svg.line(x(c.low), py, x(c.high), py, colour))
        parts.append(svg.line(px, y(n.low), px, y(n.high), colour))
        parts.append(svg.dot(px, py, colour))
    room = Box(x.start, y.end, x.end, y.start)
    labelled = svg.place_labels(places, room, taken)
    for (box, anchor), (px, py, label) in zip(labelled, places, strict=True):
        left, middle = svg.beside(box, anchor)
        if max(abs(left - px), abs(middle - py)) > 9:
            parts.append(svg.line(px, py, left, middle, svg.GREY, 0.7))
        parts.append(svg.text(left, box.bottom - 2, label, anchor, bold=label == settings.against))
    return parts


def _frame(x: Axis, y: Axis, below: str, beside: str) -> list[str]:
    """Axes with ticks and what they are."""
    parts = []
    for value in y.ticks():
        parts.append(svg.line(x.start, y(value), x.end, y(value), svg.PALE))
        parts.append(svg.text(x.start - 6, y(value) + 4, svg.number(value), "end"))
    for value in x.ticks(beside=True):
        parts.append(svg.line(x(value), y.start, x(value), y.start + 4))
        parts.append(svg.text(x(value), y.start + 18, svg.number(value), "middle"))
    parts.append(svg.line(x.start, y.start, x.end, y.start))
    parts.append(svg.line(x.start, y.start, x.start, y.end))
    parts.append(svg.text((x.start + x.end) / 2, y.start + 38, below, "middle"))
    middle = (y.start + y.end) / 2
    turned = svg.text(16, middle, beside, "middle")
    parts.append(f'<g transform="rotate(-90 16 {middle:.1f})">{turned}</g>')
    return parts


def difference_figure(found: Sequence[Summary], numbers: Sequence[str], settings: Settings) -> str:
    """Each number's paired differences from one method, a row for each other; "" without any.

    The unedited picture and the pasted patch are too far off to stand on one axis with the others.
    """
    compared = [s for s in found if any(number in s.differences for number in numbers)]
    rows = [s for s in compared if s.label not in BASELINES] or compared
    columns = [n for n in numbers if any(n in s.differences for s in rows)]
    if not rows or not columns:
        return ""
    names = max(svg.width_of(s.label) for s in rows) + 24
    top, bottom = 28, 44
    height = top + ROW * len(rows) + bottom
    width = names + (COLUMN + 24) * len(columns)
    parts = [
        svg.text(names - 12, top + ROW * (i + 0.5) + 4, s.label, "end") for i, s in enumerate(rows)
    ]
    for j, number in enumerate(columns):
        start = names + j * (COLUMN + 24)
        of_row = [(i, s.differences[number]) for i, s in enumerate(rows) if number in s.differences]
        ends = [0.0, *(v for _, d in of_row for v in (d.low, d.high))]
        x = Axis.over(ends, start, start + COLUMN)
        parts += _difference_panel(x, dict(of_row), number, top, top + ROW * len(rows), settings)
    return svg.picture(width, height, parts)


def _difference_panel(
    x: Axis,
    of_row: Mapping[int, Interval],
    number: str,
    top: float,
    bottom: float,
    settings: Settings,
) -> list[str]:
    """Dots with intervals beside the line of no difference; coloured where they leave it out."""
    middle = (x.start + x.end) / 2
    parts = [svg.text(middle, top - 10, NAMES.get(number, number), "middle", bold=True)]
    for value in x.ticks(beside=True):
        parts.append(svg.line(x(value), top, x(value), bottom, svg.PALE))
        parts.append(svg.text(x(value), bottom + 16, svg.number(value), "middle"))
    parts.append(svg.line(x(0), top, x(0), bottom, svg.INK, 1.5))
    for i, interval in of_row.items():
        y = top + ROW * (i + 0.5)
        verdict = settings.verdict(number, interval)
        colour = {"better": svg.GREEN, "worse": svg.RED}.get(verdict, svg.INK)
        parts.append(svg.line(x(interval.low), y, x(interval.high), y, colour, 2))
        parts.append(svg.dot(x(interval.mean), y, colour))
    higher = settings.is_higher_better(number)
    words = f"minus {settings.against}; {'right' if higher else 'left'} is better"
    return [*parts, svg.text(middle, bottom + 36, words, "middle")]
