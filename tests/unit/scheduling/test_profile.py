from __future__ import annotations

from gateway.scheduling.profile import Profile
from shm.wire import ProfilePoint

MS = 1_000_000

# EfficientNet-Lite0 on one CPU core: 4.8 ms an image at batch 2, 7.1 ms at batch 32.
CPU = [(1, 5.0), (2, 9.6), (4, 20.8), (8, 44.0), (16, 100.0), (32, 227.2)]
# A GPU: nearly flat, then linear.
GPU = [(1, 2.0), (2, 2.1), (4, 2.3), (8, 2.6), (16, 3.2), (32, 4.6), (64, 9.1)]


def profile(points, *, deadline_ms=1000, workers=1) -> Profile:
    wire = [ProfilePoint(size, int(ms * MS), int(ms * MS)) for size, ms in points]
    return Profile(wire, deadline_ns=deadline_ms * MS, worker_count=workers)


def test_on_a_cpu_small_batches_win():
    assert profile(CPU).best_size == 2


def test_on_a_gpu_large_batches_win_until_they_stop_paying():
    # 64 rows: 7.03 images/ms; 32: 6.96, within 3 %, and it answers sooner.
    assert profile(GPU).best_size == 32


def test_a_full_batch_that_just_missed_a_start_still_makes_the_next():
    assert profile(GPU, deadline_ms=9).best_size == 16  # 2 * 4.6 > 9
    assert profile(GPU, deadline_ms=9, workers=2).best_size == 32  # 1.5 * 4.6 <= 9


def test_an_impossible_deadline_leaves_the_smallest_size():
    assert profile(GPU, deadline_ms=1).best_size == 1


def test_points_may_come_in_any_order():
    assert profile(reversed(CPU)).sizes == [1, 2, 4, 8, 16, 32]


def test_times_are_the_99th_percentile_and_rates_the_median():
    shaky = Profile([ProfilePoint(1, 10, 10), ProfilePoint(2, 12, 90)], deadline_ns=100, worker_count=1)

    assert shaky.times_ns == {1: 10, 2: 90}
    assert shaky.best_size == 1  # 2 * 90 > 100


def test_a_measured_time_is_never_zero():
    assert Profile([ProfilePoint(1, 0, 0)], deadline_ns=10, worker_count=1).times_ns == {1: 1}


def test_size_for_a_full_queue_is_the_best_size():
    assert profile(GPU).size_for(32) == (32, 32)
    assert profile(GPU).size_for(500) == (32, 32)


def test_size_for_pads_where_rows_are_cheap():
    assert profile(GPU).size_for(11) == (11, 16)


def test_size_for_splits_where_rows_are_dear():
    steep = profile([(1, 1.0), (4, 3.0), (16, 11.0)])

    assert steep.best_size == 16
    assert steep.size_for(5) == (4, 4)  # 5 rows in 11 ms, or 4 in 3 ms
    assert steep.size_for(15) == (15, 16)


def test_size_for_meets_a_warmed_size_exactly():
    assert profile(GPU).size_for(8) == (8, 8)


def test_size_for_pads_below_the_smallest_size():
    assert profile([(4, 1.0), (8, 1.1)]).size_for(2) == (2, 4)
