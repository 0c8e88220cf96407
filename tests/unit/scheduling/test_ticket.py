from __future__ import annotations

import pytest

from gateway.scheduling.ticket import Body, Stage, Ticket, TicketQueue
from shm.arena import BodyArena
from tests.support.core import NOW, line


def ticket(number: int, *, priority: int = 0, deadline_ns: int = NOW) -> Ticket:
    arena = BodyArena(64)
    region = arena.allocate_nowait(64)
    assert region is not None
    return Ticket(number, line(), Body(arena, region), 0, 64, 0, priority, deadline_ns, 5, NOW)


def test_a_body_lives_as_long_as_its_last_holder():
    arena = BodyArena(128)
    body = Body(arena, arena.allocate_nowait(100))
    body.hold()

    body.release()
    assert arena.held_size == 128
    body.release()
    assert arena.held_size == 0
    with pytest.raises(AssertionError):
        body.release()


def test_a_body_gives_back_what_it_does_not_need():
    arena = BodyArena(256)
    body = Body(arena, arena.allocate_nowait(256))

    body.shrink(65)

    assert (arena.held_size, body.region.size) == (128, 65)
    body.release()
    assert arena.held_size == 0


def test_letting_go_twice_is_letting_go_once():
    image = ticket(1)
    image.let_go_of_body()
    image.let_go_of_body()

    assert image.body is None
    assert repr(image) == "<Ticket 1 WAITING slot=-1 attempts=0 runs=0>"


def test_class_goes_before_any_deadline():
    assert ticket(1, priority=0, deadline_ns=2**61).key < ticket(2, priority=1, deadline_ns=1).key


def test_a_queue_skips_who_left():
    queue = TicketQueue(Stage.WAITING, Stage.WAITING)
    first, second = ticket(1), ticket(2)
    for each in (first, second):
        queue.push(each.key, each)

    first.stage = Stage.ENDED
    queue.discard()

    assert len(queue) == 1
    assert list(queue) == [second]
    assert queue.peek() is queue.pop() is second
    assert queue.peek() is None


def test_a_queue_sweeps_when_most_entries_are_dead():
    queue = TicketQueue(Stage.WAITING, Stage.WAITING)
    tickets = [ticket(number, deadline_ns=NOW + number) for number in range(100)]
    for each in tickets:
        queue.push(each.key, each)

    for each in tickets[10:]:
        each.stage = Stage.ENDED
        queue.discard()

    assert len(queue._heap) <= 2 * 10 + 64
    assert [queue.pop().number for _ in range(10)] == list(range(10))
