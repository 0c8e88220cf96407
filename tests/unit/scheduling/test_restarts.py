from __future__ import annotations

from gateway.scheduling.restarts import Restarts

MS = 1_000_000
S = 1_000 * MS


def test_back_off_grows_and_stays():
    restarts = Restarts()

    delays = [restarts.died(7 * S) - 7 * S for _ in range(9)]

    assert delays == [0, 100 * MS, 200 * MS, 500 * MS, S, 2 * S, 5 * S, 5 * S, 5 * S]
    assert restarts.total == restarts.in_a_row == 9


def test_ten_seconds_of_life_start_a_new_row():
    restarts = Restarts()
    for _ in range(4):
        restarts.died(0)
    restarts.ready(1 * S)

    assert restarts.died(11 * S) == 11 * S
    assert (restarts.in_a_row, restarts.total) == (1, 5)


def test_a_shorter_life_does_not():
    restarts = Restarts()
    restarts.died(0)
    restarts.ready(1 * S)

    assert restarts.died(11 * S - 1) == 11 * S - 1 + 100 * MS


def test_failing_is_five_deaths_in_a_row():
    restarts = Restarts()
    for _ in range(4):
        restarts.died(0)
    assert not restarts.failing

    restarts.died(0)
    assert restarts.failing


def test_one_that_came_up_is_not_failing():
    restarts = Restarts()
    for _ in range(6):
        restarts.died(0)
    restarts.ready(5 * S)
    assert not restarts.failing

    restarts.died(6 * S)
    assert restarts.failing
