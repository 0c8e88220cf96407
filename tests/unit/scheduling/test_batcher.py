from __future__ import annotations

from gateway.scheduling import batcher
from gateway.scheduling.batcher import TIMER_NS
from gateway.scheduling.profile import Profile
from gateway.scheduling.ticket import Body, Seal, Stage, Ticket
from shm.arena import BodyArena, Region
from shm.wire import ProfilePoint
from tests.support.core import MS, NOW, S, line

POINTS = [ProfilePoint(1, 10 * MS, 10 * MS), ProfilePoint(2, 12 * MS, 12 * MS), ProfilePoint(4, 16 * MS, 16 * MS)]
PROFILE = Profile(POINTS, deadline_ns=1 * S, worker_count=1)


def filled(*deadlines_ms: int, window_ms: int = 0, priorities: tuple[int, ...] = ()):
    """A line with decoded tickets 1, 2, ... that arrived a millisecond apart; deadlines in ms from NOW."""
    made = line(window_ns=window_ms * MS)
    for index, deadline_ms in enumerate(deadlines_ms):
        body = Body(BodyArena(64), Region(0, 64))
        priority = priorities[index] if priorities else 0
        ticket = Ticket(index + 1, made, body, 0, 64, 0, priority, NOW + deadline_ms * MS, 5, NOW)
        ticket.stage = Stage.QUEUED
        ticket.decoded_ns = NOW + index * MS
        made.enqueue(ticket, ticket.decoded_ns)
    return made


def numbers(tickets) -> list[int]:
    return [ticket.number for ticket in tickets]


def test_nothing_to_run():
    assert batcher.decide(filled(), PROFILE, NOW, NOW) is None
    assert batcher.late_head(filled(), PROFILE, NOW) is None


def test_the_best_size_is_full():
    assert batcher.decide(filled(500, 500, 500, 500, window_ms=50), PROFILE, NOW, NOW) is Seal.FULL


def test_without_a_window_an_idle_worker_takes_what_there_is():
    assert batcher.decide(filled(500), PROFILE, NOW, NOW) is Seal.IDLE


def test_a_window_counts_from_the_oldest():
    made = filled(500, 500, window_ms=5)

    assert batcher.decide(made, PROFILE, NOW, NOW + 2 * MS) == NOW + 5 * MS
    assert batcher.decide(made, PROFILE, NOW, NOW + 5 * MS) is Seal.WINDOW


def test_a_window_is_cut_short_by_the_head_s_deadline():
    made = filled(40, 500, window_ms=100)
    latest = NOW + 40 * MS - 12 * MS - 2 * TIMER_NS

    assert batcher.decide(made, PROFILE, NOW, latest - 1) == latest
    assert batcher.decide(made, PROFILE, NOW, latest) is Seal.DEADLINE
    assert batcher.decide(made, PROFILE, latest, NOW) is Seal.DEADLINE  # by the time the worker is free


def test_the_window_starts_again_from_the_oldest_that_is_left():
    made = filled(500, 400, 300, 200, 100, window_ms=50)
    tickets, size, _ = batcher.take(made, PROFILE, NOW)

    assert (numbers(tickets), size) == ([5, 4, 3, 2], 4)
    assert made.window_from_ns == NOW

    batcher.take(made, PROFILE, NOW)
    assert made.window_from_ns == 0


def test_a_head_that_is_late_even_alone():
    assert batcher.late_head(filled(10), PROFILE, NOW) is None
    assert numbers([batcher.late_head(filled(10), PROFILE, NOW + 1)]) == [1]


def test_with_a_full_batch_waiting_the_head_must_stand_a_full_batch():
    assert numbers([batcher.late_head(filled(15, 500, 500, 500), PROFILE, NOW)]) == [1]
    assert batcher.late_head(filled(15, 500, 500), PROFILE, NOW) is None


def test_take_orders_by_class_then_deadline():
    tickets, _, _ = batcher.take(filled(300, 200, 100, 400, priorities=(0, 0, 1, 0)), PROFILE, NOW)

    assert numbers(tickets) == [2, 1, 4, 3]
    assert all(ticket.stage is Stage.RUNNING for ticket in tickets)


def test_take_pads_to_a_warmed_size():
    tickets, size, latest = batcher.take(filled(300, 200, 100), PROFILE, NOW)

    assert (len(tickets), size) == (3, 4)
    assert latest == NOW + 100 * MS - 16 * MS


def test_take_cuts_a_partial_batch_to_save_its_head():
    made = filled(13, 500, 500)
    tickets, size, latest = batcher.take(made, PROFILE, NOW)

    assert (numbers(tickets), size) == ([1, 2], 2)
    assert latest == NOW + 1 * MS
    assert len(made.ready) == 1


def test_take_leaves_a_lower_class_that_would_be_late():
    made = filled(500, 10, 400, priorities=(0, 1, 0))
    tickets, size, latest = batcher.take(made, PROFILE, NOW)

    assert (numbers(tickets), size) == ([3, 1], 4)
    assert latest == NOW + 400 * MS - 16 * MS
    assert numbers(made.ready) == [2]
