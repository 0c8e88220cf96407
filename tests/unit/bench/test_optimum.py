from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.lab import traces
from bench.lab.baselines import Batching, EarlyDrop
from bench.lab.law import T4, Law
from bench.lab.machine import Machine
from bench.lab.optimum import on_time_max
from bench.lab.traces import START_NS, Trace


def by_force(arrivals: tuple[int, ...], law: Law) -> int:
    """Every order of every set of batches: any requests together, none assumed to be neighbours."""

    @cache
    def best(free: int, left: frozenset[int]) -> int:
        found = 0
        for count in range(1, len(left) + 1):
            for batch in itertools.combinations(sorted(left), count):
                end = max(free, *(arrivals[i] for i in batch)) + law.time_ns(count)
                if end <= min(arrivals[i] for i in batch) + law.deadline_ns:
                    found = max(found, count + best(end, left - set(batch)))
        return found

    return best(0, frozenset(range(len(arrivals))))


@pytest.mark.slow
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(0, 6),
    st.integers(0, 12),
)
def test_it_is_what_brute_force_finds(arrivals, alpha, beta, slack):
    law = Law("tiny", alpha, beta, alpha + beta + slack, (1,))
    arrivals = sorted(arrivals)

    assert on_time_max(np.array(arrivals, np.int64), law) == by_force(tuple(arrivals), law)


@pytest.mark.slow
@settings(max_examples=25)
@given(st.integers(0, 1 << 32), st.floats(0.3, 4))
def test_a_narrow_band_of_counts_is_enough(seed, load):
    """As above, with a plain recurrence that keeps every count, on traces far longer than the band is wide."""
    law = Law("small", 2, 5, 15, (1,))
    rate = load * law.size_max / law.time_ns(law.size_max)
    arrivals = np.sort(np.random.default_rng(seed).uniform(0, 60 / rate, 60).astype(np.int64))

    never = 1 << 60
    free = [[0] + [never] * 60]
    for j in range(1, 61):
        row = list(free[j - 1])
        for b in range(1, j + 1):
            for c in range(b, j + 1):
                end = max(free[j - b][c - b], int(arrivals[j - 1])) + law.time_ns(b)
                if end <= arrivals[j - b] + law.deadline_ns:
                    row[c] = min(row[c], end)
        free.append(row)

    assert on_time_max(arrivals, law) == max(c for c, end in enumerate(free[-1]) if end < never)


@pytest.mark.parametrize("load", [0.8, 1.2, 3])
def test_no_policy_beats_it(load):
    trace = traces.poisson(2, load * T4.capacity(1), 0.5, T4.deadline_ns)

    best = on_time_max(trace.arrival_ns, T4)

    for policy in (EarlyDrop(), EarlyDrop(40), Batching(), Batching(61)):
        assert Machine(trace, T4, policy).play().on_time <= best


def test_without_pressure_it_is_everything():
    arrivals = START_NS + np.arange(200, dtype=np.int64) * 10_000_000

    assert on_time_max(arrivals, T4) == 200


def test_nothing_can_be_done_in_no_time():
    assert on_time_max(np.array([START_NS], np.int64), T4._replace(deadline_ns=T4.time_ns(1) - 1)) == 0


def test_a_full_batch_at_once_is_the_largest():
    trace = Trace(*(np.full(100, START_NS, np.int64) for _ in range(4)), START_NS + 1)

    assert on_time_max(trace.arrival_ns, T4) == T4.size_max


@pytest.mark.slow
@pytest.mark.timeout(30)
def test_five_thousand_requests_take_seconds():
    trace = traces.poisson(2, 2 * T4.capacity(1), 5000 / (2 * T4.capacity(1)), T4.deadline_ns)

    best = on_time_max(trace.arrival_ns, T4)

    assert best / trace.seconds <= T4.capacity(1) * 1.05
