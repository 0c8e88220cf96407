"""Schedules ascend, keep their rates, come out the same for the same seed, and are bounded."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gateway.loadtest import schedules


def test_poisson_keeps_its_rate_and_its_time():
    due = schedules.poisson(1000, 20, seed=1)

    assert abs(len(due) - 20_000) < 5 * math.sqrt(20_000)
    assert (np.diff(due) >= 0).all()
    assert due[0] >= 0
    assert due[-1] < 20


def test_poisson_gaps_are_exponential():
    gaps = np.diff(schedules.poisson(1000, 20, seed=1))

    assert np.mean(gaps) == pytest.approx(1e-3, rel=0.03)
    assert np.std(gaps) == pytest.approx(1e-3, rel=0.05), "an exponential's deviation is its mean"


def test_a_seed_draws_the_same_times_and_another_draws_others():
    assert (schedules.poisson(100, 5, seed=3) == schedules.poisson(100, 5, seed=3)).all()
    assert len(schedules.poisson(100, 5, seed=3)) != len(schedules.poisson(100, 5, seed=4))


def test_constant_is_even():
    assert schedules.constant(4, 1).tolist() == [0.0, 0.25, 0.5, 0.75]
    assert len(schedules.constant(0, 5)) == 0


def test_bursts_come_together_at_the_same_mean_rate():
    due = schedules.bursts(1000, 10, 8, seed=1)

    assert len(due) % 8 == 0
    assert (due.reshape(-1, 8) == due[::8, np.newaxis]).all()
    assert abs(len(due) - 10_000) < 5 * 8 * math.sqrt(10_000 / 8)


def test_steps_change_the_rate_where_they_say():
    due = schedules.steps([(100, 2), (1000, 1), (0, 1), (50, 2)], seed=5)

    assert (np.diff(due) >= 0).all()
    counts = np.histogram(due, [0, 2, 3, 4, 6])[0]
    assert abs(counts[0] - 200) < 75
    assert abs(counts[1] - 1000) < 160
    assert counts[2] == 0
    assert abs(counts[3] - 100) < 50


def test_no_phases_are_no_requests():
    assert len(schedules.steps([], seed=1)) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.poisson(1e6, 1e3, seed=1),
        lambda: schedules.constant(1e6, 1e3),
        lambda: schedules.bursts(1e6, 1e3, 4, seed=1),
        lambda: schedules.steps([(1e6, 3), (1e6, 3)], seed=1),
    ],
)
def test_a_schedule_past_all_bounds_is_refused_before_it_is_made(make):
    with pytest.raises(ValueError, match="are over 5000000"):
        make()


@pytest.mark.parametrize(("rate", "seconds"), [(-1, 1), (1, -1), (math.nan, 1), (math.inf, 0)])
def test_rates_and_times_are_numbers_of_0_or_more(rate, seconds):
    with pytest.raises(ValueError, match="0 or more"):
        schedules.poisson(rate, seconds, seed=1)


def test_a_burst_has_a_request():
    with pytest.raises(ValueError, match="1 request or more"):
        schedules.bursts(10, 1, 0, seed=1)
