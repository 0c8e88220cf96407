"""Images for which nobody waits: no worker dies of one twice, and nobody else notices."""

from __future__ import annotations

import pytest

from gateway.scheduling.ticket import TENSOR, Priority
from shm.wire import ItemStatus
from tests.support.core import MS, NOW, Core, S, line

LONG = {"deadline_ns": NOW + 60 * S}


def running(*expendable: bool) -> Core:
    """One batch runs, of one image for each."""
    core = Core()
    for each in expendable:
        core.submit(encoding=TENSOR, expendable=each, **LONG)
    core.fill()
    core.do(NOW)
    assert [len(batch.tickets) for batch in core.s.workers[0].batches] == [len(expendable)]
    return core


@pytest.mark.parametrize("guilty", [False, True])
def test_it_is_given_up_with_the_first_worker_that_dies_of_it(guilty):
    core = running(True)
    core.s.worker_lost(0, NOW, guilty=guilty)
    assert core.do(NOW) == ["finish 1: worker_lost", "spawn worker 0"]
    assert core.quiet()


def test_it_is_given_up_when_it_hangs():
    core = running(True)
    assert core.do(NOW + 5 * S) == ["interrupt 0"]
    core.ran(at=NOW + 5 * S, status=ItemStatus.INTERRUPTED)
    assert "finish 1: worker_lost" in core.do(NOW + 5 * S)
    assert core.quiet()


def test_its_neighbours_run_again():
    core = running(True, False)
    core.s.worker_lost(0, NOW, guilty=True)
    assert core.do(NOW) == ["finish 1: worker_lost", "spawn worker 0"]
    core.worker_up(0, NOW)
    assert core.do(NOW) == ["run 0: 2 at 1, suspect"]
    core.ran(at=NOW)
    assert core.do(NOW) == ["finish 2: ok"]


def test_one_that_was_staged_behind_is_innocent():
    core = Core()
    core.tensor(**LONG)
    core.do(NOW)
    core.tensor(expendable=True, **LONG)
    core.do(NOW + 10 * MS)
    assert len(core.s.workers[0].batches) == 2
    core.s.worker_lost(0, NOW + 10 * MS)
    assert core.do(NOW + 10 * MS) == ["spawn worker 0"]
    core.worker_up(0, NOW + 10 * MS)
    assert core.do(NOW + 10 * MS) == ["run 0: 1 at 1, suspect"]
    core.ran(at=NOW + 20 * MS)
    assert core.do(NOW + 20 * MS) == ["finish 1: ok", "run 0: 2 at 1, idle"]


def test_one_that_is_cancelled_just_frees_its_slot():
    core = running(True)
    core.s.cancel(core.tickets[0], NOW)
    core.s.worker_lost(0, NOW)
    assert core.do(NOW) == ["spawn worker 0"]
    assert core.quiet()


def test_it_is_no_strike_against_its_pixels():
    core = running(True)
    core.s.worker_lost(0, NOW, guilty=True)
    assert not core.s.blame.accused
    assert not core.s.blame.covers(core.lines[0])


def test_being_overtaken_teaches_decoding_no_slip():
    found = []
    for expendable in (False, True):
        core = Core(line(deadline_ns=60 * S))
        for _ in range(3):
            core.submit(priority=Priority.BATCH, expendable=expendable, **LONG)
        core.do(NOW)
        for which in (1, 2, 3):
            core.decoded(which, at=NOW + 5 * S)
        found.append(core.s.feeder.slip_ns(NOW + 5 * S))
    assert found[0] > 0
    assert found[1] == 0
