"""Pictures made of lines and words, as SVG: small, sharp, and part of a page."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

INK, GREY, PALE, GREEN, RED, BLUE = "#1c1c1c", "#8a8a8a", "#dcdcdc", "#0a6b2d", "#a32018", "#1f5fa8"
SIZE = 13  # of letters, pixels
GAP = 8  # between labels, pixels
DOT = 5  # from a dot's middle to what is beside it, pixels
WIDTH_OF_LETTER = 0.56  # of a sans-serif, on average, in its size


def text(
    x: float, y: float, words: str, anchor: str = "start", colour: str = INK, bold: bool = False
) -> str:
    """Words whose base line begins, ends or has its middle at a place."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{weight}>'
        f"{html.escape(words)}</text>"
    )


def line(
    x1: float, y1: float, x2: float, y2: float, colour: str = INK, width: float = 1, dash: str = ""
) -> str:
    """A line; a dash is say "4 3"."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width}"{dashed}/>'
    )


def dot(x: float, y: float, colour: str = INK, radius: float = 4) -> str:
    """A filled circle."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>'


def picture(width: float, height: float, parts: Sequence[str]) -> str:
    """The whole, on white."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="system-ui, sans-serif" '
        f'font-size="{SIZE}"><rect width="100%" height="100%" fill="white"/>'
        + "".join(parts)
        + "</svg>"
    )


def width_of(words: str) -> float:
    """About how wide words are, pixels."""
    return len(words) * SIZE * WIDTH_OF_LETTER


@dataclass(frozen=True)
class Axis:
    """Values from low to high as pixels from start to end."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> Axis:
        """An axis with room for the values; from 0 on if that is nearer than they are apart."""
        low, high = min(values), max(values)
        if 0 <= low < high - low:
            return cls(0.0, high + 0.06 * high, start, end)
        margin = 0.08 * ((high - low) or abs(high) or 1.0)
        return cls(low - margin, high + margin, start, end)

    def __call__(self, value: float) -> float:
        """Where a value is."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, beside: bool = False) -> list[float]:
        """Round values on the axis, three to eight of them.

        Args:
            beside: labels stand side by side: of those that would touch there are fewer.

        >>> Axis(0, 103, 0, 1).ticks()
        [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]
        >>> Axis(0, 103, 0, 120).ticks(beside=True)
        [0.0, 50.0, 100.0]
        """
        span = self.high - self.low
        power = 10 ** math.floor(math.log10(span / 3))
        steps = [factor * power for factor in (1, 2, 5, 10, 20, 50)]
        fine = max(i for i, step in enumerate(steps) if i == 0 or span / step >= 3)
        found = self._multiples(steps[fine])
        for step, coarser in pairwise(steps[fine:]):
            widest = max((width_of(number(value)) for value in found), default=0.0)
            if not beside or abs(self(step) - self(0)) >= widest + GAP:
                break
            found = self._multiples(coarser)
        return found

    def _multiples(self, step: float) -> list[float]:
        """Of the step, on the axis."""
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [round(float(i * step), 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A tick's label.

    >>> number(0.30000000000000004), number(20.0), number(0.0)
    ('0.3', '20', '0')
    """
    return f"{value:.4g}"


@dataclass(frozen=True)
class Box:
    """A rectangle that words or a mark take up."""

    left: float
    top: float
    right: float
    bottom: float

    def within(self, other: Box) -> bool:
        """Whether it lies in another one."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.top <= self.top and self.bottom <= other.bottom

    def meets(self, other: Box) -> bool:
        """Whether they share a place."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom


def place_labels(
    points: Sequence[tuple[float, float, str]], room: Box, taken: Sequence[Box] = ()
) -> list[tuple[Box, str]]:
    """A place for each point's words, beside it, and where possible on nothing else.

    Of those that are free it is the first whose line to the point passes the fewest others.

    Args:
        points: (x, y, words).
        room: where words may stand.
        taken: where they should not.

    Returns:
        Of each, the words' rectangle and "start" or "end", the side that they are aligned to.
    """
    taken = [*taken, *(Box(x - DOT, y - DOT, x + DOT, y + DOT) for x, y, _ in points)]
    placed = []
    for x, y, words in points:
        width = width_of(words)
        others = [(x2, y2) for x2, y2, _ in points if math.hypot(x2 - x, y2 - y) > DOT]
        free = [
            (box, anchor)
            for box, anchor in _places(x, y, width)
            if box.within(room) and not any(box.meets(other) for other in taken)
        ]
        place = min(
            free or [next(_places(x, y, width))],
            key=lambda place: sum(_passes((x, y), beside(*place), other) for other in others),
        )
        box = place[0]
        taken.append(Box(box.left - GAP, box.top, box.right + GAP, box.bottom))
        placed.append(place)
    return placed


def beside(box: Box, anchor: str) -> tuple[float, float]:
    """Where a line to a point's words ends."""
    return box.left if anchor == "start" else box.right, (box.top + box.bottom) / 2


def _passes(start: tuple[float, float], end: tuple[float, float], dot: tuple[float, float]) -> bool:
    """Whether a line touches a dot."""
    (x1, y1), (x2, y2), (x, y) = start, end, dot
    length = (x2 - x1) ** 2 + (y2 - y1) ** 2
    along = min(1.0, max(0.0, ((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / length))
    return math.hypot(x - x1 - along * (x2 - x1), y - y1 - along * (y2 - y1)) < DOT


def _places(x: float, y: float, width: float) -> Iterator[tuple[Box, str]]:
    """Where a point's words could be: right or left of it, then farther off."""
    for away in range(20):
        for down in dict.fromkeys((away, -away)):
            for out in dict.fromkeys((8, 8 + 6 * away)):
                top = y - SIZE / 2 + down * SIZE * 0.75
                for left, anchor in ((x + out, "start"), (x - out - width, "end")):
                    yield Box(left, top, left + width, top + SIZE), anchor
