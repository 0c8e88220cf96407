from __future__ import annotations

from gateway.scheduling import placement
from gateway.scheduling.placement import WorkerState
from gateway.scheduling.ticket import Batch, Seal
from tests.support.core import MS, NOW, Core, line


def worker(
    index: int, *, batches: int = 0, free_at_ns: int = 0, ready: bool = True, batch_ns: int | None = None
) -> WorkerState:
    state = WorkerState(index)
    state.ready = ready
    state.batches = [None] * batches
    if batch_ns is not None:
        batch = Batch(1, line(), [], 1, Seal.IDLE, 0)
        batch.expected_ns = batch_ns
        state.batches.append(batch)
    state.free_at_ns = free_at_ns
    return state


def order(*workers: WorkerState) -> list[int]:
    return [state.index for state in placement.takers(workers)]


def test_idle_workers_come_first_then_the_soonest_free():
    busy = worker(0, batches=1, free_at_ns=20)
    busier = worker(1, batches=1, free_at_ns=30)
    idle = worker(2, free_at_ns=40)

    assert order(busier, busy, idle) == [2, 0, 1]


def test_full_and_absent_workers_take_nothing():
    assert order(worker(0, batches=2), worker(1, ready=False)) == []
    assert order(worker(0, batches=1)) == [0]


def test_staging_begins_half_a_millisecond_before_the_end():
    running = worker(0, free_at_ns=NOW, batch_ns=5 * MS)
    assert placement.staging_from_ns(running) == NOW - 500_000


def test_behind_a_very_short_batch_nothing_is_staged_unless_full():
    running = worker(0, free_at_ns=NOW, batch_ns=900_000)
    assert placement.staging_from_ns(running) == NOW + 1 * MS


def test_a_full_batch_is_staged_at_once():
    core = Core()
    core.queued()
    assert core.do(NOW) == ["run 0: 1 at 1, idle"]
    for _ in range(4):
        core.queued()

    assert core.do(NOW) == ["run 0: 2 3 4 5 at 4, full"]
    core.queued()
    assert core.do(NOW + 9_900_000) == []  # one running, one staged, never a third


def test_a_partial_batch_is_staged_shortly_before_the_worker_is_free():
    core = Core()
    core.queued()
    core.do(NOW)
    core.queued()

    assert core.do(NOW) == []
    assert core.s.wake_at_ns() == NOW + 10 * MS - 500_000
    assert core.do(NOW + 10 * MS - 500_000) == ["run 0: 2 at 1, idle"]


def test_a_full_batch_with_a_late_head_is_not_staged_early():
    core = Core()
    core.queued()
    core.do(NOW)
    core.queued(deadline_ns=NOW + 15 * MS)  # 10 ms of waiting and 10 ms of running
    for _ in range(3):
        core.queued()

    assert core.do(NOW) == []
    assert core.do(NOW + 10 * MS - 500_000) == ["finish 2: deadline_exceeded", "run 0: 3 4 5 at 4, idle"]


def test_a_window_that_ends_while_the_worker_is_busy_waits_for_staging():
    core = Core(line(window_ns=2 * MS))
    core.queued()
    core.do(NOW + 2 * MS)
    core.queued(at=NOW + 3 * MS)

    assert core.do(NOW + 3 * MS) == []
    assert core.s.wake_at_ns() == NOW + 5 * MS
    assert core.do(NOW + 5 * MS) == []
    assert core.s.wake_at_ns() == NOW + 11_500_000
    assert core.do(NOW + 11_500_000) == ["run 0: 2 at 1, window"]


def test_the_line_with_the_most_urgent_head_goes_first():
    core = Core(line(0), line(1), line(2))
    core.queued(model=0, deadline_ns=NOW + 900 * MS)
    core.s.workers[0].ready = False
    core.queued(model=1, deadline_ns=NOW + 800 * MS)
    core.queued(model=2, deadline_ns=NOW + 850 * MS)
    core.s.workers[0].ready = True

    assert core.do(NOW) == ["run 0: 2 at 1, idle"]


def test_a_worker_without_the_model_is_passed_over():
    core = Core(line(0), line(1), workers=2)
    core.s.worker_ready(0, {0: core.points}, NOW)
    core.queued(model=1)

    assert core.do(NOW) == ["run 1: 1 at 1, idle"]
    assert core.s.workers[1].serves(1)
    assert not core.s.workers[0].serves(1)
