"""Figures: well formed, dots where the numbers are, words on nothing else."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from gooddrag.bench.figures import cost_figure, difference_figure
from gooddrag.bench.svg import GREEN, INK, RED, Axis, Box, beside, place_labels, width_of
from gooddrag.bench.tables import Summary
from gooddrag.metrics.statistics import Interval
from tests.test_report import settings

SVG = "{http://www.w3.org/2000/svg}"


def summary(label, seconds, error, difference=None, steps=210.0) -> Summary:
    means = {"seconds_total": seconds, "err": error, "gradient_steps": steps}
    made = {k: Interval(v, 0.9 * v, 1.1 * v, 20) for k, v in means.items()}
    differences = {} if difference is None else {"err": Interval(*difference, 20)}
    return Summary(
        *("all", "", label, 20, 20, 1, made, differences),
        having={},
        pairs=20,
        samples=20,
    )


def parsed(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(figure)


def words(figure: str) -> list[str]:
    return [element.text for element in parsed(figure).iter(f"{SVG}text")]


def dots(figure: str) -> list[tuple[float, float, str]]:
    found = parsed(figure).iter(f"{SVG}circle")
    return [(float(c.get("cx")), float(c.get("cy")), c.get("fill")) for c in found]


METHODS = [
    summary("identity", 0.001, 9.0, steps=0.0),
    summary("paste", 0.001, 3.0, steps=0.0),
    summary("gooddrag", 1.0, 4.0),
    summary("a < b", 2.0, 2.0, steps=100.0),
]


class TestCost:
    def test_a_dot_for_each_method_where_its_numbers_are(self):
        figure = cost_figure(METHODS, ["err"], ["seconds_total"], settings())
        ours, theirs = dots(figure)
        assert ours[0] < theirs[0]  # costs less
        assert ours[1] < theirs[1]  # has the larger error: is further up
        assert ours[2] == INK  # the one that the others are compared with
        assert {"gooddrag", "a < b", "seconds an edit", "err"} <= set(words(figure))

    def test_baselines_cost_nothing_and_are_lines(self):
        figure = cost_figure(METHODS, ["err"], ["seconds_total"], settings())
        dashed = [e for e in parsed(figure).iter(f"{SVG}line") if e.get("stroke-dasharray")]
        assert len(dashed) == 1
        assert "paste" in words(figure)
        assert "identity 9" in words(figure)  # too far off

    def test_a_cost_that_all_share_is_left_out(self):
        methods = [summary("a", 1.0, 4.0), summary("b", 2.0, 3.0)]
        assert cost_figure(methods, ["err"], ["gradient_steps"], settings()) == ""
        both = cost_figure(methods, ["err"], ["seconds_total", "gradient_steps"], settings())
        assert len(dots(both)) == 2

    def test_nothing_to_show(self):
        assert cost_figure(METHODS[:2], ["err"], ["seconds_total"], settings()) == ""
        assert cost_figure(METHODS, ["other"], ["seconds_total"], settings()) == ""


class TestDifferences:
    def test_colours_say_what_is_sure(self):
        rows = [
            summary("identity", 0.0, 9.0, (5.0, 4.0, 6.0)),
            summary("worse", 1.0, 5.0, (1.0, 0.5, 1.5)),
            summary("better", 1.0, 3.0, (-1.0, -1.5, -0.5)),
            summary("same", 1.0, 4.0, (0.1, -0.4, 0.6)),
        ]
        figure = difference_figure(rows, ["err"], settings())
        found = dots(figure)
        assert [colour for _, _, colour in found] == [RED, GREEN, INK]
        assert found[1][0] < found[2][0] < found[0][0]
        assert "minus gooddrag; left is better" in words(figure)
        assert "identity" not in words(figure)

    def test_few_pairs_prove_nothing(self):
        rows = [summary("better", 1.0, 3.0, (-1.0, -1.5, -0.5))]
        figure = difference_figure(rows, ["err"], settings(pairs=21))
        assert [colour for _, _, colour in dots(figure)] == [INK]

    def test_no_difference_at_all(self):
        rows = [summary("same", 1.0, 4.0, (0.0, 0.0, 0.0))]
        assert len(dots(difference_figure(rows, ["err"], settings()))) == 1

    def test_nothing_to_compare_with(self):
        assert difference_figure([summary("a", 1.0, 4.0)], ["err"], settings()) == ""


class TestAxis:
    @pytest.mark.parametrize(
        ("values", "low"), [([0.1, 5.0], 0.0), ([4.0, 5.0], 3.92), ([-1.0, 1.0], -1.16)]
    )
    def test_it_begins_at_zero_if_that_is_near(self, values, low):
        assert Axis.over(values, 0, 100).low == pytest.approx(low)

    @pytest.mark.parametrize("values", [[0.0], [3.0], [-2.0, -2.0], [1e-9, 2e-9], [1e7, 3e7]])
    def test_all_values_are_on_it_with_a_few_ticks(self, values):
        axis = Axis.over(values, 10, 110)
        assert all(10 <= axis(value) <= 110 for value in values)
        assert 3 <= len(axis.ticks()) <= 9
        assert all(axis.low <= tick <= axis.high for tick in axis.ticks())


def test_labels_stand_on_nothing_else():
    points = [(50.0 + 3 * i, 100.0 + 2 * (i % 3), f"method {i}") for i in range(8)]
    placed = place_labels(points, Box(0, 0, 400, 300))
    boxes = [box for box, _ in placed]
    for i, box in enumerate(boxes):
        assert box.right - box.left == pytest.approx(width_of(points[i][2]))
        assert not any(box.meets(other) for other in boxes[:i])
        assert not any(box.left < x < box.right and box.top < y < box.bottom for x, y, _ in points)


def test_a_label_s_line_passes_no_other_point():
    upper, lower = (200.0, 150.0, "upper"), (200.0, 165.0, "lower")
    around = Box(0, 90, 400, 200)  # the nearest free places are below
    placed = place_labels([upper, lower], Box(0, 0, 400, 300), [around])
    x, y = beside(*placed[0])
    assert abs(x - 200) * 15 / math.hypot(x - 200, y - 150) >= 5  # from the lower to the line


def test_words_are_escaped():
    figure = cost_figure(METHODS, ["err"], ["seconds_total"], settings())
    assert "a &lt; b" in figure
    assert re.search(r"<text[^>]*>a <", figure) is None
