"""What the core promises, figure by figure, in one table: the bench prints it, the tests hold the core to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bench.lab import core, decision
from bench.lab.law import T4
from bench.lab.machine import Outcome
from bench.lab.scenarios import NOISY, SCENARIOS, SHORT, STEP_AT_S, STEP_SEEDS, Laboratory
from bench.lab.traces import BATCH, REALTIME, START_NS

if TYPE_CHECKING:
    from collections.abc import Callable


class Promise(NamedTuple):
    """`measure` yields the figure. It holds when the figure is at most (or, `least`: at least) `bound`."""

    name: str
    unit: str
    bound: float
    least: bool
    measure: Callable[[Laboratory], float]

    def holds(self, value: float) -> bool:
        """Whether the promise is kept."""
        return value >= self.bound if self.least else value <= self.bound

    @property
    def text(self) -> str:
        """The bound, as people write it."""
        return f"{'>=' if self.least else '<='} {self.bound:g}"


def late_exact(lab: Laboratory) -> float:
    """Accepted requests that were late, in all scenarios without noise together."""
    return sum(lab.played(name).late for name in lab.names if not SCENARIOS[name].noisy)


def late_noise_share(lab: Laboratory) -> float:
    """Accepted requests that were late, of all accepted in the scenarios with noise together."""
    runs = [lab.played(name) for name in NOISY]
    return sum(run.late for run in runs) / sum(run.accepted for run in runs)


def dropped_after_accept(lab: Laboratory) -> float:
    """Accepted requests that were given up though a worker could still have answered them in time, in all scenarios."""
    return sum(lab.played(name).dropped for name in lab.names)


def goodput(name: str) -> Callable[[Laboratory], float]:
    """Goodput / capacity in that scenario."""
    return lambda lab: lab.played(name).goodput_share


def optimum_share(lab: Laboratory) -> float:
    """The worst of the short traces up to 2x: answered in time / the most that was possible."""
    return min(lab.played(name).on_time / lab.optimum(name) for name in SHORT)


def recovery_ns(lab: Laboratory, seed: int, policy: str = "core") -> int:
    """From the step 10x → 0.5x until all is as if there had been no overload.

    Until just after the arrival of the last request that was refused, or was answered more slowly than the slowest one
    of the same 0.5x arrivals after a history of 0.5x.
    """
    steady, after = lab.played(f"step_steady_{seed}", policy), lab.played(f"step_{seed}", policy)
    step_ns = START_NS + round(STEP_AT_S[1] * 1e9)
    steady_ms = np.nanmax(steady.latency_ms[steady.trace.arrival_ns >= step_ns])
    later = after.trace.arrival_ns >= step_ns
    worse = later & ~((after.outcome == Outcome.ON_TIME) & (after.latency_ms <= steady_ms))
    return int(after.trace.arrival_ns[worse].max()) - step_ns if worse.any() else 0


def recovery_batches(lab: Laboratory) -> float:
    """The median recovery of all seeds, in units of l(B*).

    The worst is longer by nature: a batch that was full when the overload ended is followed by one of half its size,
    and that again, until eager batches are as small as they are at 0.5x.
    """
    found = [recovery_ns(lab, seed) for seed in range(STEP_SEEDS)]
    return float(np.median(found)) / T4.time_ns(core.size_best(T4, 1))


def realtime_refused(lab: Laboratory) -> float:
    """Share of real-time requests that were refused, at once or later, at half capacity, under a batch class that asks
    for twice the capacity.
    """
    run = lab.played("classes_n1")
    return run.refused_share(run.trace.priority == REALTIME)


def decision_us(_lab: Laboratory) -> float:
    """Median µs of accepting one image with a thousand queued, or of refusing one, whichever is longer."""
    found = decision.cost()
    return max(found.accept[0], found.refuse[0])


PROMISES = (
    Promise("late_exact", "requests", 0, False, late_exact),
    Promise("late_noise_share", "share", 0.001, False, late_noise_share),
    Promise("dropped_after_accept", "requests", 0, False, dropped_after_accept),
    Promise("goodput_2x_n1", "ratio", 0.93, True, goodput("poisson_2x_n1")),
    Promise("goodput_10x_n1", "ratio", 0.92, True, goodput("poisson_10x_n1")),
    Promise("goodput_10x_n4", "ratio", 0.965, True, goodput("poisson_10x_n4")),
    Promise("optimum_share_2x", "ratio", 0.95, True, optimum_share),
    Promise("recovery_batches", "l(B*)", 2, False, recovery_batches),
    Promise("realtime_refused_under_batch", "share", 0, False, realtime_refused),
    Promise("total_under_batch", "ratio", 0.90, True, goodput("classes_n1")),
    Promise("decision_us_1000", "us", 10, False, decision_us),
)


def batch_share(lab: Laboratory, policy: str) -> tuple[float, float]:
    """Goodput / capacity of the real-time and of the batch class under a saturating batch class."""
    run = lab.played("classes_n1", policy)
    realtime, batch = (run.on_time_rate(run.trace.priority == kind) for kind in (REALTIME, BATCH))
    return realtime / run.capacity, batch / run.capacity


def modest_share(lab: Laboratory, policy: str) -> float:
    """Beside one greedy model: answers in time / requests of the others, which together ask for 0.3x."""
    run = lab.played("greedy_n4", policy)
    modest = run.trace.model > 0
    return float((run.outcome[modest] == Outcome.ON_TIME).mean())
