from __future__ import annotations

import math

import pytest

from gateway.scheduling.pace import (
    INFLATION_MAX,
    INFLATION_MIN,
    NO_QUOTA,
    TAIL_PERIOD_NS,
    Pace,
)
from gateway.scheduling.profile import Profile
from shm.wire import ProfilePoint
from tests.support.core import MS, NOW, S, profile

GPU = ((1, 2.0), (2, 2.1), (4, 2.3), (8, 2.6), (16, 3.2), (32, 4.6), (64, 9.2))


def steady() -> Pace:
    """On a device whose runs all took the same at load. Overruns are counted in milliseconds, the deadline's 64ths."""
    pace = Pace(64 * MS)
    planned(pace, (1, 10))
    return pace


def planned(
    pace: Pace,
    *points: Profile | tuple[int, float],
    share: float = 1.0,
    models: int = 1,
    taken_ms: float = 0,
    longest_ms: float = 0,
    workers: int = 1,
    at: int = NOW,
) -> tuple[int, int]:
    """(size to plan with, B*), with (size, ms) each, or with one profile."""
    size = pace.plan(
        points[0] if isinstance(points[0], Profile) else profile(*points),
        share=share,
        active_count=models,
        taken_ns=int(taken_ms * MS),
        longest_ns=int(longest_ms * MS),
        worker_count=workers,
        now_ns=at,
    )
    return size, pace.best_size


# Margin


def spread(p99_ms: float) -> Profile:
    """Of three sizes, whose slowest run at load took so long against a median of 10 ms; one was steady."""
    return Profile([ProfilePoint(size, 10 * MS, int(ms * MS)) for size, ms in ((1, 10), (2, p99_ms), (4, p99_ms))])


@pytest.mark.parametrize(("p99_ms", "margin_ms"), [(10.09, 1), (10.2, 20)])
def test_a_device_is_steady_within_one_percent(p99_ms: float, margin_ms: int):
    pace = Pace(1 * S)
    planned(pace, spread(p99_ms))

    assert pace.margin_ns(200 * MS) == margin_ms * MS


def test_a_tenth_of_the_budget_is_kept_back_of_a_device_that_is_not_steady():
    assert Pace(1 * S).margin_ns(200 * MS) == 20 * MS


def test_at_least_a_millisecond_is_kept_back():
    assert Pace(1 * S).margin_ns(5 * MS) == 1 * MS
    assert Pace(1 * S).margin_ns(500_000) == 1 * MS, "more than there is"


def test_more_is_kept_back_where_batches_end_late():
    pace = Pace(1 * S)
    pace.tail_ns = 25 * MS

    assert [pace.margin_ns(ms * MS) for ms in (200, 250, 300)] == [25 * MS, 25 * MS, 30 * MS]


def test_never_more_than_a_third_is_kept_back():
    pace = Pace(1 * S)
    pace.tail_ns = 400 * MS

    assert pace.margin_ns(300 * MS) == 100 * MS


# Overruns


def test_a_steady_device_is_planned_without_a_margin_from_its_first_review_on():
    seen = []
    for reviews in (1, 2):
        pace = Pace(10_200_000)
        for _ in range(reviews):
            pace.learn(NOW)
            planned(pace, *GPU)
        seen.append((pace.best_size, pace.tail_ns))

    assert seen[0] == seen[1]


def test_a_tail_is_how_long_all_but_few_batches_overrun_rounded_up():
    pace = steady()
    for _ in range(10):
        pace.ran(10 * MS, 12_500_000)
        pace.ran(40 * MS, 42_000_001)
    pace.learn(NOW)

    assert pace.tail_ns == 3 * MS


def test_batches_that_end_in_time_leave_no_tail():
    pace = steady()
    pace.ran(10 * MS, 10 * MS)
    pace.ran(10 * MS, 1 * MS)
    pace.learn(NOW)

    assert pace.tail_ns == 0


@pytest.mark.parametrize(("good", "tail_ms"), [(998, 2), (999, 0)])
def test_one_batch_in_a_thousand_may_be_later_than_the_tail(good: int, tail_ms: int):
    pace = steady()
    for _ in range(good):
        pace.ran(10 * MS, 10 * MS)
    pace.ran(10 * MS, 12 * MS)
    pace.learn(NOW)

    assert pace.tail_ns == tail_ms * MS


def test_a_tail_is_half_the_deadline_at_most():
    pace = steady()
    pace.ran(1, 10 * S)
    pace.learn(NOW)

    assert pace.tail_ns == 32 * MS


def test_the_shortest_of_deadlines_has_a_tail_too():
    pace = Pace(1)
    planned(pace, (1, 10))
    pace.ran(10, 11)
    pace.learn(NOW)

    assert pace.tail_ns == 1


def test_overruns_are_forgotten_after_two_periods():
    pace = steady()
    pace.learn(NOW)
    pace.ran(10 * MS, 20 * MS)
    pace.learn(NOW + TAIL_PERIOD_NS)
    assert pace.tail_ns == 10 * MS

    pace.learn(NOW + 2 * TAIL_PERIOD_NS)
    assert pace.tail_ns == 0


def test_a_fifth_of_the_deadline_is_kept_back_until_a_device_that_is_not_steady_has_shown_what_it_does():
    pace = Pace(64 * MS)
    for count, tail_ns in ((199, 12_800_000), (1, 1 * MS), (1, 1 * MS)):
        for _ in range(count):
            pace.ran(10 * MS, 11 * MS)
        pace.learn(NOW)
        assert pace.tail_ns == tail_ns


def test_what_a_device_that_is_not_steady_has_shown_is_forgotten_with_its_batches():
    pace = Pace(64 * MS)
    pace.learn(NOW)
    for _ in range(200):
        pace.ran(10 * MS, 10 * MS)
    pace.learn(NOW + TAIL_PERIOD_NS)
    assert pace.tail_ns == 0

    pace.learn(NOW + 2 * TAIL_PERIOD_NS)
    assert pace.tail_ns == 12_800_000


# Inflation


def test_inflation_grows_while_more_than_one_in_a_thousand_is_late():
    pace = Pace(1 * S)
    pace.accepted(1999)
    pace.late()
    pace.late()
    pace.learn(NOW)

    assert pace.inflation == pytest.approx(1.04)


def test_inflation_falls_slowly_to_its_least():
    pace = Pace(1 * S)
    pace.inflation = 1.0215
    pace.accepted(2000)
    pace.late()
    pace.late()

    pace.learn(NOW)
    assert pace.inflation == pytest.approx(1.0205), "just one in a thousand"
    pace.learn(NOW + 1 * S)
    assert pace.inflation == INFLATION_MIN == 1.02


def test_inflation_is_bounded():
    pace = Pace(1 * S)
    for second in range(100):
        pace.late()
        pace.learn(NOW + second * S)

    assert pace.inflation == INFLATION_MAX == 1.5


def test_inflation_is_looked_at_once_a_second():
    pace = Pace(1 * S)
    pace.learn(NOW)
    pace.late()

    pace.learn(NOW + 1 * S - 1)
    assert pace.inflation == 1.02
    pace.learn(NOW + 1 * S)
    assert pace.inflation == pytest.approx(1.04)


# What is asked for


def test_a_rate_is_what_was_asked_for_lately():
    pace = Pace(1 * S)
    for millisecond in range(1000):
        pace.offered(5, NOW + millisecond * MS)

    assert pace.rate(NOW + 999 * MS) * S == pytest.approx(5000, rel=0.05)
    assert pace.rate(NOW + 1019 * MS) == pytest.approx(pace.rate(NOW + 999 * MS) / math.e)


def test_a_rate_is_nothing_before_anything_was_asked_for():
    assert Pace(1 * S).rate(NOW) == 0


def test_a_time_that_goes_back_does_not_raise_the_rate():
    pace = Pace(1 * S)
    pace.offered(1, NOW)

    assert pace.rate(NOW - 1 * S) == pace.rate(NOW)


def test_a_model_is_active_for_a_second_after_it_was_asked():
    pace = Pace(1 * S)
    assert not pace.is_active(NOW)
    assert pace.offered(1, NOW), "it was asleep"

    assert pace.is_active(NOW + 1 * S - 1)
    assert not pace.offered(1, NOW + 1 * S - 1)
    assert pace.offered(1, NOW + 2 * S - 1)
    assert not pace.is_active(NOW + 3 * S)


def test_refusals_are_remembered_for_a_second():
    pace = Pace(1 * S)
    for _ in range(2):
        pace.refused(NOW)
    assert not pace.is_refusing(NOW), "of two hundred at least"
    pace.refused(NOW)

    assert pace.is_refusing(NOW + 1 * S - 1)
    assert not pace.is_refusing(NOW + 1 * S)


@pytest.mark.parametrize(("refused", "refusing"), [(10, False), (11, True)])
def test_one_refusal_in_a_hundred_is_no_overload(refused: int, refusing: bool):  # noqa: FBT001
    pace = Pace(1 * S)
    pace.offered(1000, NOW)
    for _ in range(refused):
        pace.refused(NOW)

    assert pace.is_refusing(NOW) is refusing


def test_refusals_are_counted_second_by_second():
    pace = Pace(1 * S)
    for second in range(3):
        pace.learn(NOW + second * S)
        pace.refused(NOW + second * S)
        pace.refused(NOW + second * S)

    assert not pace.is_refusing(NOW + 2 * S)


def test_demand_is_what_half_a_deadline_brings_in_whole_batches():
    pace = Pace(200 * MS)
    shape = profile((1, 10), (4, 20))
    assert pace.demand_ns(shape, NOW) == 0

    pace.offered(1, NOW)  # 50 a second, for the memory of 20 ms
    assert pace.demand_ns(shape, NOW) == 20 * MS + 10 * MS  # 5 images


# B*


def test_an_image_that_just_missed_a_batch_still_makes_the_next():
    assert planned(Pace(10 * MS), *GPU) == (16, 16)  # 2 * 4.6 > 10 - 1
    assert planned(Pace(10 * MS), *GPU, workers=2) == (32, 32)  # 4.6 <= 2 * (10 - 1 - 4.6)


def test_under_overload_a_batch_is_as_large_as_can_be_collected_and_run_in_time():
    pace = Pace(10 * MS)
    for millisecond in range(200):
        pace.offered(20, NOW + millisecond * MS)

    # 32 images are there in 1.6 ms and done 4.6 later; 64 in 3.2, and 9.2 is too long.
    assert planned(pace, *GPU, at=NOW + 199 * MS) == (32, 16)


def test_a_slow_rate_collects_no_larger_batch():
    pace = Pace(10 * MS)
    pace.offered(1, NOW)

    assert planned(pace, *GPU) == (16, 16)


def test_a_deadline_that_fits_nothing_leaves_the_smallest_size():
    assert planned(Pace(2 * MS), *GPU) == (1, 1)
    assert planned(Pace(2 * MS), (4, 5)) == (4, 4)


def test_a_profile_of_one_size_is_planned_with_that():
    assert planned(Pace(100 * MS), (8, 10)) == (8, 8)


def test_what_overruns_is_planned_smaller():
    pace = Pace(8 * MS)
    assert planned(pace, *GPU) == (16, 16)  # 2 * 3.2 <= 8 - 1

    pace.tail_ns = 2_500_000
    assert planned(pace, *GPU) == (8, 8)  # 2 * 2.6 <= 8 - 2.5


def test_alone_a_model_has_no_quota():
    pace = Pace(100 * MS)
    planned(pace, (1, 10), share=1.0)

    assert pace.quota == NO_QUOTA


def test_what_others_take_leaves_a_quota():
    pace = Pace(100 * MS)
    planned(pace, (1, 10), share=0.5, taken_ms=30)
    assert pace.quota == 5, "80 ms behind a batch, less 30"

    planned(pace, (1, 10), share=0.5, taken_ms=70)
    assert pace.quota == 4, "its share, however much others want"


def test_a_quota_leaves_time_for_the_longest_batch_of_the_others():
    pace = Pace(100 * MS)
    planned(pace, (1, 10), share=0.5, taken_ms=20, longest_ms=50)
    assert pace.quota == 2, "49 ms behind that, less 20"

    planned(pace, (1, 10), share=0.5, taken_ms=20, longest_ms=150)
    assert pace.quota == 1


def test_a_quota_is_a_batch_at_least():
    pace = Pace(100 * MS)
    planned(pace, (4, 24), share=0.01, taken_ms=99)

    assert pace.quota == pace.size * 4 == 4


def test_beside_others_a_batch_may_take_a_quarter_of_the_deadline():
    assert planned(Pace(40 * MS), *GPU, share=0.1, models=10, taken_ms=39) == (32, 32)  # 9.2 fits, and pays no more
    assert planned(Pace(16 * MS), *GPU, share=0.1, models=10, taken_ms=16) == (16, 16)  # 4.6 > 16 / 4


def test_a_model_of_little_weight_has_shorter_batches():
    assert planned(Pace(40 * MS), *GPU, share=0.5, models=2, taken_ms=39) == (32, 32)
    assert planned(Pace(40 * MS), *GPU, share=0.16, models=2, taken_ms=39) == (16, 16)  # 3.2 is 0.32 quarters
    assert planned(Pace(40 * MS), *GPU, share=0.9, models=2, taken_ms=39) == (32, 32), "never more than a quarter"


def test_what_does_not_fit_in_memory_is_not_planned_with():
    pace = Pace(1 * S)
    planned(pace, *GPU)
    pace.size = 64
    assert pace.best_size == 32

    pace.cut(16)
    assert (pace.size, pace.best_size) == (16, 16)
    pace.cut(32)
    assert (pace.size, pace.best_size) == (16, 16)
