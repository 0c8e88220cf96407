"""Pictures of bench/growth.py: cost against size, and a soak over its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from bench.growth_lab.fits import Fit
    from bench.growth_lab.parts import Part, Point
    from bench.growth_lab.soak import Piece

COLOURS = {"gateway": "#1b7837", "decoder": "#b35806", "worker": "#542788", "all": "#222222"}
LINE = "#777777"


def _pyplot() -> Any:
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, only for pictures

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    return plt


def growth(found: list[tuple[Part, list[Point], Fit, Fit]], path: Path) -> Path:
    """One column for each part: CPU above, memory below."""
    plt = _pyplot()
    figure, rows = plt.subplots(
        2, len(found), figsize=(max(6, 3.4 * len(found)), 6.5), layout="constrained", squeeze=False, sharex="col"
    )
    for column, (part, points, cpu, memory) in enumerate(found):
        above, below = rows[0][column], rows[1][column]
        sizes = [point.size for point in points]
        for role in points[0].cpu_us:
            above.plot(sizes, [point.cpu_us[role] for point in points], "o-", ms=3, color=COLOURS[role], label=role)
            below.plot(
                sizes, [point.memory[role] / 2**20 for point in points], "o-", ms=3, color=COLOURS[role], label=role
            )
        above.plot(sizes, [p.cpu_total_us for p in points], "o-", ms=3, color=COLOURS["all"], label="all")
        below.plot(sizes, [p.memory_total / 2**20 for p in points], "o-", ms=3, color=COLOURS["all"], label="all")
        below.set_xlabel(part.what)
        above.set_title(f"{part.name}: CPU {cpu.kind},\nmemory {memory.kind}", fontsize=9)
        above.set_ylabel(f"CPU µs per {part.per}", fontsize=8)
        below.set_ylabel("resident MiB", fontsize=8)
        for axes in (above, below):
            axes.set_xscale("log")
            axes.set_ylim(bottom=0)
            axes.tick_params(labelsize=8)
            axes.xaxis.label.set_size(8)
    lines, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def soak(pieces: list[Piece], path: Path) -> Path:
    """Latency and memory over the requests."""
    plt = _pyplot()
    ends = np.cumsum([len(piece.latencies) for piece in pieces])
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 6.5), layout="constrained", sharex=True)
    for share, colour in ((50, COLOURS["gateway"]), (99, COLOURS["decoder"])):
        values = [1e3 * float(np.percentile(piece.latencies, share)) for piece in pieces]
        above.plot(ends, values, "o-", ms=2, color=colour, label=f"p{share}")
    above.set_ylim(bottom=0)
    above.set_ylabel("latency, ms")
    above.legend(frameon=False)
    for role in pieces[0].memory:
        first = pieces[0].memory[role]
        values = [(piece.memory[role] - first) / 2**20 for piece in pieces]
        below.plot(ends, values, "o-", ms=2, color=COLOURS[role], label=f"{role}, over {first / 2**20:.0f} MiB")
    below.axhline(0, color=LINE, linewidth=0.5)
    below.set_ylabel("resident MiB more than after the first piece")
    below.set_xlabel("requests")
    below.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
