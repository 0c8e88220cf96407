from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.scheduling.feeder import DecoderState
from gateway.scheduling.placement import WorkerState
from gateway.scheduling.restarts import State
from gateway.scheduling.ticket import Interrupt, Kill, Role
from gateway.scheduling.watch import NEVER_NS, Watch
from tests.support.core import MS, NOW, S

if TYPE_CHECKING:
    from gateway.scheduling.ticket import Effect


class Nursery:
    """One decoder and one worker, both up, and the watch over them."""

    def __init__(self) -> None:
        self.decoder, self.worker = DecoderState(0), WorkerState(0)
        for child in (self.decoder, self.worker):
            child.begin(NOW)
            child.move(State.READY)
        self.watch = Watch(
            [self.decoder], [self.worker], start_timeout_ns=20 * S, build_timeout_ns=600 * S, owing_ns_min=200 * MS
        )

    def looks(self, at: int = NOW) -> list[tuple[str, Role]]:
        return [self.words(effect) for effect in self.watch.look(at)]

    @staticmethod
    def words(effect: Effect) -> tuple[str, Role]:
        if isinstance(effect, Interrupt):
            return "interrupt", Role.WORKER
        return effect.reason if isinstance(effect, Kill) else type(effect).__name__.lower(), effect.role


def test_nobody_is_looked_after_who_owes_nothing():
    nursery = Nursery()

    assert nursery.looks() == []
    assert nursery.watch.next_ns == NEVER_NS


def test_the_dead_are_started_when_their_time_has_come():
    nursery = Nursery()
    nursery.worker.bury(NOW)
    nursery.worker.spawn_at_ns = NOW + 100 * MS

    assert nursery.looks() == []
    assert nursery.watch.next_ns == NOW + 100 * MS
    assert nursery.looks(NOW + 100 * MS) == [("spawn", Role.WORKER)]
    assert (nursery.worker.spawn_at_ns, nursery.worker.started_ns) == (None, NOW + 100 * MS)


def test_what_does_not_come_up_is_killed_once():
    nursery = Nursery()
    nursery.decoder.bury(NOW)
    nursery.decoder.begin(NOW)

    assert nursery.looks(NOW + 1) == []
    assert nursery.watch.next_ns == NOW + 20 * S
    assert nursery.looks(NOW + 20 * S) == [("did not start in time", Role.DECODER)]
    assert nursery.decoder.condemned
    assert nursery.looks(NOW + 24 * S) == []


def test_what_was_killed_and_is_not_gone_is_stuck_until_it_is():
    nursery = Nursery()
    nursery.watch.kill(Role.WORKER, nursery.worker, "nonsense", NOW)

    assert nursery.looks(NOW + 1 * S) == []
    assert nursery.watch.next_ns == NOW + 5 * S
    assert nursery.looks(NOW + 5 * S) == [("stuck", Role.WORKER)]
    assert nursery.worker.state is State.STUCK
    assert nursery.looks(NOW + 500 * S) == []
    nursery.watch.kill(Role.WORKER, nursery.worker, "again", NOW + 501 * S)
    assert nursery.worker.state is State.STUCK, "asking twice is no news"

    nursery.worker.bury(NOW + 600 * S)
    assert nursery.looks(NOW + 600 * S) == [("spawn", Role.WORKER)]


def test_what_hangs_is_killed():
    nursery = Nursery()
    nursery.decoder.due_ns = NOW + 1 * S

    assert nursery.looks() == []
    assert nursery.watch.next_ns == NOW + 1 * S
    assert nursery.looks(NOW + 1 * S) == [("hung", Role.DECODER)]


def test_whoever_is_given_work_is_looked_at_in_time():
    nursery = Nursery()
    nursery.looks()

    nursery.watch.work_sent(NOW)
    assert nursery.watch.next_ns == NOW + 200 * MS
    nursery.watch.work_sent(NOW + 1 * MS)
    assert nursery.watch.next_ns == NOW + 200 * MS
    nursery.watch.child_changed()
    assert nursery.watch.next_ns == 0


@pytest.mark.parametrize("role", Role)
def test_the_condemned_are_not_believed_until_they_are_started_again(role: Role):
    nursery = Nursery()
    child = nursery.decoder if role is Role.DECODER else nursery.worker

    kill = nursery.watch.kill(role, child, "nonsense", NOW, broken=True)

    assert (kill.role, kill.index, kill.reason) == (role, 0, "nonsense")
    assert (child.ready, child.condemned, child.broken) == (False, True, True)
    assert nursery.looks(NOW + 4 * S) == [], "its death has not come back"

    child.bury(NOW + 61 * S)
    assert nursery.looks(NOW + 61 * S) == [("spawn", role)]
    assert (child.condemned, child.broken) == (False, False)
