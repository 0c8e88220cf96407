from __future__ import annotations

import pytest

from gateway.scheduling.profile import LOOK_NS, MEMORY_NS, Profile
from shm.wire import ProfilePoint
from tests.support.core import MS, NOW, profile

# EfficientNet-Lite0 on one CPU core: 4.8 ms an image at batch 2, 7.1 ms at batch 32.
CPU = [(1, 5.0), (2, 9.6), (4, 20.8), (8, 44.0), (16, 100.0), (32, 227.2)]
# A GPU: nearly flat, then linear.
GPU = [(1, 2.0), (2, 2.1), (4, 2.3), (8, 2.6), (16, 3.2), (32, 4.6), (64, 9.2)]


def best(points, *, within_ms: float = 1000) -> int:
    return profile(*points).best_size(lambda _, time_ns: time_ns <= within_ms * MS)


def observed(made: Profile, size: int, *took_ms: float, at: int = NOW) -> Profile:
    for ms in took_ms:
        made.observe(size, int(ms * MS), at)
    return made


def test_on_a_cpu_small_batches_win():
    assert best(CPU) == 2


def test_on_a_gpu_large_batches_win_until_they_stop_paying():
    # 64 rows are no quicker an image than 32, which answer sooner.
    assert best(GPU) == 32


def test_only_sizes_that_fit_are_chosen():
    assert best(GPU, within_ms=4.5) == 16


def test_the_smallest_size_is_chosen_where_none_fits():
    assert best(GPU, within_ms=1) == 1


def test_points_may_come_in_any_order():
    assert profile(*reversed(CPU)).sizes == [1, 2, 4, 8, 16, 32]


def test_times_are_the_99th_percentile():
    assert Profile([ProfilePoint(1, 10, 10), ProfilePoint(2, 12, 90)]).times_ns == {1: 10, 2: 90}


def test_a_measured_time_is_never_zero():
    assert Profile([ProfilePoint(1, 0, 0)]).times_ns == {1: 1}


def test_any_count_costs_what_the_next_warmed_size_costs():
    assert profile((2, 3), (4, 5), (8, 7)).by_count == [0, 3 * MS, 3 * MS, 5 * MS, 5 * MS] + [7 * MS] * 4
    assert profile((4, 5)).by_count == [0] + [5 * MS] * 4


def test_sizes_above_and_below_a_count():
    made = profile((2, 3), (8, 7))

    assert [made.size_above(count) for count in (1, 2, 3, 8)] == [2, 2, 8, 8]
    assert [made.size_below(count) for count in (0, 1, 2, 7, 8, 9)] == [0, 0, 2, 2, 8, 8]


def test_padding_pays_where_rows_are_cheap():
    assert profile(*GPU).padding_pays(11)


def test_padding_does_not_pay_where_rows_are_dear():
    steep = profile((1, 1), (4, 3), (16, 11))

    assert not steep.padding_pays(5)  # 5 rows in 11 ms, or 4 in 3 ms
    assert steep.padding_pays(15)  # 15 rows in 11 ms, or 4 in 3 ms


def test_padding_always_pays_where_nothing_is_padded_or_nothing_can_be_split():
    assert profile(*CPU).padding_pays(8)
    assert profile((4, 1)).padding_pays(2)


def test_a_larger_batch_never_takes_less_than_a_smaller_one():
    made = profile((1, 12), (2, 10), (4, 14))

    assert made.times_ns == {1: 12 * MS, 2: 12 * MS, 4: 14 * MS}
    assert made.by_count == [0, 12 * MS, 12 * MS, 14 * MS, 14 * MS]


def test_the_spread_is_how_much_slower_than_the_median_the_slowest_was():
    points = [ProfilePoint(size, 100, p99) for size, p99 in ((1, 100), (2, 110), (4, 130))]

    assert Profile(points).spread == pytest.approx(0.1)
    assert Profile([ProfilePoint(1, 0, 0)]).spread == -1


# What is learned while it runs


def test_the_least_is_what_the_smallest_batch_took_at_best():
    made = Profile([ProfilePoint(2, 10 * MS, 12 * MS), ProfilePoint(4, 9 * MS, 9 * MS)])
    made.refresh(NOW, 1.5)
    assert made.least_ns == 10 * MS, "the median at load, whatever is expected"

    observed(made, 2, 11, 8, 11).refresh(NOW + LOOK_NS, 1.5)
    assert made.least_ns == 8 * MS
    made.refresh(NOW + MEMORY_NS + 1, 1.5)
    assert made.least_ns == 10 * MS


def test_a_size_is_looked_at_after_every_fourth_batch_of_it():
    made = observed(profile((1, 10), (2, 15)), 1, 11, 11, 11)
    observed(made, 2, 16)
    assert made.times_ns == {1: 10 * MS, 2: 15 * MS}

    observed(made, 1, 11)
    assert made.times_ns == {1: 11 * MS, 2: 15 * MS}


def test_all_sizes_are_looked_at_once_a_second():
    made = profile((1, 10), (2, 15))
    made.refresh(NOW, 1.0)
    observed(observed(made, 1, 11, 11), 2, 16, 16)

    made.refresh(NOW + LOOK_NS - 1, 1.0)
    assert made.times_ns == {1: 10 * MS, 2: 15 * MS}
    made.refresh(NOW + LOOK_NS, 1.0)
    assert made.times_ns == {1: 11 * MS, 2: 16 * MS}


def test_inflation_holds_at_once():
    made = profile((1, 10))
    made.refresh(NOW, 1.0)
    made.refresh(NOW + 1, 1.5)

    assert made.times_ns == {1: 15 * MS}


def test_one_slow_batch_is_taken_for_an_accident():
    assert observed(profile((1, 10)), 1, 30, 10, 10, 10).times_ns == {1: 10 * MS}


def test_a_second_slow_batch_is_expected():
    assert observed(profile((1, 10)), 1, 30, 25, 10, 10).times_ns == {1: 25 * MS}


def test_until_eight_batches_ran_nothing_is_expected_to_be_faster_than_at_load():
    made = observed(profile((1, 10)), 1, 7, 7, 7, 7, 7, 7, 7)
    made.refresh(NOW, 1.0)

    assert made.times_ns == {1: 10 * MS}
    observed(made, 1, 7)
    assert made.times_ns == {1: 7 * MS}


def test_settled_times_are_the_90th_percentile_of_the_window():
    assert observed(profile((1, 10)), 1, *[8] * 9, 9, *[8] * 6).times_ns == {1: 8 * MS}  # one of 16
    assert observed(profile((1, 10)), 1, 8, 8, 8, 9, *[8] * 3, 9).times_ns == {1: 9 * MS}  # two of 8


def test_nothing_is_expected_in_less_than_half_the_time_at_load():
    assert observed(profile((1, 10)), 1, *[1] * 8).times_ns == {1: 5 * MS}


def test_the_window_holds_thirty_two_batches():
    made = observed(profile((1, 10)), 1, *[20] * 8, *[8] * 32)

    assert made.times_ns == {1: 8 * MS}


def test_a_size_learns_nothing_of_the_others():
    assert observed(profile((1, 10), (2, 15)), 1, *[8] * 8).times_ns == {1: 8 * MS, 2: 15 * MS}


@pytest.mark.parametrize(("after_ns", "expected_ms"), [(MEMORY_NS, 20), (MEMORY_NS + 1, 10)])
def test_what_is_more_than_ten_seconds_old_is_forgotten(after_ns: int, expected_ms: int):
    made = observed(profile((1, 10)), 1, *[20] * 8)
    made.refresh(NOW + after_ns, 1.0)

    assert made.times_ns == {1: expected_ms * MS}


def test_when_the_old_is_forgotten_the_newer_remains():
    made = observed(profile((1, 10)), 1, *[20] * 8)
    observed(made, 1, *[8] * 8, at=NOW + 1 * MS)
    made.refresh(NOW + MEMORY_NS + 1, 1.0)

    assert made.times_ns == {1: 8 * MS}


def test_inflation_is_on_top_of_what_was_measured_and_stays():
    made = profile((1, 10), (2, 15))
    made.refresh(NOW, 1.5)
    assert made.by_count == [0, 15 * MS, 22_500_000]

    assert observed(made, 1, *[8] * 8).times_ns[1] == 12 * MS


# What does not fit in memory


def test_a_size_that_is_cut_is_gone_with_all_above_it():
    made = profile(*GPU).cut(16)

    assert made.sizes == [1, 2, 4, 8]
    assert list(made.times_ns) == [1, 2, 4, 8]
    assert len(made.by_count) == 9
    assert made.best_size(lambda *_: True) == 8
    assert made.size_above(5) == 8


def test_the_smallest_size_is_never_cut():
    assert profile((4, 20.0), (8, 30.0)).cut(2).sizes == [4]


def test_what_is_cut_already_or_not_at_all_stays():
    made = profile(*CPU).cut(8)
    before = made.times_ns

    assert made.cut(None).cut(8).cut(9) is made
    assert made.times_ns is before


def test_what_was_measured_of_the_others_is_kept():
    made = observed(profile((1, 10.0), (2, 10.0)), 1, *[30.0] * 8)

    made.cut(2)

    assert made.by_count[1] == 30 * MS


def test_a_batch_of_a_size_that_was_cut_meanwhile_teaches_nothing():
    made = observed(profile((1, 10.0), (2, 10.0)).cut(2), 2, *[30.0] * 8)

    assert made.times_ns == {1: 10 * MS}
