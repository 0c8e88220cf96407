"""Children that close their sockets, are stopped from outside, or cannot be started."""

from __future__ import annotations

import pytest

from gateway.scheduling.restarts import State
from gateway.scheduling.ticket import Role
from shm.arena import SlotState
from tests.support.core import MS, NOW, Core, S, line

FAR = NOW + 60 * S
BOTH = pytest.mark.parametrize("role", list(Role))


def child(core: Core, role: Role):
    return core.s.feeder.decoders[0] if role is Role.DECODER else core.s.worker(0)


# A closed socket


def test_one_that_closed_its_socket_gets_nothing_more_and_keeps_what_it_holds():
    core = Core(workers=2)
    core.tensor(deadline_ns=FAR)
    assert core.do(NOW) == ["run 0: 1 at 1, idle"]

    core.s.gone(Role.WORKER, 0, NOW)
    core.tensor(deadline_ns=FAR)

    assert core.do(NOW) == ["run 1: 2 at 1, idle"]
    assert core.lines[0].arena.state(core.tickets[0].slot) is SlotState.RUNNING
    core.s.worker_lost(0, NOW + 1 * MS, guilty=True)
    assert core.do(NOW + 1 * MS) == ["spawn worker 0"]
    assert core.tickets[0].crashes == 1


def test_a_decoder_that_closed_its_socket_counts_no_more():
    core = Core(decoders=2)
    core.s.gone(Role.DECODER, 0, NOW)
    core.submit()

    assert core.s.feeder.ready_count == 1
    assert core.do(NOW) == ["send 1: 1"]


@BOTH
def test_one_that_closed_its_socket_and_is_not_gone_is_stuck(role: Role):
    core = Core()
    core.s.gone(role, 0, NOW)

    assert core.do(NOW + 5 * S) == [f"stuck {role.value} 0"]


@BOTH
def test_nobody_is_stuck_because_nothing_had_happened_for_a_while(role: Role):
    """Its time began with the last event before it; in a quiet gateway it was over at once."""
    for ended in (lambda core, at: core.s.gone(role, 0, at), lambda core, at: core.s.broken(role, 0, "nonsense", at)):
        core = Core()
        ended(core, NOW + 60 * S)

        assert f"stuck {role.value} 0" not in core.do(NOW + 60 * S)
        assert core.do(NOW + 65 * S) == [f"stuck {role.value} 0"]


def test_one_that_broke_the_protocol_is_not_believed_for_having_closed_its_socket():
    core = Core()
    core.tensors(2, deadline_ns=FAR)
    core.do(NOW)
    core.tensor(at=NOW + 10 * MS, deadline_ns=FAR)
    core.do(NOW + 10 * MS)
    core.s.broken(Role.WORKER, 0, "nonsense", NOW)
    core.s.gone(Role.WORKER, 0, NOW)
    core.s.worker_lost(0, NOW + 11 * MS)

    assert [ticket.deaths for ticket in core.tickets] == [1, 1, 1]


# Stopped


@BOTH
def test_one_that_is_stopped_and_has_nothing_to_do_is_killed_once(role: Role):
    core = Core()
    core.s.stopped(role, 0, NOW)
    core.s.stopped(role, 0, NOW)

    assert core.do(NOW) == [f"kill {role.value} 0: stopped"]
    assert not child(core, role).ready


def test_a_stopped_worker_with_a_batch_has_a_closer_clock():
    core = Core()
    core.tensor(deadline_ns=FAR)
    core.do(NOW)

    core.s.stopped(Role.WORKER, 0, NOW + 600 * MS)

    assert core.do(NOW + 600 * MS) == []
    assert core.do(NOW + 1 * S) == ["interrupt 0"]


# Not started


@BOTH
def test_one_for_which_there_is_no_process_is_tried_again_and_did_not_die(role: Role):
    core = Core(line(), up=False)
    core.do(NOW)

    core.s.not_started(role, 0, NOW)

    assert child(core, role).state is State.DEAD
    assert child(core, role).restarts.total == 0
    core.do(NOW)
    assert core.s.wake_at_ns() == NOW + 250 * MS
    assert core.do(NOW + 250 * MS) == [f"spawn {role.value} 0"]
