"""Batch sizes from a profile: the best one keeps the deadline, the others cover what is below it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.tuning import choice
from shm.wire import ProfilePoint

MEASURED = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def linear(base_ms: float, image_ms: float, sizes=MEASURED, p99: float = 1.0) -> list[ProfilePoint]:
    times = {size: base_ms + image_ms * size for size in sizes}
    return [ProfilePoint(size, int(ms * 1e6), int(p99 * ms * 1e6)) for size, ms in times.items()]


def test_the_best_size_is_the_largest_that_two_batches_fit_in():
    found = choice.choose(linear(2.9, 0.77), budget_ms=45.0, worker_count=1)
    assert found.best_size == 24, "2 l(24) = 42.8; 28 is the next round size"
    assert found.rate == pytest.approx(24 / (2.9 + 0.77 * 24) * 1e3)


def test_more_workers_leave_room_for_larger_batches():
    found = choice.choose(linear(2.9, 0.77), budget_ms=45.0, worker_count=4)
    assert found.best_size == 36, "1.25 l(40) = 42.1, and 36 is as fast within a hundredth"
    assert found.rate == pytest.approx(4 * 36 / (2.9 + 0.77 * 36) * 1e3)


def test_the_tail_decides_what_fits_and_the_median_what_is_fast():
    found = choice.choose(linear(2.9, 0.77, p99=2.0), budget_ms=45.0, worker_count=1)
    assert found.best_size == 10, "2 * 2 l(10) = 42.4"
    assert found.rate == pytest.approx(10 / (2.9 + 7.7) * 1e3)


def test_a_device_on_which_batches_gain_nothing_gets_the_smallest():
    found = choice.choose(linear(0.0, 5.0), budget_ms=1000.0, worker_count=1)
    assert (found.sizes, found.best_size, found.waste, found.fits) == ((1,), 1, 0.0, True)


def test_a_device_that_slows_down_with_size_is_not_pushed():
    points = [ProfilePoint(1, 5_000_000, 5_000_000), ProfilePoint(2, 9_600_000, 9_600_000)]
    points.append(ProfilePoint(32, 227_000_000, 227_000_000))
    assert choice.choose(points, budget_ms=10_000.0, worker_count=1).sizes == (1, 2)


def test_where_nothing_fits_it_is_one_at_a_time():
    found = choice.choose(linear(2.9, 0.77), budget_ms=1.0, worker_count=1)
    assert (found.sizes, found.fits) == ((1,), False)


def test_sizes_cover_what_is_below_the_best_with_little_padding():
    found = choice.choose(linear(2.9, 0.77), budget_ms=45.0, worker_count=1)
    assert found.sizes[0] == 1
    assert found.sizes[-1] == 24
    assert found.waste <= choice.WASTE_MAX


def test_where_an_image_costs_next_to_nothing_few_sizes_do():
    found = choice.choose(linear(40.0, 1.0), budget_ms=1000.0, worker_count=1)
    assert found.best_size == 240
    assert len(found.sizes) <= 14
    assert found.sizes[1] >= 6, "padding 2 images to 6 costs a tenth of the batch's time"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    base_ms=st.floats(0, 100),
    image_ms=st.floats(0.01, 20),
    budget_ms=st.floats(-10, 5000),
    worker_count=st.integers(1, 64),
    measured=st.sets(st.sampled_from(MEASURED)),
)
def test_any_profile_gives_a_choice_that_holds(base_ms, image_ms, budget_ms, worker_count, measured):
    points = linear(base_ms, image_ms, sorted({1, *measured}))
    found = choice.choose(points, budget_ms=budget_ms, worker_count=worker_count)
    assert list(found.sizes) == sorted(set(found.sizes))
    assert found.sizes[0] == 1
    assert found.sizes[-1] == found.best_size <= points[-1].size
    assert len(found.sizes) <= choice.SIZES_MAX
    fits = (1 + 1 / worker_count) * (base_ms + image_ms * found.best_size) <= budget_ms + 1e-3
    assert fits or found.best_size == 1
    assert fits or not found.fits


def test_only_what_was_measured_is_taken_the_second_time():
    points = linear(2.9, 0.77, (1, 3, 5, 8, 12, 24, 32))
    found = choice.choose(points, budget_ms=45.0, worker_count=1, only=(1, 3, 5, 8, 12, 24))
    assert found.sizes == (1, 3, 5, 8, 12, 24)
    tighter = choice.choose(points, budget_ms=30.0, worker_count=1, only=(1, 3, 5, 8, 12, 24))
    assert tighter.sizes == (1, 3, 5, 8, 12)


def test_the_curve_is_straight_between_points():
    curve = choice.Curve([ProfilePoint(4, 8_000_000, 10_000_000), ProfilePoint(1, 2_000_000, 4_000_000)])
    assert [curve.p50_ms(size) for size in (1, 2, 4)] == [2.0, 4.0, 8.0]
    assert [curve.p99_ms(size) for size in (1, 2, 4)] == [4.0, 6.0, 10.0]
    assert curve.rate(4) == 500
    assert choice.Curve([ProfilePoint(1, 0, 0)]).rate(1) > 0, "a backend without cost is not divided by"


def test_a_tail_that_a_larger_batch_does_not_have_is_noise():
    points = linear(2.9, 0.77)
    points[2] = ProfilePoint(4, points[2].p50_ns, 200_000_000)
    curve = choice.Curve(points)
    assert curve.p99_ms(4) == curve.p99_ms(8)
    assert choice.choose(points, budget_ms=45.0, worker_count=1).best_size == 24
    slow = choice.Curve([ProfilePoint(1, 9_000_000, 10_000_000), ProfilePoint(2, 5_000_000, 6_000_000)])
    assert slow.p99_ms(1) == 9.0, "no tail is under its median"


def test_a_deadline_keeps_a_tenth_and_at_least_a_millisecond():
    assert choice.budget_ms(50.0, 2.0) == 43.0
    assert choice.budget_ms(5.0, 2.0) == 2.0


@pytest.mark.parametrize(("single_ms", "decode_ms", "workers"), [(3.7, 1.0, 1), (300.0, 5.0, 1), (1.0, 0.2, 4)])
def test_the_least_deadline_is_one_in_which_one_image_fits(single_ms, decode_ms, workers):
    least = choice.deadline_ms_least(single_ms, decode_ms, workers)
    needed = (1 + 1 / workers) * single_ms
    assert choice.budget_ms(least, decode_ms) == pytest.approx(needed)


def test_decoders_are_counted_up():
    assert choice.decoders_needed(1000.0, 300.0) == 4
    assert choice.decoders_needed(10.0, 300.0) == 1
