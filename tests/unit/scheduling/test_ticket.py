from __future__ import annotations

import pytest

from gateway.scheduling.ticket import Body, Stage, TicketQueue
from shm.arena import BodyArena
from tests.support.core import NOW, line, ticket


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
    arena = BodyArena(64)
    image = ticket(1, line())
    image.body = Body(arena, arena.allocate_nowait(64))
    image.let_go_of_body()
    image.let_go_of_body()

    assert image.body is None
    assert arena.held_size == 0
    assert repr(image) == "<Ticket 1 WAITING slot=-1 attempts=0 runs=0>"


def test_a_queue_skips_who_left():
    queue = TicketQueue(Stage.WAITING, Stage.WAITING)
    first, second = ticket(1, line()), ticket(2, line())
    for each in (first, second):
        queue.push(NOW, each)

    first.stage = Stage.ENDED
    queue.discard()

    assert len(queue) == 1
    assert list(queue) == [second]
    assert queue.peek() is queue.pop() is second
    assert queue.peek() is None


def test_a_queue_sweeps_when_most_entries_are_dead():
    queue = TicketQueue(Stage.WAITING, Stage.WAITING)
    tickets = [ticket(number, line()) for number in range(100)]
    for each in tickets:
        queue.push(NOW + each.number, each)

    for each in tickets[10:]:
        each.stage = Stage.ENDED
        queue.discard()

    assert len(queue._heap) <= 2 * 10 + 64
    assert [queue.pop().number for _ in range(10)] == list(range(10))


def test_a_queue_gives_what_came_first_among_equals():
    queue = TicketQueue(Stage.WAITING, Stage.WAITING)
    for number in (2, 1, 3):
        queue.push(NOW, ticket(number, line()))

    assert [queue.pop().number for _ in range(3)] == [1, 2, 3]
