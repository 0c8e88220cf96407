from __future__ import annotations

import numpy as np
import pytest

from bench.lab import core, promises
from bench.lab.law import MS, T4
from bench.lab.machine import Outcome, Played
from bench.lab.promises import PROMISES, Promise
from bench.lab.scenarios import NOISY, SCENARIOS, STEP_AT_S, STEP_SEEDS
from bench.lab.traces import START_NS, Trace

STEP_NS = START_NS + round(STEP_AT_S[1] * 1e9)


def played(*requests: tuple[float, float, Outcome], priority: tuple[int, ...] = ()) -> Played:
    """(arrival in ms after the step, latency in ms, outcome) each."""
    arrival_ns = np.array([STEP_NS + round(at * MS) for at, *_ in requests], np.int64)
    zeros = np.zeros_like(arrival_ns)
    ended_ns = arrival_ns + np.array([round(latency * MS) for _, latency, _ in requests], np.int64)
    kinds = np.array(priority or zeros, np.int64)
    trace = Trace(arrival_ns, arrival_ns + T4.deadline_ns, kinds, zeros, STEP_NS + 1000 * MS)
    return Played(trace, np.array([o for *_, o in requests], np.uint8), ended_ns, 1000.0, 0.0, 0.5, 2.0)


class Shelf:
    """A laboratory in which everything was played already."""

    def __init__(self, **runs: Played) -> None:
        self.names = list(SCENARIOS)
        self._runs = runs

    def played(self, name: str, policy: str = "core") -> Played:
        return self._runs.get(name) or self._runs["rest"]


GOOD = (0.0, 10.0, Outcome.ON_TIME)
STEADY = played(GOOD, (5, 20, Outcome.ON_TIME))


def recovery_ms(*requests: tuple[float, float, Outcome]) -> float:
    return promises.recovery_ns(Shelf(step_0=played(*requests), step_steady_0=STEADY), 0) / MS


def test_recovered_at_once():
    assert recovery_ms(GOOD, (1, 20, Outcome.ON_TIME)) == 0


def test_recovered_behind_the_last_that_was_refused():
    assert recovery_ms(GOOD, (7, 0, Outcome.REFUSED), (9, 20, Outcome.ON_TIME)) == 7


def test_recovered_behind_the_last_that_was_slower_than_ever_in_the_steady_state():
    assert recovery_ms(GOOD, (7, 0, Outcome.REFUSED), (9, 20.001, Outcome.ON_TIME), (11, 19, Outcome.ON_TIME)) == 9


def test_what_came_before_the_step_is_not_part_of_recovery():
    assert recovery_ms((-1, 0, Outcome.REFUSED), GOOD) == 0


def test_recovery_is_the_median_of_the_seeds_in_batches():
    runs = {f"step_{seed}": played((10 * seed, 0, Outcome.REFUSED)) for seed in range(STEP_SEEDS)}
    lab = Shelf(**runs, **{f"step_steady_{seed}": STEADY for seed in range(STEP_SEEDS)})

    best_ms = T4.time_ns(core.size_best(T4, 1)) / MS
    assert promises.recovery_batches(lab) == pytest.approx(10 * (STEP_SEEDS // 2) / best_ms)


def test_late_is_what_was_answered_late_or_could_not_be_answered_any_more():
    lab = Shelf(rest=played(GOOD, (1, 60, Outcome.LATE), (2, 50, Outcome.EXPIRED), (3, 9, Outcome.DROPPED)))

    assert promises.late_noise_share(lab) == 0.5
    assert promises.late_exact(lab) == 2 * (len(SCENARIOS) - len(NOISY))
    assert promises.dropped_after_accept(lab) == len(SCENARIOS)


def test_a_real_time_request_that_is_given_up_was_refused_too():
    run = played(GOOD, (1, 0, Outcome.REFUSED), (2, 9, Outcome.DROPPED), (3, 0, Outcome.REFUSED), priority=(0, 0, 0, 1))

    assert promises.realtime_refused(Shelf(classes_n1=run)) == pytest.approx(2 / 3)


def test_a_promise_holds_up_to_its_bound():
    least = Promise("a", "ratio", 0.9, True, lambda _: 0.0)
    most = least._replace(least=False)

    assert [least.holds(value) for value in (0.89, 0.9, 0.91)] == [False, True, True]
    assert [most.holds(value) for value in (0.89, 0.9, 0.91)] == [True, True, False]
    assert (least.text, most.text) == (">= 0.9", "<= 0.9")


def test_every_figure_has_one_name():
    names = [promise.name for promise in PROMISES]

    assert len(set(names)) == len(names) == 11


def test_every_scenario_draws_the_trace_that_it_says():
    for name, scenario in SCENARIOS.items():
        trace = scenario.draw(0.05)
        seconds = STEP_AT_S[-1] if name.startswith("step_") else 0.1 if name.startswith("bursts_") else 0.05
        assert trace.seconds == pytest.approx(seconds), name
        if name.startswith(("poisson_", "gpu_", "noise_", "short_")) and "deadlines" not in name:
            load = float(name.split("_")[1].removesuffix("x"))
            expected = load * scenario.law.capacity(scenario.worker_count)
            assert trace.rate == pytest.approx(expected, abs=6 * (expected / 0.05) ** 0.5), name


def test_after_the_step_the_arrivals_are_the_same_whatever_came_before():
    one, other = (SCENARIOS[name].draw(0) for name in ("step_0", "step_steady_0"))

    tails = [trace.arrival_ns[trace.arrival_ns >= STEP_NS] for trace in (one, other)]

    assert np.array_equal(*tails)
    assert len(tails[0]) > 800
    assert len(one) > 4 * len(other)
    assert one.arrival_ns[0] >= START_NS
