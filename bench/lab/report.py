"""Tables for the terminal. Counts nothing itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from bench.lab import promises
from bench.lab.law import T4
from bench.lab.machine import Outcome
from bench.lab.scenarios import (
    LOADS,
    MIXES,
    NOISY,
    POLICIES,
    SCENARIOS,
    SECONDS,
    SHORT,
    STEP_SEEDS,
    eager_mean_ms,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.lab.decision import Cost
    from bench.lab.machine import Played
    from bench.lab.promises import Promise
    from bench.lab.scenarios import Laboratory

LEGEND = "goodput / capacity; in brackets, % of the accepted: late, dropped"


def percent(share: float) -> str:
    """Short, and 0 only if it is."""
    if share >= 0.1:
        return f"{share * 100:.0f}"
    return "0" if share == 0 else "<.01" if share < 0.0001 else f"{share * 100:.2g}"


def cell(run: Played) -> str:
    """Goodput and the broken promises of one run."""
    accepted = max(1, run.accepted)
    if not run.late and not run.dropped:
        return f"{run.goodput_share:.3f}"
    return f"{run.goodput_share:.3f} [dim]({percent(run.late / accepted)}, {percent(run.dropped / accepted)})[/]"


def by_policy(lab: Laboratory, title: str, names: Iterable[str]) -> Table:
    """One line per scenario, every policy beside the core."""
    table = Table("scenario", *POLICIES, title=f"{title}: {LEGEND}", title_justify="left")
    for name in names:
        if name in lab.names:
            table.add_row(SCENARIOS[name].title, *(cell(lab.played(name, policy)) for policy in POLICIES))
    return table


def sweeps(lab: Laboratory) -> Table:
    """Loads by numbers of workers."""
    return by_policy(
        lab,
        f"T4-like, capacity {T4.capacity(1):.0f} images/s a worker",
        [f"poisson_{load}x_n{workers}" for workers in SECONDS for load in LOADS],
    )


def core_latency(lab: Laboratory) -> Table:
    """What the core's clients see."""
    table = Table(
        *("scenario", "refused %", "p50 ms", "p99 ms", "max ms", "images a batch", "busy"),
        title="the core",
        title_justify="left",
    )
    for name in lab.names:
        if name.startswith(("poisson_", "gpu_", "noise_")) or name in MIXES:
            run = lab.played(name)
            table.add_row(
                SCENARIOS[name].title,
                percent(run.count(Outcome.REFUSED) / len(run.trace)),
                *(f"{run.latency_percentile(share):.1f}" for share in (50, 99, 100)),
                f"{run.batch_mean:.1f}",
                f"{run.busy_share:.3f}",
            )
    return table


def optimum(lab: Laboratory) -> Table:
    """On short traces, against what could have been done with knowledge of the future."""
    table = Table("scenario", "optimum", *POLICIES, title="on time / exact offline optimum", title_justify="left")
    for name in SHORT:
        best = lab.optimum(name)
        shares = (lab.played(name, policy).on_time / best for policy in POLICIES)
        table.add_row(SCENARIOS[name].title, f"{best} of {len(lab.trace(name))}", *(f"{share:.3f}" for share in shares))
    return table


def steps(lab: Laboratory) -> Table:
    """How long the overload is felt once it is over."""
    table = Table("", *POLICIES, title="after the step 10x → 0.5x, ms until all is as before", title_justify="left")
    for label, choose in (("median", np.median), ("worst", np.max)):
        found = [
            choose([promises.recovery_ns(lab, seed, policy) for seed in range(STEP_SEEDS)]) / 1e6 for policy in POLICIES
        ]
        table.add_row(f"{label} of {STEP_SEEDS}", *(f"{value:.0f}" for value in found))
    return table


def classes(lab: Laboratory) -> Table:
    """Real time at half capacity beside a saturating batch class; and many models beside a greedy one."""
    table = Table("", *POLICIES, title="classes and models", title_justify="left")
    shares = [promises.batch_share(lab, policy) for policy in POLICIES]
    runs = [lab.played("classes_n1", policy) for policy in POLICIES]
    table.add_row("real time on time / capacity", *(f"{realtime:.3f}" for realtime, _ in shares))
    table.add_row("batch on time / capacity", *(f"{batch:.3f}" for _, batch in shares))
    table.add_row("total / capacity", *(f"{sum(both):.3f}" for both in shares))
    table.add_row("real time refused %", *(percent(run.refused_share(run.trace.priority == 0)) for run in runs))
    table.add_row(
        "modest models on time / asked for, beside a greedy one",
        *(f"{promises.modest_share(lab, policy):.3f}" for policy in POLICIES),
    )
    return table


def eager(seconds: float) -> Table:
    """The laboratory against theory."""
    table = Table("load", "simulated ms", "bound ms", "share", title="eager batching, Inoue's bound on the mean")
    for load in (0.5, 0.7, 0.9):
        mean, bound = eager_mean_ms(load, seconds)
        table.add_row(str(load), f"{mean:.2f}", f"{bound:.2f}", f"{mean / bound:.3f}")
    return table


def decisions(cost: Cost) -> Table:
    """µs."""
    table = Table("one decision, 1,000 queued", "median µs", "p99 µs")
    for name, (median, p99) in cost._asdict().items():
        table.add_row(name.replace("_", " "), f"{median:.1f}", f"{p99:.1f}")
    return table


def kept(found: dict[str, float], table_of: Iterable[Promise]) -> Table:
    """Every promise with its figure."""
    table = Table("promise", "figure", "to reach", "", title="promises", title_justify="left")
    for promise in table_of:
        if promise.name in found:
            value = found[promise.name]
            verdict = "[green]kept[/]" if promise.holds(value) else "[red]broken[/]"
            table.add_row(promise.name, f"{value:.4g}", f"{promise.text} {promise.unit}", verdict)
    return table


SECTIONS = {
    "sweep": lambda lab: [sweeps(lab), core_latency(lab)],
    "mixes": lambda lab: [by_policy(lab, "mixes", MIXES), classes(lab)],
    "noise": lambda lab: [by_policy(lab, "noise of 3 %, one spike of 1.5x in 200", NOISY)],
    "step": lambda lab: [steps(lab)],
    "optimum": lambda lab: [optimum(lab)],
    "eager": lambda _lab: [eager(60.0)],
}
"""Section by name: its tables."""
