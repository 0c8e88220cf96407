from __future__ import annotations

import numpy as np
import pytest

from bench.lab import traces
from bench.lab.baselines import Batching, Codel, EarlyDrop, Fifo, Gradient2
from bench.lab.law import MS, T4
from bench.lab.machine import Machine, Outcome
from bench.lab.scenarios import eager_mean_ms
from bench.lab.traces import START_NS, Trace


def goodput(policy, load, *, seconds=6.0, workers=1):
    trace = traces.poisson(1, load * T4.capacity(workers), seconds, T4.deadline_ns)
    return Machine(trace, T4, policy, worker_count=workers).play(warmup_s=1)


def at(*arrivals_ms: float) -> Trace:
    arrival_ns = np.array([START_NS + round(ms * MS) for ms in arrivals_ms], np.int64)
    zeros = np.zeros_like(arrival_ns)
    return Trace(arrival_ns, arrival_ns + T4.deadline_ns, zeros, zeros, START_NS + 1000 * MS)


# The table of published and simulated results, within reason


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.5, 0.9])
def test_eager_batching_without_a_bound_has_the_mean_latency_of_theory(load):
    mean, bound = eager_mean_ms(load, 30)

    assert 0.95 * bound <= mean <= bound


@pytest.mark.slow
def test_fifo_without_admission_collapses_at_capacity():
    assert goodput(Fifo(), 0.9).goodput_share == pytest.approx(0.845, abs=0.05)
    assert goodput(Fifo(), 1.0).goodput_share <= 0.3
    assert goodput(Fifo(), 2.0).goodput_share <= 0.05
    assert goodput(Fifo(), 10.0, seconds=2).goodput_share <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("load", [1.5, 2, 10])
def test_early_drop_keeps_its_goodput_and_drops_the_rest(load):
    run = goodput(EarlyDrop(), load)

    assert 0.90 <= run.goodput_share <= 0.97
    assert run.count(Outcome.LATE) == 0
    assert (run.dropped + run.late) / run.accepted == pytest.approx(1 - 0.94 / load, abs=0.05)


@pytest.mark.slow
def test_codel_alone_serves_about_half_at_twice_the_load_and_more_at_ten_times():
    twice, tenfold = goodput(Codel(lifo=False), 2), goodput(Codel(lifo=False), 10, seconds=3)

    assert 0.45 <= twice.goodput_share <= 0.65
    assert 0.30 <= twice.late / twice.accepted <= 0.50
    assert 0.85 <= tenfold.goodput_share <= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("load", [2, 10])
def test_adaptive_lifo_serves_the_newest_and_gives_up_most_after_queueing(load):
    run = goodput(Codel(), load)

    assert run.goodput_share == pytest.approx(0.932, abs=0.03)
    assert (run.late + run.dropped) / run.accepted == pytest.approx(1 - 0.94 / load, abs=0.05)


@pytest.mark.slow
def test_gradient2_refuses_rather_than_queues_until_its_limit_has_drifted():
    policy = Gradient2()
    early = goodput(policy, 2, seconds=4)
    limit_early = policy.limit
    late = goodput(policy := Gradient2(), 2, seconds=30)

    assert 0.80 <= early.goodput_share <= 0.95
    assert limit_early < 60
    assert policy.limit > 120
    assert late.goodput_share < 0.5


@pytest.mark.slow
def test_the_order_at_twice_the_load_is_that_of_the_literature():
    policies = (Fifo(), Codel(lifo=False), Gradient2(), EarlyDrop())

    shares = [goodput(policy, 2, seconds=4).goodput_share for policy in policies]

    assert shares == sorted(shares)


@pytest.mark.slow
def test_workers_that_take_turns_may_run_larger_batches():
    run = goodput(EarlyDrop(), 2, workers=4, seconds=3)

    assert run.goodput_share >= 0.94
    assert run.batch_mean > 38


# One by one


def test_fifo_waits_for_its_window():
    run = Machine(at(0, 1, 5), T4, Fifo(delay_ns=2 * MS)).play()

    assert run.latency_ms.tolist() == pytest.approx([2 + 4.44, 1 + 4.44, 2 + 3.67])


def test_fifo_sends_a_preferred_size_before_its_window_ends():
    run = Machine(at(0, 1, 5), T4, Fifo(delay_ns=20 * MS, preferred=(2,))).play()

    assert run.latency_ms.tolist() == pytest.approx([1 + 4.44, 4.44, 20 + 3.67])


def test_fifo_sends_a_full_batch_at_once():
    run = Machine(at(0, 0, 0), T4, Fifo(3, delay_ns=20 * MS)).play()

    assert run.latency_ms.tolist() == pytest.approx([5.21] * 3)


def test_early_drop_gives_the_head_up_for_a_larger_batch():
    """Behind a batch of 50 (until 41.4 ms) wait one from 1 ms (due at 51 ms) and 20 from 30 ms: with it in front, a
    batch of 21 would end at 60.5 ms.
    """
    run = Machine(at(*[0] * 50, 1, *[30] * 20), T4, EarlyDrop(50)).play()

    assert run.outcome.tolist() == [Outcome.ON_TIME] * 50 + [Outcome.DROPPED] + [Outcome.ON_TIME] * 20


def test_early_drop_runs_a_smaller_batch_when_no_other_is_to_be_had():
    """Behind the same batch wait two from 1 ms: together they end at 45.8 ms."""
    run = Machine(at(*[0] * 50, 1, 1), T4, EarlyDrop(50)).play()

    assert run.dropped == run.late == 0


def test_gradient2_refuses_above_its_limit():
    run = Machine(at(*[0] * 30), T4, Gradient2()).play()

    assert run.outcome.tolist() == [Outcome.ON_TIME] * 20 + [Outcome.REFUSED] * 10


def test_gradient2_lowers_its_limit_when_latency_rises():
    policy = Gradient2(limit_max=1000)
    Machine(at(0), T4, policy).play()
    policy.limit = 100
    for _ in range(20):
        policy._sample(10 * MS, 100)
    assert policy.limit > 100

    limit = policy.limit
    policy._sample(100 * MS, 100)
    assert policy.limit < limit

    policy._sample(100 * MS, 10)  # nobody asks for more: nothing is learnt
    assert policy.limit == pytest.approx(limit * 0.9 + 0.8)


def test_lifo_serves_the_newest_while_more_waits_than_a_batch():
    run = Machine(at(0, *range(1, 4)), T4, Codel(2)).play()

    assert np.argsort(run.ended_ns, kind="stable").tolist() == [0, 2, 3, 1]


def test_codel_sloughs_after_an_interval_of_long_waits():
    policy = Codel(lifo=False)
    policy._interval_end_ns = 100 * MS
    policy._delay_min_ns = 6 * MS

    assert not policy._sloughs(20 * MS, 50 * MS)
    assert not policy._sloughs(20 * MS, 101 * MS)
    assert policy.overloaded
    assert not policy._sloughs(9 * MS, 102 * MS)
    assert policy._sloughs(11 * MS, 102 * MS)


def test_classes_are_served_strictly_and_models_by_their_oldest():
    first = traces.classes(1, 300, 3000, 0.3, deadline_ns=T4.deadline_ns, batch_deadline_ns=T4.deadline_ns)

    run = Machine(first, T4, Batching()).play()

    realtime = first.priority == traces.REALTIME
    assert run.refused_share(realtime) == 0
    assert run.latency_ms[realtime].max() < 50 < run.latency_ms[~realtime].max()
