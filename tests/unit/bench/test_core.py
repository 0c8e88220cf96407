from __future__ import annotations

import pytest

from bench.lab import core, traces
from bench.lab.core import Core
from bench.lab.law import MS, T4
from bench.lab.machine import Machine
from gateway.scheduling.ticket import Kill, Role


def played(policy, *, load=0.3, seconds=0.2, workers=1):
    trace = traces.poisson(1, load * T4.capacity(workers), seconds, T4.deadline_ns)
    return Machine(trace, T4, policy, worker_count=workers).play()


def test_the_scheduler_is_the_real_one_with_the_exact_profile():
    policy = Core()
    played(policy)

    points = {point.size: point for point in policy.scheduler.workers[0].profiles[0].points}
    assert (points[28].p50_ns, points[28].p99_ns) == (T4.time_ns(28), T4.time_ns(28))
    assert policy.scheduler.lines[0].pace.best_size in T4.sizes


def test_the_best_size_is_what_the_core_chooses_while_it_runs():
    policy = Core()
    played(policy)

    assert core.size_best(T4, 1) == policy.scheduler.lines[0].pace.best_size


def test_at_low_load_everything_is_answered_soon():
    run = played(Core())

    assert run.on_time == len(run.trace)
    assert run.latency_ms.min() == T4.time_ns(1) / MS


def test_nothing_is_left_in_the_core():
    policy = Core()
    played(policy, load=3)

    scheduler = policy.scheduler
    assert scheduler.live_count == 0
    assert scheduler.bodies.held_size == 0
    assert all(line.arena.free_count == line.arena.count for line in scheduler.lines)


def test_decoding_takes_its_time():
    run = played(Core(decode_ns=1 * MS), load=0.01, seconds=1)

    assert run.latency_ms.min() == T4.time_ns(1) / MS + 1


def test_a_core_that_kills_in_the_laboratory_is_wrong():
    with pytest.raises(AssertionError, match="kills worker 0, which hung"):
        Core._kill(Kill(Role.WORKER, 0, "hung"))


def test_lines_carry_weights_where_there_are_some(monkeypatch):
    seen = []

    def line(index, name, **settings):
        seen.append(settings.pop("weight", None))
        return real(index, name, **settings)

    real = core.Line
    monkeypatch.setattr(core, "Line", line)
    core.scheduler(T4, worker_count=1, model_count=2, now_ns=1, weights=(1.0, 3.0))
    core.scheduler(T4, worker_count=1, model_count=2, now_ns=1)

    assert seen == [1.0, 3.0, None, None]
