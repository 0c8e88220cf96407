from __future__ import annotations

import numpy as np
import pytest

from bench.lab import traces
from bench.lab.law import MS
from bench.lab.traces import BATCH, REALTIME, START_NS

D = 50 * MS
WELL_FORMED = {
    "poisson": lambda seed: traces.poisson(seed, 1000, 2, D),
    "bursts": lambda seed: traces.bursts(seed, 1000, 2, D),
    "phased": lambda seed: traces.phased(seed, [(1000, 1), (5000, 0.5), (0, 0.5)], D),
    "diurnal": lambda seed: traces.diurnal(seed, 2000, 2, D),
    "mixed": lambda seed: traces.mixed_deadlines(seed, 1000, 2, (D, 2 * D)),
    "classes": lambda seed: traces.classes(seed, 500, 2000, 2, deadline_ns=D, batch_deadline_ns=100 * D),
    "models": lambda seed: traces.models(seed, traces.zipf(1000, 20), 2, D),
    "joined": lambda seed: traces.joined(traces.poisson(seed, 500, 1, D), traces.poisson(seed + 1, 2000, 1, D)),
}


@pytest.mark.parametrize("name", WELL_FORMED)
def test_a_seed_is_a_trace_and_arrivals_are_in_order_within_the_horizon(name):
    one, same, other = (WELL_FORMED[name](seed) for seed in (1, 1, 2))

    for field in ("arrival_ns", "deadline_ns", "priority", "model"):
        assert np.array_equal(getattr(one, field), getattr(same, field))
    assert not np.array_equal(one.arrival_ns, other.arrival_ns)
    assert (np.diff(one.arrival_ns) >= 0).all()
    assert START_NS <= one.arrival_ns[0] < one.arrival_ns[-1] < one.end_ns == START_NS + 2_000_000_000
    assert (one.deadline_ns - one.arrival_ns >= D).all()


def test_poisson_has_its_rate_and_its_scatter():
    trace = traces.poisson(1, 1000, 100, D)

    gaps = np.diff(trace.arrival_ns) / 1e9

    assert trace.rate == pytest.approx(1000, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.02)


def test_bursts_are_on_and_off():
    trace = traces.bursts(1, 1000, 20, D)

    phase = (trace.arrival_ns - START_NS) // (50 * MS)

    assert trace.rate == pytest.approx(1000, rel=0.03)
    assert (phase % 2 == 0).all()


def test_a_step_has_a_rate_in_each_phase():
    trace = traces.phased(1, [(1000, 2), (10_000, 2), (500, 2)], D)

    counts = np.histogram(trace.arrival_ns - START_NS, [0, 2e9, 4e9, 6e9])[0]

    assert counts == pytest.approx([2000, 20_000, 1000], rel=0.1)


def test_a_day_has_a_peak_at_noon_and_a_trough_at_night():
    trace = traces.diurnal(1, 2000, 24, D)

    by_hour = np.histogram(trace.arrival_ns - START_NS, np.arange(25) * 1e9)[0]

    assert by_hour[11:13] == pytest.approx(2000, rel=0.1)
    assert by_hour[[0, 23]] == pytest.approx(200, rel=0.3)
    assert trace.rate == pytest.approx(1100, rel=0.05)


def test_deadlines_are_mixed_evenly():
    trace = traces.mixed_deadlines(1, 1000, 30, (50 * MS, 100 * MS, 200 * MS))

    relative, counts = np.unique(trace.deadline_ns - trace.arrival_ns, return_counts=True)

    assert relative.tolist() == [50 * MS, 100 * MS, 200 * MS]
    assert counts == pytest.approx([10_000] * 3, rel=0.05)


def test_classes_have_their_rates_and_deadlines():
    trace = traces.classes(1, 500, 2000, 10, deadline_ns=D, batch_deadline_ns=100 * D)

    for priority, rate, relative_ns in ((REALTIME, 500, D), (BATCH, 2000, 100 * D)):
        mine = trace.priority == priority
        assert mine.sum() / 10 == pytest.approx(rate, rel=0.05)
        assert set((trace.deadline_ns - trace.arrival_ns)[mine]) == {relative_ns}


def test_models_have_their_rates():
    rates = traces.greedy(1000, 5, greedy_rate=4000)

    trace = traces.models(1, rates, 10, D)

    assert rates == [4000, 250, 250, 250, 250]
    assert np.bincount(trace.model) / 10 == pytest.approx(rates, rel=0.1)
    assert trace.model_count == 5


def test_zipf_shares_out_by_rank():
    rates = traces.zipf(1000, 4)

    assert sum(rates) == pytest.approx(1000)
    assert [rates[0] / rate for rate in rates] == pytest.approx([1, 2, 3, 4])


def test_joined_traces_follow_one_another():
    first, second = traces.poisson(1, 100, 1, D), traces.poisson(2, 100, 1, D)

    trace = traces.joined(first, second)

    tail = trace.arrival_ns[len(first) :]
    assert np.array_equal(tail - second.arrival_ns, np.full(len(second), 1_000_000_000))
    assert trace.end_ns == START_NS + 2_000_000_000
