"""Whatever waits, and whatever a batch costs: who is taken in which way, how many, at which size, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.scheduling import batcher
from gateway.scheduling.profile import Profile
from gateway.scheduling.ticket import Seal, Stage
from shm.wire import ProfilePoint
from tests.support.core import MS, NOW, line, ticket

if TYPE_CHECKING:
    from gateway.scheduling.batcher import Way
    from gateway.scheduling.line import Line
    from gateway.scheduling.ticket import Ticket

pytestmark = pytest.mark.slow
quick = settings(max_examples=200, deadline=None, derandomize=True)

ways = st.sampled_from(batcher.WAYS)
busy = st.integers(0, 50 * MS)


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Any sizes and any times, also ones that shrink with the size: measurements are noisy."""
    sizes = draw(st.sets(st.sampled_from([1, 2, 3, 4, 6, 8, 16, 32]), min_size=1))
    times_ns = [sorted(draw(st.tuples(*[st.integers(0, 100 * MS)] * 2))) for _ in sizes]
    return Profile([ProfilePoint(size, *pair) for size, pair in zip(sizes, times_ns, strict=True)])


@st.composite
def lines(draw: st.DrawFn, shapes: st.SearchStrategy[Profile]) -> tuple[Line, Profile]:
    """Decoded tickets of both classes, and what their batches cost; the plan's size is B* or more."""
    shape = draw(shapes)
    made = line(window_ns=draw(st.sampled_from([0, 5 * MS])))
    made.pace.best_size, made.pace.size = sorted(draw(st.tuples(*[st.sampled_from(shape.sizes)] * 2)))
    for number in range(1, draw(st.integers(1, 40)) + 1):
        due_ns = NOW + draw(st.integers(1, 400 * MS))
        image = ticket(
            number,
            made,
            due_ns=due_ns,
            deadline_ns=due_ns + draw(st.integers(0, 40 * MS)),
            priority=draw(st.integers(0, 1)),
            stage=Stage.QUEUED,
            at=NOW - draw(st.integers(0, 10 * MS)),
        )
        made.promise(image)
        made.enqueue(image, image.decoded_ns)
    return made, shape


def order(image: Ticket) -> tuple[int, int]:
    return image.due_ns, image.number


def waiting(made: Line) -> list[Ticket]:
    return sorted([*made.ready, *made.ready_batch], key=order)


@quick
@given(lines(profiles()), busy, ways)
def test_what_is_taken_fits_a_warmed_size_and_is_in_time_or_the_first_one_alone(case, busy_ns: int, way: Way):
    made, shape = case
    start_ns = NOW + busy_ns
    heads = [queue.peek() for queue in (made.ready, made.ready_batch)]

    tickets, size = batcher.take(made, shape, start_ns, way)

    assert size in shape.sizes
    assert len(tickets) <= min(size, made.pace.size)
    if any(start_ns + shape.times_ns[size] > image.deadline_ns for image in tickets):
        assert size == shape.sizes[0]
        assert len(tickets) == 1
        assert tickets[0] in heads


@quick
@given(lines(profiles()), busy, ways)
def test_nobody_is_lost_and_nobody_is_taken_twice(case, busy_ns: int, way: Way):
    made, shape = case
    before = waiting(made)

    tickets, _ = batcher.take(made, shape, NOW + busy_ns, way)

    assert sorted([*tickets, *waiting(made)], key=order) == before
    assert made.ready_count == len(before) - len(tickets)
    batcher.put_back(made, tickets)
    assert waiting(made) == before


@quick
@given(lines(profiles()), busy, ways)
def test_within_a_class_nobody_in_time_is_overtaken(case, busy_ns: int, way: Way):
    made, shape = case
    start_ns = NOW + busy_ns

    tickets, size = batcher.take(made, shape, start_ns, way)

    end_ns = start_ns + shape.times_ns[size]
    for priority in (0, 1):
        taken = [order(image) for image in tickets if image.priority == priority]
        left = [order(image) for image in waiting(made) if image.priority == priority and image.deadline_ns >= end_ns]
        assert taken == sorted(taken)
        assert not taken or not left or taken[-1] < left[0]


@quick
@given(lines(profiles()), busy)
def test_the_plan_s_own_way_takes_whatever_is_due_first(case, busy_ns: int):
    made, shape = case
    before = waiting(made)

    tickets, _ = batcher.take(made, shape, NOW + busy_ns, batcher.WAYS[-1])

    assert set(tickets) <= set(before[: made.pace.size])


@quick
@given(lines(profiles()), busy)
def test_somebody_is_always_taken_in_the_plan_s_own_way(case, busy_ns: int):
    made, shape = case

    assert batcher.take(made, shape, NOW + busy_ns, batcher.WAYS[-1])[0]


@quick
@given(lines(profiles()), busy)
def test_a_late_head_is_late_at_any_size_and_any_other_head_is_not(case, busy_ns: int):
    made, shape = case
    start_ns = NOW + busy_ns
    heads = [head for queue in (made.ready, made.ready_batch) if (head := queue.peek()) is not None]

    late = batcher.late_head(made, shape, start_ns)

    lates = [head for head in heads if start_ns + shape.least_ns > head.deadline_ns]
    assert late is (lates[0] if lates else None)
    assert shape.least_ns <= min(shape.times_ns.values())


@quick
@given(lines(profiles()), st.integers(0, 20 * MS))
def test_a_decision_is_a_reason_or_a_time_to_come(case, waited_ns: int):
    made, _ = case
    now_ns = NOW + waited_ns

    decision = batcher.decide(made, now_ns)

    if made.ready_count >= made.pace.size:
        assert decision is Seal.FULL
    elif not made.window_ns or not len(made.ready):
        assert decision is Seal.IDLE
    elif isinstance(decision, int):
        assert now_ns < decision <= made.window_from_ns + made.window_ns
        assert batcher.decide(made, decision) is Seal.WINDOW
    else:
        assert decision is Seal.WINDOW


@quick
@given(profiles(), st.integers(1, 32))
def test_a_count_runs_at_the_next_warmed_size(shape: Profile, count: int):
    count = min(count, shape.sizes[-1])

    above, below = shape.size_above(count), shape.size_below(count)

    assert below <= count <= above
    assert shape.by_count[count] == shape.times_ns[above]
    assert not [size for size in shape.sizes if below < size < above]


@quick
@given(profiles(), st.integers(1, 100 * MS))
def test_the_best_size_fits_and_none_that_fits_is_worth_more(shape: Profile, within_ns: int):
    able = {size: size / ns for size, ns in shape.times_ns.items() if ns <= within_ns}

    best = shape.best_size(lambda _, time_ns: time_ns <= within_ns)

    assert best in (able or shape.sizes[:1])
    assert not able or able[best] >= 0.99 * max(able.values())
