"""Several models on the same workers: weights are shares of their time, and a greedy model starves nobody."""

from __future__ import annotations

import pytest

from bench.lab import traces
from bench.lab.core import Core
from bench.lab.law import T4
from bench.lab.machine import Machine, Outcome

SECONDS = 2.0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("weight", [1, 3])
def test_weights_are_shares_of_the_workers_time(workers: int, weight: int):
    both = 2 * T4.capacity(workers)
    trace = traces.models(3, [both, both], SECONDS, T4.deadline_ns)
    policy = Core(weights=(weight, 1))
    played = Machine(trace, T4, policy, worker_count=workers).play(warmup_s=0.5)

    spent = []
    for line in policy.scheduler.lines:
        images = played.on_time_rate(trace.model == line.index)
        spent.append(images * T4.time_ns(line.pace.size) / line.pace.size)
    assert played.late == played.dropped == 0
    assert spent[0] / spent[1] == pytest.approx(weight, rel=0.35)


@pytest.mark.slow
def test_a_greedy_model_starves_nobody():
    capacity = T4.capacity(4)
    rates = traces.greedy(0.3 * capacity, 8, greedy_rate=10 * capacity)
    trace = traces.models(3, rates, SECONDS, T4.deadline_ns)
    played = Machine(trace, T4, Core(), worker_count=4).play(warmup_s=0.5)

    modest = trace.model > 0
    assert played.late == played.dropped == 0
    assert (played.outcome[modest] == Outcome.ON_TIME).mean() > 0.98
    assert played.on_time_rate(~modest) > 0.2 * capacity, "what the others leave is the greedy one's"


@pytest.mark.slow
def test_the_batch_class_gets_what_real_time_leaves_and_takes_nothing_from_it():
    capacity = T4.capacity(4)
    trace = traces.classes(
        3, 0.5 * capacity, 2 * capacity, 6.0, deadline_ns=T4.deadline_ns, batch_deadline_ns=100 * T4.deadline_ns
    )
    played = Machine(trace, T4, Core(), worker_count=4).play(warmup_s=3.0)

    realtime = trace.priority == traces.REALTIME
    assert played.late == played.dropped == 0
    assert played.refused_share(realtime) < 0.005
    assert played.on_time_rate(~realtime) > 0.35 * capacity
