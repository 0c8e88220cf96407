"""Pictures of one overload round: rates and latencies over time, and the distributions of latency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from bench.overload_account import Account

BIN_S = 0.1
GOOD, REFUSED, LATE, LINE = "#1b7837", "#b35806", "#c51b7d", "#555555"


def draw(account: Account, folder: Path) -> list[Path]:
    """Write the pictures into `folder`; their paths."""
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, only for pictures

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - as above

    folder.mkdir(parents=True, exist_ok=True)
    return [_over_time(account, folder, plt), _distributions(account, folder, plt)]


def _over_time(account: Account, folder: Path, plt: Any) -> Path:
    shots, capacity = account.taken.shots, account.world.capacity
    end = max(end for _, end in account.spans.values())
    edges = np.arange(0, end + BIN_S, BIN_S)
    good = shots.good(account.deadline_s)
    figure, (rates, times) = plt.subplots(2, 1, figsize=(11, 7), sharex=True, layout="constrained")
    for label, colour, when in (
        ("refused", REFUSED, shots.answered[account.refused]),
        ("answered in time", GOOD, shots.answered[good]),
        ("accepted, and late", LATE, shots.answered[account.accepted & ~good]),
    ):
        rates.step(edges[:-1], np.histogram(when, edges)[0] / BIN_S, where="post", color=colour, label=label)
    rates.axhline(capacity, color=LINE, linestyle="--", linewidth=1, label="capacity")
    rates.set_yscale("symlog", linthresh=capacity / 10)
    rates.set_ylim(bottom=0)
    rates.set_ylabel("answers a second")
    rates.legend(loc="upper left", ncols=4, frameon=False)
    for chosen, colour in ((account.refused, REFUSED), (account.accepted, GOOD)):
        times.scatter(shots.due[chosen], 1e3 * (shots.answered - shots.due)[chosen], s=2, color=colour, linewidths=0)
    times.axhline(account.world.deadline_ms, color=LINE, linestyle="--", linewidth=1)
    times.set_yscale("log")
    times.set_ylabel("latency from when due, ms")
    times.set_xlabel("s")
    for name, (begin, stop) in account.spans.items():
        times.axvline(begin, color=LINE, linewidth=0.5)
        rates.axvline(begin, color=LINE, linewidth=0.5)
        if stop - begin >= 1:
            rates.annotate(name, (begin, 1.01), xycoords=("data", "axes fraction"), fontsize=8)
    path = folder / "overload_time.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _distributions(account: Account, folder: Path, plt: Any) -> Path:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name in ("low", "half", "2x", "10x", "recovery"):
        _curve(axes, account.part(name).latency_s(200), f"answered at {name}")
    begin, end = account.spans["10x"]
    shots = account.taken.shots
    chosen = account.refused & (shots.due >= begin) & (shots.due < end)
    _curve(axes, (shots.answered - shots.due)[chosen], "refused at 10x")
    axes.axvline(account.world.deadline_ms, color=LINE, linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("latency from when due, ms")
    axes.set_ylabel("share of requests")
    axes.legend(frameon=False)
    path = folder / "overload_latency.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _curve(axes: Any, values: np.ndarray, label: str) -> None:
    if len(values):
        axes.plot(1e3 * np.sort(values), (np.arange(len(values)) + 1) / len(values), label=f"{label} ({len(values):,})")
