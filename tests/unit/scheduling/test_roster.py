from __future__ import annotations

import pytest

from gateway.scheduling.restarts import State
from gateway.scheduling.roster import Roster
from tests.support.core import MS, NOW, line, profile, promised

ONE = frozenset({0})
BOTH = frozenset({0, 1})


def roster(*lines) -> Roster:
    return Roster(lines, restarts_max=5, restarts_window_ns=60_000 * MS)


def up(made: Roster, seat: int, models=ONE, **named):
    worker = made.add_worker(seat, models, NOW, **named)
    worker.begin(NOW)
    worker.move(State.READY)
    worker.was_ready = worker.came_up = True
    worker.start_ns = 7 * MS
    worker.profiles = {index: profile((1, 10)) for index in models}
    return worker


def die(made: Roster, worker) -> None:
    worker.condemn(NOW, broken=False)
    worker.bury(NOW)
    worker.profiles = {}
    made.remove_worker(worker, NOW + 1)


# Lines


def test_indexes_of_lines_grow():
    made = roster(line(0), line(1))
    made.add_line(line(3))

    with pytest.raises(AssertionError):
        made.add_line(line(2))
    roster().add_line(line(5))


def test_a_line_is_empty_when_nobody_waits_and_every_slot_is_free():
    first = line(0)
    assert Roster.is_empty(first)

    slot = first.arena.admit_nowait()
    assert slot is not None
    assert not Roster.is_empty(first)
    assert not Roster.is_empty(promised(line(1), NOW))


def test_a_line_is_removed_only_when_it_is_closed_and_empty():
    made = roster(line(0), line(1))
    worker = up(made, 0, BOTH)
    first = made.lines[0]
    with pytest.raises(AssertionError):
        made.remove_line(first)
    first.closed = True

    made.remove_line(first)

    assert [each.index for each in made.lines] == [1]
    assert list(worker.profiles) == [1]


# Workers


def test_an_index_is_never_used_twice():
    made = roster(line(0))
    first, second = made.add_worker(0, ONE, NOW), made.add_worker(1, ONE, NOW)
    made.retire(second, ())
    made.remove_worker(second, NOW)

    assert (first.index, second.index, made.add_worker(1, ONE, NOW).index) == (0, 1, 2)
    assert made.worker(2).seat == 1
    with pytest.raises(LookupError):
        made.worker(1)


def test_one_that_was_added_is_started_now():
    assert roster().add_worker(0, ONE, NOW).spawn_at_ns == NOW


def test_a_retired_worker_keeps_the_models_that_it_is_to_finish():
    made = roster(line(0), line(1))
    worker = up(made, 0, BOTH)

    made.retire(worker, {1})

    assert worker.state is State.DRAINING
    assert worker.ready
    assert list(worker.profiles) == [1]
    assert made.retiring_count == 1
    with pytest.raises(AssertionError):
        made.retire(worker, ())


def test_a_retired_worker_is_done_when_it_holds_nothing_and_its_models_wait_for_nobody():
    made = roster(line(0), promised(line(1), NOW), promised(line(2), NOW))
    worker = up(made, 0, BOTH)
    made.retire(worker, {1})
    assert not made.is_done(worker)

    made.lines[1].dues.clear()
    assert made.is_done(worker), "the third is not its own"
    worker.batches.append(None)
    assert not made.is_done(worker)


def test_who_has_a_process():
    made = roster(line(0))
    worker = made.add_worker(0, ONE, NOW)
    assert not made.has_process(worker)

    worker.begin(NOW)
    assert made.has_process(worker)
    worker.condemn(NOW, broken=False)
    assert made.has_process(worker), "it was not reaped yet"
    worker.bury(NOW)
    assert not made.has_process(worker)


# Heirs


def test_an_heir_waits_for_its_predecessor_and_is_expected_to_be_as_good():
    made = roster(line(0), line(1))
    old = up(made, 0)
    heir = made.add_worker(0, BOTH, NOW, heir_of=old)

    assert heir.spawn_at_ns is None
    assert heir.profiles == old.profiles
    assert heir.was_ready
    assert not heir.came_up
    assert heir.start_ns == 7 * MS
    made.retire(old, ())
    die(made, old)
    assert heir.spawn_at_ns == NOW + 1
    assert made.workers == [heir]


def test_an_heir_inherits_no_model_that_it_does_not_have():
    made = roster(line(0), line(1))
    heir = made.add_worker(0, frozenset({1}), NOW, heir_of=up(made, 0, BOTH))

    assert list(heir.profiles) == [1]


def test_there_is_one_heir_and_its_predecessor_is_there():
    made = roster(line(0))
    old = up(made, 0)
    made.add_worker(0, ONE, NOW, heir_of=old)
    with pytest.raises(AssertionError):
        made.add_worker(0, ONE, NOW, heir_of=old)

    made.retire(old, ())
    die(made, old)
    with pytest.raises(AssertionError):
        made.add_worker(0, ONE, NOW, heir_of=old)


def test_the_heir_of_one_that_never_had_its_turn_waits_for_whom_that_one_waited_for():
    """Two changes in a row: the second heir would have been started beside the first worker, in its memory."""
    made = roster(line(0))
    old = up(made, 0)
    first = made.add_worker(0, ONE, NOW, heir_of=old)
    made.retire(old, ())
    second = made.add_worker(0, ONE, NOW, heir_of=first)
    made.retire(first, ())

    made.remove_worker(first, NOW)
    assert second.spawn_at_ns is None
    die(made, old)
    assert second.spawn_at_ns == NOW + 1


def test_one_without_an_heir_that_never_had_its_turn_leaves_nobody_behind():
    made = roster(line(0))
    old = up(made, 0)
    heir = made.add_worker(0, ONE, NOW, heir_of=old)
    made.retire(old, ())
    made.retire(heir, ())
    made.remove_worker(heir, NOW)
    die(made, old)

    assert made.workers == []
    assert made.retiring_count == 0
