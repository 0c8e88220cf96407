from __future__ import annotations

import pytest

from gateway.scheduling.line import Batching
from gateway.scheduling.pace import NO_QUOTA
from gateway.scheduling.ticket import Stage
from tests.support.core import MS, NOW, line, profile, promised, ticket


def ready(number: int, of, *, after_ms: int = 0, priority: int = 0):
    image = ticket(number, of, stage=Stage.QUEUED, priority=priority, at=NOW + after_ms * MS)
    of.enqueue(image, image.decoded_ns)
    return image


def test_promises_are_kept_in_order_of_their_due_times():
    assert promised(line(), NOW + 2, NOW + 3, NOW + 1, NOW + 2).dues == [NOW + 1, NOW + 2, NOW + 2, NOW + 3]


@pytest.mark.parametrize("due_ns", [1, 2, 3])
def test_one_promise_of_equals_is_forgotten(due_ns: int):
    made = line()
    images = [ticket(number, made, due_ns=due, priority=1) for number, due in enumerate([1, 2, 2, 3])]
    for image in images:
        made.promise(image)

    made.forget(ticket(9, made, due_ns=due_ns, priority=1))

    assert len(made.dues) == 3
    assert made.dues.count(due_ns) == [0, 0, 1, 0][due_ns]
    assert made.batch_count == 3


def test_what_was_never_promised_cannot_be_forgotten():
    with pytest.raises(AssertionError):
        promised(line(), NOW + 1, NOW + 3).forget(ticket(1, line(), due_ns=NOW + 2))


def test_the_batch_class_is_counted():
    made = line()
    first, second = ticket(1, made, priority=1), ticket(2, made)
    made.promise(first)
    made.promise(second)
    assert made.batch_count == 1

    made.forget(first)
    assert made.batch_count == 0


def test_each_class_has_its_queue():
    made = line()
    first, second = ready(1, made), ready(2, made, priority=1)

    assert (made.ready.peek(), made.ready_batch.peek()) == (first, second)
    assert made.ready_count == 2
    assert made.queue_of(second) is made.ready_batch


def test_a_window_starts_with_the_first_and_again_with_the_oldest_that_is_left():
    made = line(window_ns=5 * MS)
    first = ready(1, made, after_ms=1)
    ready(2, made, after_ms=3, priority=1)
    ready(3, made, after_ms=2)
    assert made.window_from_ns == NOW + 1 * MS

    made.ready.pop()
    first.stage = Stage.RUNNING
    made.after_seal()
    assert made.window_from_ns == NOW + 2 * MS


def test_an_empty_line_has_no_window():
    made = line(window_ns=5 * MS)
    ready(1, made)
    made.ready.pop()
    made.after_seal()
    assert made.window_from_ns == 0

    ready(2, made, after_ms=7)
    assert made.window_from_ns == NOW + 7 * MS


def test_without_a_window_nobody_looks_for_the_oldest():
    made = line()
    ready(1, made)
    ready(2, made, after_ms=3)
    made.ready.pop()
    made.after_seal()

    assert made.window_from_ns == NOW


def test_waiting_is_small_and_large():
    made = line()
    made.small.push(1, ticket(1, made))
    made.large.push(1, ticket(2, made))

    assert made.waiting_count == 2


def test_statistics_are_nothing_before_the_model_was_measured():
    assert line().statistics() is None


def test_statistics_say_how_batches_are_planned():
    made = line(deadline_ns=200 * MS)
    made.profile = profile((1, 10), (4, 40))
    made.pace.best_size, made.pace.size, made.pace.tail_ns = 1, 4, 30 * MS
    assert made.pace.quota == NO_QUOTA

    assert made.statistics() == Batching(
        size_best=1, size_planned=4, margin_ns=30 * MS, inflation=1.02, overrun_ns=30 * MS, quota=None
    )
    made.pace.quota = 12
    assert made.statistics().quota == 12
