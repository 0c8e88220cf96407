"""Whatever waits, and whatever a batch costs: who is taken, how many, at which size, and by when."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.scheduling import batcher
from gateway.scheduling.line import Line
from gateway.scheduling.profile import Profile
from gateway.scheduling.ticket import Body, Seal, Stage, Ticket
from shm.arena import BodyArena, Region
from shm.wire import ProfilePoint

MS = 1_000_000
NOW = 10**12

pytestmark = pytest.mark.slow
quick = settings(max_examples=200, deadline=None, derandomize=True)


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Any sizes and any times, also ones that shrink with the size: measurements are noisy."""
    sizes = draw(st.sets(st.sampled_from([1, 2, 3, 4, 6, 8, 16, 32]), min_size=1))
    points = []
    for size in sizes:
        p50_ns = draw(st.integers(0, 100 * MS))
        points.append(ProfilePoint(size, p50_ns, p50_ns + draw(st.integers(0, 20 * MS))))
    deadline_ns = draw(st.integers(1, 1000 * MS))
    return Profile(points, deadline_ns=deadline_ns, worker_count=draw(st.integers(1, 8)))


@st.composite
def lines(draw: st.DrawFn) -> Line:
    line = Line(
        0, "m", slot_count=64, queue_max=64, window_ns=draw(st.sampled_from([0, 5 * MS])), deadline_ns=1000 * MS
    )
    for number in range(1, draw(st.integers(1, 40)) + 1):
        body = Body(BodyArena(64), Region(0, 64))
        deadline_ns = NOW + draw(st.integers(1, 400 * MS))
        ticket = Ticket(number, line, body, 0, 64, 0, draw(st.integers(0, 1)), deadline_ns, 5, NOW)
        ticket.stage = Stage.QUEUED
        ticket.decoded_ns = NOW - draw(st.integers(0, 10 * MS))
        line.enqueue(ticket, ticket.decoded_ns)
    return line


@quick
@given(profiles(), st.integers(1, 100))
def test_a_size_is_warmed_and_holds_what_is_taken(profile: Profile, waiting: int):
    count, size = profile.size_for(waiting)

    assert size in profile.sizes
    assert 0 < count <= min(size, waiting)
    assert size <= profile.best_size
    if waiting >= profile.best_size:
        assert count == size == profile.best_size


@quick
@given(profiles(), st.integers(1, 1000 * MS), st.integers(1, 8))
def test_the_best_size_makes_the_next_start_or_is_the_smallest(shape: Profile, deadline_ns: int, workers: int):
    profile = Profile(shape.points, deadline_ns=deadline_ns, worker_count=workers)
    able = [size for size in profile.sizes if profile.times_ns[size] * (1 + 1 / workers) <= deadline_ns]
    rates = {point.size: point.size / max(1, point.p50_ns) for point in profile.points}

    assert profile.best_size in (able or profile.sizes[:1])
    assert rates[profile.best_size] >= 0.97 * max((rates[size] for size in able), default=0)


@settings(quick, max_examples=60)
@given(profiles(), lines(), st.integers(0, 50 * MS))
def test_what_is_taken_is_in_time_and_in_order(profile: Profile, line: Line, busy_ns: int):
    start_ns = NOW + busy_ns
    while batcher.late_head(line, profile, start_ns) is not None:
        line.ready.pop()
    assume(len(line.ready))
    waiting = sorted(line.ready, key=lambda ticket: (ticket.key, ticket.number))

    tickets, size, latest_ns = batcher.take(line, profile, start_ns)

    end_ns = start_ns + profile.times_ns[size]
    assert 0 < len(tickets) <= size
    assert tickets[0] is waiting[0]
    assert [ticket for ticket in waiting if ticket.deadline_ns >= end_ns][: len(tickets)] == tickets
    assert latest_ns == min(ticket.deadline_ns for ticket in tickets) - profile.times_ns[size] >= start_ns
    assert sorted(line.ready, key=lambda ticket: (ticket.key, ticket.number)) == [
        ticket for ticket in waiting if ticket not in tickets
    ]
    assert len(line.ready) == len(waiting) - len(tickets)
    if line.window_ns or not len(line.ready):
        assert line.window_from_ns == min((ticket.decoded_ns for ticket in line.ready), default=0)


@quick
@given(profiles(), lines(), st.integers(0, 50 * MS), st.integers(0, 20 * MS))
def test_a_decision_is_a_reason_or_a_time_to_come(profile: Profile, line: Line, busy_ns: int, waited_ns: int):
    now_ns = NOW + waited_ns
    decision = batcher.decide(line, profile, now_ns + busy_ns, now_ns)

    if len(line.ready) >= profile.best_size:
        assert decision is Seal.FULL
    elif not line.window_ns:
        assert decision is Seal.IDLE
    elif isinstance(decision, int):
        assert now_ns < decision <= line.window_from_ns + line.window_ns
        assert isinstance(batcher.decide(line, profile, decision, decision), Seal)
    else:
        assert decision in (Seal.WINDOW, Seal.DEADLINE)
