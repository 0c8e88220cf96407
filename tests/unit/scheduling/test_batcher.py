from __future__ import annotations

import pytest

from gateway.scheduling import batcher
from gateway.scheduling.batcher import WAYS, Way
from gateway.scheduling.profile import Profile
from gateway.scheduling.ticket import Seal, Stage
from shm.wire import ProfilePoint
from tests.support.core import MS, NOW, line, profile, ticket

PROFILE = profile((1, 10), (2, 12), (4, 16))
STEEP = profile((1, 10), (2, 20), (4, 40), (8, 80))
FLAT = profile((1, 10), (2, 10), (4, 10), (8, 10))

ALL, ALL_PADDED, HALF, QUARTER, URGENT, BY_DUE = WAYS


def filled(*dues_ms: int, window_ms: int = 0, batch: tuple[int, ...] = (), size: int = 4):
    """A line with decoded tickets 1, 2, ... that arrived a millisecond apart; dues in ms from NOW, deadlines too.

    `batch`: those of the batch class. `size`: B*, and what is planned with.
    """
    made = line(window_ns=window_ms * MS)
    made.pace.size = made.pace.best_size = size
    for number, due_ms in enumerate(dues_ms, 1):
        image = ticket(
            number,
            made,
            due_ns=NOW + due_ms * MS,
            priority=int(number in batch),
            stage=Stage.QUEUED,
            at=NOW + (number - 1) * MS,
        )
        made.promise(image)
        made.enqueue(image, image.decoded_ns)
    return made


def numbers(tickets) -> list[int]:
    return [each.number for each in tickets]


def taken(made, way: Way, shape=PROFILE, at: int = NOW) -> tuple[list[int], int]:
    tickets, size = batcher.take(made, shape, at, way)
    return numbers(tickets), size


# When


def test_nothing_to_run():
    assert batcher.decide(filled(), NOW) is None


def test_as_many_as_are_planned_with_are_full():
    assert batcher.decide(filled(500, 500, 500, 500, window_ms=50), NOW) is Seal.FULL
    assert batcher.decide(filled(500, 500, window_ms=50, size=2), NOW) is Seal.FULL


def test_both_classes_together_are_full():
    assert batcher.decide(filled(500, 500, window_ms=50, size=2, batch=(1,)), NOW) is Seal.FULL


def test_without_a_window_an_idle_worker_takes_what_there_is():
    assert batcher.decide(filled(500), NOW) is Seal.IDLE


def test_the_batch_class_alone_waits_for_no_window():
    assert batcher.decide(filled(500, window_ms=50, batch=(1,)), NOW) is Seal.IDLE


def test_a_window_counts_from_the_oldest():
    made = filled(500, 500, window_ms=5)

    assert batcher.decide(made, NOW + 2 * MS) == NOW + 5 * MS
    assert batcher.decide(made, NOW + 5 * MS) is Seal.WINDOW


def test_a_head_that_is_late_even_at_its_quickest():
    assert batcher.late_head(filled(10), PROFILE, NOW) is None
    assert batcher.late_head(filled(10), PROFILE, NOW + 1).number == 1
    assert batcher.late_head(filled(), PROFILE, NOW) is None


def test_a_head_may_be_as_lucky_as_the_quickest_batch_so_far():
    shape = profile((1, 10))
    shape.observe(1, 8 * MS, NOW)
    shape.refresh(NOW, 1.5)

    assert batcher.late_head(filled(10), shape, NOW + 2 * MS) is None
    assert batcher.late_head(filled(10), shape, NOW + 2 * MS + 1).number == 1


def test_a_late_head_of_the_batch_class_is_found_behind_real_time():
    assert batcher.late_head(filled(500, 10, batch=(2,)), PROFILE, NOW + 1).number == 2


def test_a_head_is_late_by_its_deadline_not_by_when_it_is_due():
    made = line()
    image = ticket(1, made, due_ns=NOW, deadline_ns=NOW + 10 * MS, stage=Stage.QUEUED)
    made.enqueue(image, NOW)

    assert batcher.late_head(made, PROFILE, NOW) is None


# Which


def test_real_time_is_taken_by_due_time():
    assert taken(filled(300, 200, 100, 400), ALL) == ([3, 2, 1, 4], 4)


def test_no_more_than_planned_are_taken():
    made = filled(100, 200, 300, 400, 500, size=2)

    assert taken(made, ALL) == ([1, 2], 2)
    assert made.ready_count == 3


def test_room_is_filled_up_with_the_batch_class():
    assert taken(filled(300, 10, 20, 30, batch=(2, 3, 4)), ALL, at=NOW - 100 * MS) == ([1, 2, 3, 4], 4)


def test_half_or_a_quarter_of_the_room_is_filled():
    dues, others = (300, *range(100, 170, 10)), tuple(range(2, 9))

    assert taken(filled(*dues, batch=others, size=8), HALF, FLAT) == ([1, 2, 3, 4], 4)
    assert taken(filled(*dues, batch=others, size=8), QUARTER, FLAT) == ([1, 2], 2)


def test_overload_s_larger_size_is_for_real_time_alone():
    made = filled(100, 200, 300, 400, batch=(2, 3, 4), size=4)
    made.pace.best_size = 2

    assert taken(made, ALL) == ([1, 2], 2)


def test_real_time_alone_is_taken_when_nothing_is_to_be_filled():
    assert taken(filled(300, 10, batch=(2,)), URGENT) == ([1], 1)
    assert taken(filled(10, batch=(1,)), URGENT) == ([], 1)


def test_the_batch_class_alone_fills_a_warmed_size_and_leaves_the_rest():
    assert taken(filled(100, 200, 300, batch=(1, 2, 3)), ALL) == ([1, 2], 2)
    assert taken(filled(100, 200, 300, batch=(1, 2, 3)), ALL_PADDED) == ([1, 2, 3], 4)


def test_the_batch_class_gives_up_what_would_only_be_padding():
    assert taken(filled(300, 100, 200, batch=(2, 3)), ALL) == ([1, 2], 2)


def test_by_due_time_no_class_goes_first():
    assert taken(filled(300, 100, 200, 400, 500, batch=(2, 4)), BY_DUE) == ([2, 3, 1, 4], 4)


def test_what_does_not_fill_a_warmed_size_is_padded_where_rows_are_cheap():
    assert taken(filled(100, 200, 300), ALL) == ([1, 2, 3], 4)


def test_what_does_not_fill_a_warmed_size_waits_where_rows_are_dear():
    assert taken(filled(*[900] * 5, size=8), ALL, STEEP) == ([1, 2, 3, 4], 4)
    assert taken(filled(*[900] * 5, size=8), ALL_PADDED, STEEP) == ([1, 2, 3, 4, 5], 8)
    assert taken(filled(*[900] * 7, size=8, batch=(6, 7)), ALL, STEEP) == ([1, 2, 3, 4], 4)


def test_nobody_waits_who_would_keep_the_next_batch_small():
    # Four are done after 40 ms, and a batch of B* behind them after 120.
    assert taken(filled(*[120] * 5, size=8), ALL, STEEP) == ([1, 2, 3, 4], 4)
    assert taken(filled(*[119] * 5, size=8), ALL, STEEP) == ([1, 2, 3, 4, 5], 8)


def test_below_the_smallest_size_everything_is_padded():
    assert taken(filled(100, 200, size=8), ALL, profile((8, 10))) == ([1, 2], 8)
    assert taken(filled(100, 200, size=8, batch=(1, 2)), ALL, profile((8, 10))) == ([1, 2], 8)


# In time


def test_a_batch_is_cut_down_where_that_answers_more_in_time():
    made = filled(13, 14, 500)

    assert taken(made, ALL) == ([1, 2], 2)
    assert numbers(made.ready) == [3]


def test_a_batch_is_not_cut_down_for_an_old_head_s_sake():
    made = filled(13, 500, 500, 500)

    assert taken(made, ALL) == ([2, 3, 4], 4)
    assert numbers(made.ready) == [1]


def test_of_equally_many_in_time_the_quicker_batch_is_taken():
    assert taken(filled(11, 500), ALL, profile((1, 10), (2, 12))) == ([1], 1)


def test_the_first_is_tried_alone_where_nothing_is_expected_in_time():
    made = filled(5, 6)

    assert taken(made, ALL) == ([1], 1)
    assert numbers(made.ready) == [2]


def test_a_late_one_of_the_batch_class_goes_back_to_its_own_queue():
    made = filled(500, 10, 400, batch=(2,))

    assert taken(made, ALL) == ([3, 1], 2)
    assert numbers(made.ready_batch) == [2]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_put_back_is_taken_again(way: Way):
    made = filled(300, 100, 200, 400, 500, batch=(2, 4))
    tickets, size = batcher.take(made, PROFILE, NOW, way)

    batcher.put_back(made, tickets)

    assert made.ready_count == 5
    assert batcher.take(made, PROFILE, NOW, way) == (tickets, size)


def test_a_small_batch_starts_before_a_large_one_that_is_sent_at_the_same_time():
    shape = Profile([ProfilePoint(1, 5 * MS, 5 * MS, 2 * MS), ProfilePoint(2, 6 * MS, 6 * MS, 4 * MS)])
    made = filled(8, 500, size=2)
    # Both together start 4 ms from now and end at 10, the first one alone starts at 2 and ends at 7.
    tickets, size = batcher.take(made, shape, NOW, BY_DUE, NOW)
    assert (numbers(tickets), size) == ([1], 1)
    # Behind what keeps the device busy until then they start at the same time.
    other = filled(8, 500, size=2)
    tickets, size = batcher.take(other, shape, NOW + 4 * MS, BY_DUE, NOW)
    assert (numbers(tickets), size) == ([2], 1)
