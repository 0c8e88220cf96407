"""Plots for the eye, as PNG files. Counts nothing itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from bench.lab import promises
from bench.lab.law import T4
from bench.lab.machine import Outcome
from bench.lab.scenarios import LOADS, MIXES, NOISY, POLICIES, SCENARIOS, SECONDS, SHORT, STEP_AT_S
from bench.lab.traces import START_NS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from bench.lab.scenarios import Laboratory

COLOURS = dict(zip(POLICIES, ("#000000", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"), strict=True))
"""Source: Okabe and Ito; told apart by colour-blind people too."""


def _tidy(axes: Axes, title: str, x: str = "", y: str = "") -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _line(axes: Axes, policy: str, x: Sequence[float], y: Sequence[float]) -> None:
    core = policy == "core"
    axes.plot(
        x, y, color=COLOURS[policy], label=policy, marker="o", ms=4, lw=2.5 if core else 1.3, zorder=3 if core else 2
    )


def goodput(lab: Laboratory) -> Figure:
    """Goodput over load, by number of workers."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, len(SECONDS), sharey=True)
    for axes, workers in zip(panels, SECONDS, strict=True):
        loads = [load for load in LOADS if f"poisson_{load}x_n{workers}" in lab.names]
        for policy in POLICIES:
            runs = [lab.played(f"poisson_{load}x_n{workers}", policy) for load in loads]
            _line(axes, policy, loads, [run.goodput_share for run in runs])
        axes.set_xscale("log")
        axes.set_xticks(loads, ["" if load == 0.9 else f"{load:g}" for load in loads])
        axes.minorticks_off()
        axes.axhline(1, color="grey", lw=0.8, ls=":")
        _tidy(axes, f"{workers} worker{'s' if workers > 1 else ''}", "offered / capacity")
    panels[0].set_ylim(0, 1.08)
    panels[0].set_ylabel("goodput / capacity")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=len(POLICIES))
    figure.suptitle(f"Answers in time, l(b) = 0.77 b + 2.9 ms, deadline 50 ms, {T4.capacity(1):.0f} images/s a worker")
    return figure


def step(lab: Laboratory) -> Figure:
    """Latency of every answer over time, and what became of the rest, before, in and after an overload."""
    figure = Figure(figsize=(13, 2.1 * len(POLICIES)), layout="constrained")
    panels = figure.subplots(len(POLICIES), 2, sharex=True, width_ratios=(3, 2))
    for (left, right), policy in zip(panels, POLICIES, strict=True):
        run = lab.played("step_0", policy)
        seconds = (run.trace.arrival_ns - START_NS) / 1e9
        left.plot(seconds, run.latency_ms, ".", ms=1.5, color=COLOURS[policy])
        left.axhline(T4.deadline_ns / 1e6, color="red", lw=0.8)
        left.set_ylim(0.5, 5000)
        left.set_yscale("log")
        edges = np.arange(0, STEP_AT_S[-1] + 0.05, 0.05)
        lost = {
            "refused at once": (Outcome.REFUSED,),
            "accepted, given up": (Outcome.DROPPED, Outcome.EXPIRED),
            "answered late": (Outcome.LATE,),
        }
        counted = [np.histogram(seconds[np.isin(run.outcome, kinds)], edges)[0] for kinds in lost.values()]
        right.stackplot(edges[:-1], counted, labels=list(lost), colors=("#bbbbbb", "#e69f00", "#d62728"), step="post")
        _tidy(left, policy, y="latency, ms")
        _tidy(right, "", y="per 50 ms")
        for axes in (left, right):
            for at in STEP_AT_S[:2]:
                axes.axvline(at, color="grey", lw=0.8, ls=":")
    for axes in panels[-1]:
        axes.set_xlabel("arrival, s")
    panels[0][1].legend(fontsize=8, loc="upper right")
    figure.suptitle("1x until 1.5 s, 10x until 2.5 s, then 0.5x; red line: the deadline")
    return figure


def _bars(axes: Axes, labels: list[str], values: dict[str, list[float]]) -> None:
    width = 0.8 / len(values)
    for index, (policy, heights) in enumerate(values.items()):
        places = np.arange(len(labels)) + (index - (len(values) - 1) / 2) * width
        axes.bar(places, heights, width, color=COLOURS[policy], label=policy)
    axes.set_xticks(range(len(labels)), labels, rotation=25, ha="right", fontsize=8)


def mixes(lab: Laboratory) -> Figure:
    """All that is not Poisson with one deadline and one model: goodput, and promises that were broken."""
    names = [name for name in (*MIXES, *NOISY) if name in lab.names]
    figure = Figure(figsize=(16, 8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    runs = {policy: [lab.played(name, policy) for name in names] for policy in POLICIES}
    labels = [SCENARIOS[name].title for name in names]
    _bars(upper, labels, {policy: [run.goodput_share for run in played] for policy, played in runs.items()})
    broken = {
        policy: [100 * (run.late + run.dropped) / max(1, run.accepted) for run in played]
        for policy, played in runs.items()
    }
    _bars(lower, labels, broken)
    _tidy(upper, "", y="goodput / capacity")
    _tidy(lower, "", y="% of the accepted\nnot answered in time")
    upper.legend(fontsize=8, ncols=len(POLICIES), loc="upper center", bbox_to_anchor=(0.5, 1.12))
    return figure


def optimum(lab: Laboratory) -> Figure:
    """On short traces, against what could have been done with knowledge of the future."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    loads = [float(name.removeprefix("short_").removesuffix("x")) for name in SHORT]
    for policy in POLICIES:
        _line(axes, policy, loads, [lab.played(name, policy).on_time / lab.optimum(name) for name in SHORT])
    axes.axhline(0.95, color="grey", lw=0.8, ls=":")
    axes.set_ylim(0, 1.03)
    axes.legend(fontsize=8, loc="lower left")
    _tidy(axes, "on time / exact offline optimum, 1 worker", "offered / capacity")
    return figure


def classes(lab: Laboratory) -> Figure:
    """Real time at half capacity beside a batch class that asks for twice the capacity."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    shares = [promises.batch_share(lab, policy) for policy in POLICIES]
    realtime, batch = (np.array(column) for column in zip(*shares, strict=True))
    axes.bar(list(POLICIES), realtime, color="#0072b2", label="real time (asks for 0.5)")
    axes.bar(list(POLICIES), batch, bottom=realtime, color="#bbbbbb", label="batch (asks for 2)")
    axes.axhline(0.5, color="#0072b2", lw=0.8, ls=":")
    axes.axhline(0.9, color="grey", lw=0.8, ls=":")
    axes.set_ylim(0, 1.15)
    axes.legend(fontsize=8, loc="upper right", ncols=2)
    _tidy(axes, "answers in time under a saturating batch class", y="goodput / capacity")
    return figure


PLOTS = {"sweep": (goodput,), "step": (step,), "mixes": (mixes, classes), "optimum": (optimum,)}
"""Section by name: its plots, each saved under its own name."""


def save(lab: Laboratory, sections: Sequence[str], folder: Path) -> list[Path]:
    """Write the plots of these sections; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for plot in (plot for section in sections for plot in PLOTS.get(section, ())):
        paths.append(folder / f"{plot.__name__}.png")
        plot(lab).savefig(paths[-1], dpi=110)
    return paths
