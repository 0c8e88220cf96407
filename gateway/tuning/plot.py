"""p99 against rate: a plot in characters, and the same as a PNG where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING

from rich.text import Text

from gateway.errors import InvalidSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gateway.tuning.search import Probe

WIDTH, HEIGHT = 60, 12
"""Characters of the plot's inside."""

TOP_MAX = 2.0
"""The plot's top in deadlines: what is later stands at its edge."""


def drawn(probes: Sequence[Probe], deadline_ms: float) -> Text:
    """The plot in characters: a dot kept the deadline, a cross did not; the line is the deadline."""
    top = _top(probes, deadline_ms)
    rate_max = max((probe.rate for probe in probes), default=1.0)
    rows: list[list[tuple[str, str]]] = [[(" ", "")] * (WIDTH + 1) for _ in range(HEIGHT + 1)]

    def row_of(value: float) -> int:
        share = min(value / top, 1.0) if not math.isnan(value) else 1.0
        return HEIGHT - round(share * HEIGHT)

    rows[row_of(deadline_ms)] = [("─", "dim")] * (WIDTH + 1)
    for probe in sorted(probes, key=lambda found: found.confirms):
        mark = ("●", "green") if probe.meets(deadline_ms) else ("x", "red")
        rows[row_of(probe.p99_ms)][round(probe.rate / rate_max * WIDTH)] = mark
    text = Text("p99 ms\n")
    for number, row in enumerate(rows):
        value = top * (HEIGHT - number) / HEIGHT
        named = number in (0, HEIGHT, row_of(deadline_ms))
        value = deadline_ms if number == row_of(deadline_ms) else value
        text.append(f"{value:>8.0f} ┤" if named else f"{'':>8} │", "dim")
        for character, style in row:
            text.append(character, style)
        text.append("\n")
    text.append(f"{'':>9}└{'─' * (WIDTH + 1)}\n{'':>10}0{f'{rate_max:,.0f}':>{WIDTH}} images/s", "dim")
    return text


def check_png(path: Path) -> None:
    """Raise InvalidSettings, before anything is measured, when `path` cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InvalidSettings("--plot needs matplotlib; install it with: pip install matplotlib")
    if not path.absolute().parent.is_dir():
        raise InvalidSettings(f"--plot {path}: there is no folder {path.absolute().parent}")


def save_png(path: Path, title: str, probes: Sequence[Probe], deadline_ms: float) -> None:
    """Draw to a file. Raises InvalidSettings when it cannot be written."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - is not installed with us

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    top = _top(probes, deadline_ms)
    for met, colour, label in ((True, "tab:green", "kept"), (False, "tab:red", "late or refused")):
        chosen = [probe for probe in probes if probe.meets(deadline_ms) is met]
        axes.scatter(
            [probe.rate for probe in chosen], [min(probe.p99_ms, top) for probe in chosen], color=colour, label=label
        )
    axes.axhline(deadline_ms, linestyle="--", color="grey", label="deadline")
    axes.set(title=title, xlabel="offered images/s", ylabel="p99 ms", xlim=(0, None), ylim=(0, top))
    axes.legend()
    try:
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise InvalidSettings(f"--plot {path}: cannot be written ({error.strerror})") from None


def _top(probes: Sequence[Probe], deadline_ms: float) -> float:
    """The largest value of the axis."""
    largest = max((probe.p99_ms for probe in probes if not math.isnan(probe.p99_ms)), default=0.0)
    return min(max(1.1 * largest, 1.2 * deadline_ms), TOP_MAX * deadline_ms)
