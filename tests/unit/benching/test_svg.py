"""Plots are well-formed, hold every point, and survive what is empty, huge or hostile."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import pytest

from gateway.bench import svg
from gateway.bench.svg import Line


def elements(drawn: str, name: str) -> list[ET.Element]:
    return list(ET.fromstring(drawn).iter(name))


@pytest.mark.parametrize(
    ("most", "words"),
    [
        (1.0, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (809.0, ["0", "200", "400", "600", "800", "1,000"]),
        (0.0, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (math.nan, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (12.0, ["0", "2.5", "5", "7.5", "10", "12.5"]),
    ],
)
def test_ticks_are_round_and_reach_the_top(most, words):
    assert svg.steps(most).words == words


def test_a_line_goes_through_its_points_and_breaks_where_there_is_none():
    drawn = svg.lines("t", [Line("a", [(0, 0.0), (5, 1.0), (7, None), (10, 0.5)])], x_name="x", y_name="y")
    (path,) = [path for path in elements(drawn, "path") if "line" in path.get("class", "")]
    assert path.get("d") == "M64.0 240.0L338.0 28.0M612.0 134.0"


def test_dots_are_not_joined():
    drawn = svg.lines("t", [Line("a", [(1, 1.0), (1, 2.0)], "dots")], x_name="x", y_name="y")
    assert len(elements(drawn, "circle")) == 2
    assert [path for path in elements(drawn, "path") if "line" in path.get("class", "")] == []


def test_columns_are_stacked():
    stacks = {"full": [2.0, 0.0], "idle": [1.0, 4.0]}
    drawn = svg.columns("t", ["1", "2"], stacks, x_name="x", y_name="y")
    bars = [(float(bar.get("y")), float(bar.get("height"))) for bar in elements(drawn, "rect")]
    assert len(bars) == 3
    assert bars[0] == pytest.approx((134.0, 106.0))
    assert bars[1] == pytest.approx((81.0, 53.0)), "stands on the one below"


def test_rows_have_their_figures():
    drawn = svg.rows("t", {"a": 10.0, "b": 0.0}, unit="ms")
    assert [text.text for text in elements(drawn, "text")] == ["a", "10 ms", "b", "0 ms"]


def test_what_is_empty_is_drawn_and_words_are_escaped():
    assert svg.lines("<t>", [], x_name="&", y_name='"').count("&lt;t&gt;") == 2
    assert elements(svg.columns("t", [], {}, x_name="x", y_name="y"), "svg")
    assert elements(svg.rows("t", {}, unit="ms"), "svg")


@pytest.mark.parametrize(
    ("value", "words"), [(None, "-"), (math.inf, "-"), (0.01234, "0.0123"), (7.0, "7"), (12345.6, "12,346")]
)
def test_numbers_are_short(value, words):
    assert svg.number(value) == words
