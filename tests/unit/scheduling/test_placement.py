from __future__ import annotations

from gateway.scheduling import placement
from gateway.scheduling.placement import WorkerState
from gateway.scheduling.ticket import Batch, Seal
from tests.support.core import FLAT_NS, MS, NOW, Core, line


def worker(
    index: int, *, batches: int = 0, free_at_ns: int = 0, ready: bool = True, batch_ns: int | None = None
) -> WorkerState:
    state = WorkerState(index)
    state.ready = ready
    state.batches = [Batch(number, line(), [], 1, Seal.IDLE, 0) for number in range(batches)]
    if batch_ns is not None:
        batch = Batch(1, line(), [], 1, Seal.IDLE, 0)
        batch.expected_ns = batch_ns
        state.batches.append(batch)
    state.free_at_ns = free_at_ns
    return state


def order(*workers: WorkerState) -> list[int]:
    return [state.index for state in placement.takers(workers)]


def test_idle_workers_take_batches_as_long_as_there_are_any():
    assert order(worker(0, batches=1), worker(1), worker(2)) == [1, 2]


def test_without_an_idle_worker_the_one_that_is_free_first_is_staged():
    busy = worker(0, batches=1, free_at_ns=20)
    busier = worker(1, batches=1, free_at_ns=30)

    assert order(busier, busy) == order(busy, busier) == [0]
    assert order(worker(2, batches=2, free_at_ns=10), busier) == [1]


def test_full_and_absent_workers_take_nothing():
    assert order(worker(0, batches=2), worker(1, ready=False)) == []
    assert order(worker(0, batches=1)) == [0]


def test_behind_a_suspect_nothing_is_staged():
    tried = worker(0, free_at_ns=10)
    tried.batches = [Batch(1, line(), [], 1, Seal.SUSPECT, 0)]

    assert order(tried) == []
    assert order(tried, worker(1, batches=1, free_at_ns=20)) == [1]


def test_where_batches_overlap_staging_begins_before_the_next_one_has_to_be_there():
    running = worker(0, free_at_ns=NOW, batch_ns=8 * MS)

    assert placement.staging_from_ns(running, 3 * MS) == NOW - (3 + 1.5 + 1) * MS
    assert placement.staging_from_ns(worker(0, free_at_ns=NOW, batch_ns=600_000), 300_000) == NOW + 1 * MS
    assert placement.staging_from_ns(worker(0, free_at_ns=NOW, batch_ns=600_000), 400_000) < NOW


def test_a_batch_begins_once_it_is_there_and_the_device_is_done_with_the_others():
    assert worker(0).begins_ns(NOW, 3 * MS) == NOW + 3 * MS
    assert worker(0, batches=1, free_at_ns=NOW + 5 * MS).begins_ns(NOW, 3 * MS) == NOW + 5 * MS
    assert worker(0, batches=1, free_at_ns=NOW + 2 * MS).begins_ns(NOW, 3 * MS) == NOW + 3 * MS
    two = worker(0, batches=1, free_at_ns=NOW + 6 * MS, batch_ns=2 * MS)
    assert two.begins_ns(NOW, 1 * MS) == NOW + 6 * MS
    assert two.begins_ns(NOW, 3 * MS) == NOW + 7 * MS, "it is sent when the first of the two is answered"

    gone = worker(0, ready=False)
    gone.was_ready, gone.start_ns, gone.started_ns = True, 700 * MS, NOW
    assert gone.begins_ns(NOW, 3 * MS) == NOW + 703 * MS


def test_staging_begins_half_a_millisecond_before_the_end():
    running = worker(0, free_at_ns=NOW, batch_ns=5 * MS)
    assert placement.staging_from_ns(running) == NOW - 500_000


def test_behind_a_very_short_batch_nothing_is_staged_unless_full():
    running = worker(0, free_at_ns=NOW, batch_ns=900_000)
    assert placement.staging_from_ns(running) == NOW + 1 * MS


def test_what_is_overdue_is_expected_to_take_as_long_again():
    running = worker(0, batches=1, free_at_ns=NOW)

    assert running.expected_free_ns(NOW - 1 * MS) == NOW
    assert running.expected_free_ns(NOW + 3 * MS) == NOW + 6 * MS
    assert worker(0, free_at_ns=NOW).expected_free_ns(NOW + 3 * MS) == NOW, "it is idle"


def test_a_worker_that_restarts_is_expected_after_as_long_as_its_last_start():
    state = worker(0, ready=False)
    state.was_ready, state.start_ns = True, 700 * MS
    assert state.is_expected

    state.spawn_at_ns, state.started_ns = NOW + 100 * MS, 0
    assert state.expected_free_ns(NOW) == NOW + 800 * MS
    state.spawn_at_ns, state.started_ns = None, NOW + 150 * MS
    assert state.expected_free_ns(NOW + 200 * MS) == NOW + 850 * MS
    state.started_ns = 0  # condemned, and its death has not come back
    assert state.expected_free_ns(NOW + 200 * MS) == NOW + 900 * MS


def test_nothing_is_expected_of_a_worker_that_keeps_dying():
    state = worker(0, ready=False)
    state.was_ready = True
    for _ in range(5):
        state.restarts.died(NOW)

    assert not state.is_expected


def test_a_worker_that_runs_nothing_owes_nothing():
    assert worker(0).owes_by_ns() is None


def test_a_full_batch_is_staged_behind_a_very_short_one_at_once():
    core = Core(points=((1, 900_000), (4, 900_000)))
    core.queued()
    assert core.do(NOW) == ["run 0: 1 at 1, idle"]
    for _ in range(4):
        core.queued()

    assert core.do(NOW) == ["run 0: 2 3 4 5 at 4, full"]
    core.queued()
    assert core.do(NOW + 1 * MS) == [], "one running, one staged, never a third"


def test_a_full_batch_waits_behind_a_longer_one_like_any_other():
    core = Core()
    core.queued()
    core.do(NOW)
    for _ in range(4):
        core.queued()

    assert core.do(NOW) == []
    assert core.do(NOW + FLAT_NS - 500_000) == ["run 0: 2 3 4 5 at 4, full"]


def test_a_partial_batch_is_staged_shortly_before_the_worker_is_free():
    core = Core()
    core.queued()
    core.do(NOW)
    core.queued()

    assert core.do(NOW) == []
    assert core.s.wake_at_ns() == NOW + FLAT_NS - 500_000
    assert core.do(NOW + FLAT_NS - 500_000) == ["run 0: 2 at 1, idle"]


def test_a_full_batch_with_a_late_head_is_not_staged_early():
    core = Core(points=((1, 900_000), (4, 900_000)))
    core.queued()
    core.do(NOW)
    for _ in range(4):
        core.queued()
    core.tickets[1].deadline_ns = NOW + 1_800_000  # 0.918 ms of waiting and 0.918 ms of running

    assert core.do(NOW) == []
    assert core.s.wake_at_ns() == NOW + 918_000 + 1 * MS

    core.ran(at=NOW + 500_000)
    assert core.do(NOW + 500_000) == ["finish 1: ok", "run 0: 2 3 4 5 at 4, full"], "it was quicker than expected"


def test_a_window_that_ends_while_the_worker_is_busy_waits_for_staging():
    core = Core(line(window_ns=2 * MS))
    core.queued()
    core.do(NOW + 2 * MS)
    core.queued(at=NOW + 3 * MS)

    assert core.do(NOW + 5 * MS) == []
    staging_ns = NOW + 2 * MS + FLAT_NS - 500_000
    assert core.s.wake_at_ns() == staging_ns
    assert core.do(staging_ns) == ["run 0: 2 at 1, window"]


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
