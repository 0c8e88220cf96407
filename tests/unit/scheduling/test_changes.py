"""Models and workers that come and go while the core serves."""

from __future__ import annotations

import pytest

from gateway import errors
from gateway.scheduling.restarts import State
from tests.support.core import MS, NOW, Core, S, line, refused

FAR = NOW + 60 * S


def with_successor() -> Core:
    """Worker 0 serves model 0; worker 1 is up on the same seat, with model 1 in its place."""
    core = Core()
    core.add_line()
    core.s.add_worker(0, frozenset({1}), NOW)
    assert core.do(NOW) == ["spawn worker 1"]
    core.worker_up(1, NOW, models=[1])
    assert core.do(NOW) == []
    return core


# Lines


def test_a_model_that_was_added_is_served_once_a_worker_has_it():
    core = Core()
    added = core.add_line()
    assert core.s.is_ready, "nobody waits for it"
    assert isinstance(refused(core, model=1), errors.ModelNotReady)

    core.s.add_worker(0, frozenset({1}), NOW)
    core.do(NOW)
    assert refused(core, model=1).retry_after_s == 1, "it is loading"
    core.worker_up(1, NOW, models=[1])

    assert core.s.is_up(added)
    assert refused(core, model=1) is None


def test_a_closed_line_takes_nothing_and_finishes_what_it_has():
    core = Core()
    core.tensor(deadline_ns=FAR)

    core.s.close_line(core.lines[0])

    assert isinstance(refused(core), errors.ModelNotReady)
    assert core.do(NOW) == ["run 0: 1 at 1, idle"]
    core.s.close_line(core.lines[0], closed=False)
    assert refused(core) is None


def test_a_line_that_was_closed_and_is_empty_is_forgotten():
    core = with_successor()
    core.tensor(deadline_ns=FAR)
    core.do(NOW)
    core.s.close_line(core.lines[0])
    assert not core.s.is_empty(core.lines[0])
    core.ran(0, at=NOW + 10 * MS)
    core.do(NOW + 10 * MS)
    assert not core.s.is_empty(core.lines[0]), "its answer was not read yet"
    core.s.release(core.tickets[0])
    assert core.s.is_empty(core.lines[0])

    core.s.remove_line(core.lines[0])

    assert core.s.lines == [core.lines[1]]
    assert core.s.worker(0).profiles == {}


def test_a_line_that_is_gone_takes_its_convictions_with_it():
    core = Core()
    ticket = core.tensor(deadline_ns=FAR)
    core.s.blame.accused.append(ticket)
    core.s.convict(ticket, b"pixels", NOW)
    core.do(NOW)
    core.s.close_line(core.lines[0])

    core.s.remove_line(core.lines[0])

    assert not core.s.blame.covers(core.lines[0])


# Retirement


def test_a_retired_worker_finishes_the_closed_model_and_goes():
    core = with_successor()
    core.tensors(5, deadline_ns=FAR)
    assert core.do(NOW) == ["run 0: 1 2 3 4 at 4, full"]
    core.s.close_line(core.lines[0])
    core.s.retire_worker(0, NOW, {0})

    core.ran(0, at=NOW + 10 * MS)
    assert core.do(NOW + 10 * MS)[-1] == "run 0: 5 at 1, idle"
    core.ran(0, at=NOW + 20 * MS)
    assert core.do(NOW + 20 * MS) == ["finish 5: ok", "kill worker 0: retired"]
    core.s.worker_lost(0, NOW + 21 * MS)
    assert core.do(NOW + 21 * MS) == []
    assert [worker.index for worker in core.s.workers] == [1]


def test_what_others_have_too_moves_at_once():
    core = Core(workers=2)
    core.tensor(deadline_ns=FAR)
    core.do(NOW)
    core.s.retire_worker(0, NOW)
    core.tensor(deadline_ns=FAR)

    assert core.do(NOW) == ["run 1: 2 at 1, idle"]
    core.ran(0, at=NOW + 10 * MS)
    assert core.do(NOW + 10 * MS) == ["finish 1: ok", "kill worker 0: retired"]


def test_a_worker_is_retired_once():
    core = with_successor()
    core.tensor(deadline_ns=FAR)
    core.s.retire_worker(0, NOW, {0})
    core.s.retire_worker(0, NOW)

    assert core.do(NOW) == ["run 0: 1 at 1, idle"]


def test_the_last_image_of_a_retired_worker_may_be_too_late():
    core = with_successor()
    core.tensors(1, deadline_ns=NOW + 100 * MS)
    core.s.close_line(core.lines[0])
    core.s.retire_worker(0, NOW, {0})

    assert core.do(NOW + 95 * MS) == ["finish 1: deadline_exceeded", "kill worker 0: retired"]


def test_a_retired_worker_that_dies_comes_back_for_what_it_left():
    core = with_successor()
    core.tensor(deadline_ns=FAR)
    core.do(NOW)
    core.s.retire_worker(0, NOW, {0})
    core.s.worker_lost(0, NOW + 5 * MS)

    assert core.do(NOW + 5 * MS) == ["spawn worker 0"]
    core.worker_up(0, NOW + 6 * MS, models=[0, 1])
    assert core.s.worker(0).state is State.DRAINING
    assert list(core.s.worker(0).profiles) == [0], "and for nothing else"
    assert core.do(NOW + 6 * MS) == ["run 0: 1 at 1, suspect"]
    core.ran(0, at=NOW + 9 * MS)
    assert core.do(NOW + 9 * MS) == ["finish 1: ok", "kill worker 0: retired"]


def test_one_that_never_came_up_leaves_at_once():
    core = Core()
    core.add_line()
    core.s.add_worker(0, frozenset({1}), NOW)
    core.do(NOW)
    core.s.worker_loading(1, NOW)
    core.s.worker_loading(1, NOW)
    assert core.s.worker(1).state is State.WARMING

    core.s.retire_worker(1, NOW)

    assert core.do(NOW) == ["kill worker 1: retired"]
    core.s.worker_ready(1, {1: core.points}, NOW)
    core.s.worker_lost(1, NOW)
    assert core.do(NOW) == []
    assert [worker.index for worker in core.s.workers] == [0]


def test_one_without_a_process_is_forgotten():
    core = Core()
    core.s.add_worker(1, frozenset({0}), NOW)
    core.s.retire_worker(1, NOW)

    assert core.do(NOW) == []
    assert [worker.index for worker in core.s.workers] == [0]


# One after the other


def test_an_heir_is_started_when_its_predecessor_is_gone_and_what_waits_waits_for_it():
    core = Core()
    core.tensor(deadline_ns=FAR)
    core.do(NOW)
    core.s.add_worker(0, frozenset({0}), NOW, heir_of=core.s.worker(0))
    core.s.retire_worker(0, NOW)
    core.tensor(deadline_ns=FAR)
    assert core.do(NOW) == []
    core.ran(0, at=NOW + 10 * MS)
    assert core.do(NOW + 10 * MS) == ["finish 1: ok", "kill worker 0: retired"]
    assert refused(core, at=NOW + 11 * MS) is None, "the heir is expected"

    core.s.worker_lost(0, NOW + 12 * MS)
    assert core.do(NOW + 12 * MS)[0] == "spawn worker 1"
    core.worker_up(1, NOW + 50 * MS)
    assert core.do(NOW + 50 * MS) == ["run 1: 2 at 1, idle"]


def test_what_only_the_heir_will_have_is_loading():
    """It was called refused by its worker, with no word of when to come back."""
    core = Core()
    core.add_line()
    core.s.add_worker(0, frozenset({0, 1}), NOW, heir_of=core.s.worker(0))
    core.s.retire_worker(0, NOW)

    assert refused(core, model=1).retry_after_s == 1


def test_a_worker_that_loads_other_models_is_no_reason_to_wait():
    core = Core(line(0), line(1), up=False)
    core.do(NOW)
    core.s.decoder_ready(0, NOW)
    core.worker_up(0, NOW, models=[0])
    core.add_line()
    core.s.add_worker(0, frozenset({2}), NOW)

    with pytest.raises(errors.ModelNotReady, match="refused by its worker") as caught:
        core.s.precheck(core.lines[1], FAR, NOW)
    assert caught.value.retry_after_s is None
