"""What is played: every scenario by name, every policy by name, and a memory of what was played already."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from bench.lab import optimum, traces
from bench.lab.baselines import Batching, Codel, EarlyDrop, Fifo, Gradient2
from bench.lab.core import Core
from bench.lab.law import GPU, MS, T4, Law
from bench.lab.machine import Machine, Noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.lab.machine import Played, Policy
    from bench.lab.traces import Trace

LOADS = (0.5, 0.9, 1, 1.5, 2, 10)
"""Offered rate / capacity."""

SECONDS = {1: 12.0, 4: 5.0, 64: 0.3}
"""Horizon by number of workers, at scale 1. Sixty-four at ten times capacity are 780,000 requests a second."""

SECONDS_MIN = {1: 4.0, 4: 1.5, 64: 0.2}

NOISY_SECONDS, NOISY_SECONDS_MIN = 40.0, 10.0
"""Of all workers together: one batch in 200 is a spike, so that less would show none."""

WARMUP_SHARE_MAX = 0.4
STEP_AT_S = (1.5, 2.5, 4.0)
"""In the step scenario: when 1x becomes 10x, when that becomes 0.5x, when it ends."""

STEP_SEEDS = 9
BATCH_DEADLINE_NS = 5_000 * MS
DEADLINES_NS = (50 * MS, 100 * MS, 200 * MS)
MODELS = 20

POLICIES: dict[str, Callable[[], Policy]] = {
    "core": Core,
    "fifo": Fifo,
    "early drop": EarlyDrop,
    "gradient2": Gradient2,
    "codel": lambda: Codel(lifo=False),
    "codel+lifo": Codel,
}


@dataclass(frozen=True)
class Scenario:
    """`draw(seconds)` makes the trace; `seconds` is its length at scale 1 and never goes below `seconds_min`.

    `huge`: left out where there is little time.
    """

    title: str
    draw: Callable[[float], Trace]
    seconds: float
    seconds_min: float
    law: Law = T4
    worker_count: int = 1
    noisy: bool = False
    huge: bool = False


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


def _poisson(load: float, workers: int, law: Law, seed: int) -> Callable[[float], Trace]:
    return lambda seconds: traces.poisson(seed, load * law.capacity(workers), seconds, law.deadline_ns)


def _deadlines(load: float, seed: int) -> Callable[[float], Trace]:
    return lambda seconds: traces.mixed_deadlines(seed, load * T4.capacity(1), seconds, DEADLINES_NS)


def step(seed: int, *, before: tuple[float, float] = (1, 10)) -> Callable[[float], Trace]:
    """1x → 10x → 0.5x. Whatever comes before, what arrives after the step down is the same for one seed."""
    cap = T4.capacity(1)
    up, down, end = STEP_AT_S

    def draw(_seconds: float) -> Trace:
        head = traces.phased(seed, [(cap * before[0], up), (cap * before[1], down - up)], T4.deadline_ns)
        tail = traces.poisson(1000 + seed, cap * 0.5, end - down, T4.deadline_ns)
        return traces.joined(head, tail)

    return draw


def _sweep() -> dict[str, Scenario]:
    return {
        f"poisson_{load}x_n{workers}": Scenario(
            f"Poisson {load}x, {_workers(workers)}",
            _poisson(load, workers, T4, 1),
            seconds,
            SECONDS_MIN[workers],
            worker_count=workers,
            huge=workers > 4 and load not in (0.9, 2),
        )
        for workers, seconds in SECONDS.items()
        for load in LOADS
    }


def _steps() -> dict[str, Scenario]:
    seconds = STEP_AT_S[-1]
    return {
        f"step_{seed}": Scenario("step 1x → 10x → 0.5x", step(seed), seconds, seconds) for seed in range(STEP_SEEDS)
    } | {
        f"step_steady_{seed}": Scenario("0.5x", step(seed, before=(0.5, 0.5)), seconds, seconds)
        for seed in range(STEP_SEEDS)
    }


def _mixes() -> dict[str, Scenario]:
    """One worker, one model, but not Poisson with one deadline."""
    cap, due_ns = T4.capacity(1), T4.deadline_ns
    return {
        "bursts_n1": Scenario(
            "bursts 1.74x, 50 ms on and off", lambda s: traces.bursts(3, 0.87 * cap, s, due_ns), 8.0, 1.0
        ),
        "diurnal_n1": Scenario("a day, 0.15x to 1.5x", lambda s: traces.diurnal(5, 1.5 * cap, s, due_ns), 10.0, 1.0),
        "deadlines_0.9x_n1": Scenario("deadlines 50/100/200 ms, 0.9x", _deadlines(0.9, 6), 6.0, 1.0),
        "deadlines_2x_n1": Scenario("deadlines 50/100/200 ms, 2x", _deadlines(2, 6), 6.0, 1.0),
        "classes_n1": Scenario(
            "real time 0.5x beside batch 2x",
            lambda s: traces.classes(7, 0.5 * cap, 2 * cap, s, deadline_ns=due_ns, batch_deadline_ns=BATCH_DEADLINE_NS),
            20.0,
            4.0,
        ),
    }


def _models() -> dict[str, Scenario]:
    def zipf(law: Law, rate: float) -> Callable[[float], Trace]:
        return lambda s: traces.models(11, traces.zipf(rate, MODELS), s, law.deadline_ns)

    cap = T4.capacity(4)
    rates = traces.greedy(0.3 * cap, MODELS, greedy_rate=2 * cap)
    return {
        f"models_{law.name}_{load}x_n{workers}": Scenario(
            f"{MODELS} models, {workers} {law.name}, {load}x",
            zipf(law, load * law.capacity(workers)),
            *(seconds, seconds / 2, law, workers),
            huge=workers > 4,
        )
        for law, workers, seconds in ((T4, 4, 2.0), (T4, 64, 0.2), (GPU, 1, 0.3))
        for load in (0.5, 2)
    } | {
        "greedy_n4": Scenario(
            "19 models at 0.3x, one at 2x",
            lambda s: traces.models(11, rates, s, T4.deadline_ns),
            *(3.0, 0.6, T4, 4),
        )
    }


def _gpu() -> dict[str, Scenario]:
    return {
        f"gpu_{load}x_n{workers}": Scenario(
            f"GPU-like, {_workers(workers)}, {load}x", _poisson(load, workers, GPU, 2), 0.3, 0.1, GPU, workers
        )
        for load, workers in ((0.9, 1), (2, 1), (10, 1), (2, 4))
    }


def _noisy() -> dict[str, Scenario]:
    return {
        f"noise_{load}x_n{workers}": Scenario(
            f"Poisson {load}x, {_workers(workers)}, noise",
            _poisson(load, workers, T4, 8),
            *(NOISY_SECONDS / workers, NOISY_SECONDS_MIN / workers, T4, workers, True),
        )
        for load, workers in ((0.9, 1), (2, 1), (10, 1), (2, 4))
    } | {
        "noise_deadlines_2x_n1": Scenario(
            "deadlines 50/100/200 ms, 2x, noise", _deadlines(2, 9), *(NOISY_SECONDS, NOISY_SECONDS_MIN, T4, 1, True)
        )
    }


def _short() -> dict[str, Scenario]:
    return {
        f"short_{load}x": Scenario(f"Poisson {load}x, short", _poisson(load, 1, T4, 10), 2.0, 0.8)
        for load in (0.8, 0.9, 1, 1.2, 1.5, 2)
    }


SWEEP, STEPS, NOISY, SHORT = _sweep(), _steps(), _noisy(), _short()
MIXES = _mixes() | _models() | _gpu()
"""Neither the sweep over loads nor the step."""

SCENARIOS = SWEEP | MIXES | STEPS | SHORT | NOISY


class Laboratory:
    """Plays each scenario once per policy and remembers it. `scale` shortens every horizon; without `huge`, `names`
    leaves out what is large all the same.
    """

    def __init__(self, *, scale: float = 1.0, huge: bool = True) -> None:
        self._scale = scale
        self.names = [name for name, scenario in SCENARIOS.items() if huge or not scenario.huge]
        self._played: dict[tuple[str, str], Played] = {}
        self.trace = cache(self._trace)
        self.optimum = cache(self._optimum)

    def _trace(self, name: str) -> Trace:
        scenario = SCENARIOS[name]
        return scenario.draw(max(scenario.seconds_min, scenario.seconds * self._scale))

    def _optimum(self, name: str) -> int:
        """The most that could be answered in time; one worker, one deadline."""
        return optimum.on_time_max(self.trace(name).arrival_ns, SCENARIOS[name].law)

    def played(self, name: str, policy: str = "core") -> Played:
        """What the machine saw."""
        if (name, policy) not in self._played:
            scenario, trace = SCENARIOS[name], self.trace(name)
            noise = Noise(1) if scenario.noisy else None
            machine = Machine(trace, scenario.law, POLICIES[policy](), worker_count=scenario.worker_count, noise=noise)
            warmup_s = min(WARMUP_SHARE_MAX * trace.seconds, 10 * scenario.law.deadline_ns / 1e9)
            self._played[name, policy] = machine.play(warmup_s=warmup_s)
        return self._played[name, policy]


def eager_mean_ms(load: float, seconds: float) -> tuple[float, float]:
    """Mean latency of eager batching without a bound at `load` = rate * alpha: (simulated, Inoue's bound), in ms.

    Source: Inoue, arXiv 1912.06322, theorem 2.
    """
    law = T4
    rate = load / law.alpha_ns
    trace = traces.poisson(12, rate * 1e9, seconds, 1 << 50)
    played = Machine(trace, law, Batching(0)).play()
    alpha, beta, load_beta = law.alpha_ns, law.beta_ns, rate * law.beta_ns
    light = (alpha + beta) / (2 * (1 - load)) * (1 + 2 * load_beta + (1 - load_beta) / (1 + load))
    heavy = 1.5 * beta / (1 - load) + alpha / 2 * (load + 2) / (1 - load**2)
    return float(played.latency_ms.mean()), min(light, heavy) / 1e6
