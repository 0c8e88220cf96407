"""Plots as SVG text: lines, bars, stacked bars. Pure; colours come from the page's style sheet by class (c0 to c7)."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 64, 28, 28, 40
"""The margins, in the plot's own units, which are pixels where it is not scaled."""

COLOURS = 8
_TICKS = 5
_ROW, _ROW_LABEL = 30, 150


class Line(NamedTuple):
    """One line; a point whose y is None interrupts it. `style`: "dashed", or "dots" for points that are not joined."""

    name: str
    points: Sequence[tuple[float, float | None]]
    style: str = ""


class Ticks(NamedTuple):
    """Places on an axis and their words."""

    places: Sequence[float]
    words: Sequence[str]


def steps(most: float) -> Ticks:
    """Round places from 0 up to `most`, and one beyond it."""
    if not (math.isfinite(most) and most > 0):
        most = 1.0
    rough = most / _TICKS
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= rough * (1 - 1e-9))
    places = [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]
    return Ticks(places, [number(place) for place in places])


def number(value: float | None) -> str:
    """A figure for people: three digits or so, thousands apart."""
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) >= 100 or value == round(value):  # noqa: PLR2004 - three digits
        return f"{value:,.0f}"
    return f"{value:.3g}"


def lines(title: str, drawn: Sequence[Line], *, x_name: str, y_name: str, x_ticks: Ticks | None = None) -> str:
    """Lines over an axis from 0; `x_ticks`: places on the horizontal one, else round ones."""
    points = [point for line in drawn for point in line.points]
    y_ticks = steps(max((y for _, y in points if y is not None), default=0.0))
    right = max((x for x, _ in points), default=0.0) or 1.0
    if x_ticks is None:
        whole = steps(right)
        count = sum(place <= right for place in whole.places)
        x_ticks = Ticks(whole.places[:count], whole.words[:count])
    top = y_ticks.places[-1]

    def x_of(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / right

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    parts = _axes(x_ticks, y_ticks, x_of, y_of, x_name, y_name)
    for place, line in enumerate(drawn):
        path, pen = "", "M"
        for x, y in line.points:
            if y is None:
                pen = "M"
                continue
            at = x_of(x), y_of(y)
            if line.style == "dots":
                parts.append(f'<circle class="bar c{place % COLOURS}" cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="4"/>')
                continue
            path += f"{pen}{at[0]:.1f} {at[1]:.1f}"
            pen = "L"
        if path:
            parts.append(f'<path class="line c{place % COLOURS} {line.style}" d="{path}"/>')
    return _framed(title, parts, [line.name for line in drawn], HEIGHT)


def columns(
    title: str, names: Sequence[str], stacks: Mapping[str, Sequence[float]], *, x_name: str, y_name: str
) -> str:
    """A column per name, with a part per stack, from below."""
    tops = [sum(values[place] for values in stacks.values()) for place in range(len(names))]
    y_ticks = steps(max(tops, default=0.0))
    width = (WIDTH - LEFT - RIGHT) / max(len(names), 1)
    x_ticks = Ticks([place + 0.5 for place in range(len(names))], names)

    def x_of(value: float) -> float:
        return LEFT + width * value

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / y_ticks.places[-1]

    parts = _axes(x_ticks, y_ticks, x_of, y_of, x_name, y_name)
    below = [0.0] * len(names)
    for colour, values in enumerate(stacks.values()):
        for place, value in enumerate(values):
            high, low = y_of(below[place] + value), y_of(below[place])
            below[place] += value
            if value > 0:
                parts.append(
                    f'<rect class="bar c{colour % COLOURS}" x="{x_of(place + 0.15):.1f}" y="{high:.1f}" '
                    f'width="{0.7 * width:.1f}" height="{max(low - high, 0.5):.1f}"/>'
                )
    return _framed(title, parts, list(stacks), HEIGHT)


def rows(title: str, values: Mapping[str, float], *, unit: str) -> str:
    """A horizontal bar per name, with its figure behind it."""
    most = max(values.values(), default=0.0) or 1.0
    room = WIDTH - _ROW_LABEL - 110
    parts = []
    for place, (name, value) in enumerate(values.items()):
        y = TOP + place * _ROW
        length = room * value / most
        parts.append(f'<text class="tick" x="{_ROW_LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<rect class="bar c{place % COLOURS}" x="{_ROW_LABEL}" y="{y}" width="{max(length, 1):.1f}" height="20"/>'
        )
        words = f"{number(value)} {escape(unit)}"
        parts.append(f'<text class="tick" x="{_ROW_LABEL + length + 6:.1f}" y="{y + 15}">{words}</text>')
    return _framed(title, parts, [], TOP + _ROW * max(len(values), 1) + 6)


def _axes(
    x_ticks: Ticks,
    y_ticks: Ticks,
    x_of: Callable[[float], float],
    y_of: Callable[[float], float],
    x_name: str,
    y_name: str,
) -> list[str]:
    parts = []
    for place, words in zip(y_ticks.places, y_ticks.words, strict=True):
        y = y_of(place)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(words)}</text>')
    for place, words in zip(x_ticks.places, x_ticks.words, strict=True):
        where = f'x="{x_of(place):.1f}" y="{HEIGHT - BOTTOM + 16}"'
        parts.append(f'<text class="tick" {where} text-anchor="middle">{escape(words)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_name)}</text>')
    parts.append(f'<text class="name" x="4" y="{TOP - 10}">{escape(y_name)}</text>')
    return parts


def _framed(title: str, parts: list[str], names: list[str], height: int) -> str:
    """The whole figure, with a legend where there are names."""
    legend = ""
    if names:
        entries = (f'<span><i class="c{place % COLOURS}"></i>{escape(name)}</span>' for place, name in enumerate(names))
        legend = f'<div class="legend">{"".join(entries)}</div>'
    drawing = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}{legend}</figure>"
