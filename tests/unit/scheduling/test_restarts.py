from __future__ import annotations

import itertools

import pytest

from gateway.scheduling.restarts import TRANSITIONS, ChildState, Restarts, State

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


def test_a_shorter_life_does_when_it_worked():
    restarts = Restarts()
    restarts.died(0)
    restarts.ready(1 * S)

    assert restarts.died(2 * S, worked=True) == 2 * S


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


# The circuit


def dies(restarts: Restarts, *, at: int) -> int:
    """It came up, did some work, and dies."""
    restarts.ready(at)
    return restarts.died(at, worked=True)


def test_after_so_many_restarts_in_a_window_the_circuit_opens():
    restarts = Restarts(count_max=3, window_ns=60 * S)
    assert [dies(restarts, at=at * S) for at in (1, 10, 20)] == [1 * S, 10 * S, 20 * S]
    assert restarts.open_until_ns == 0

    assert dies(restarts, at=30 * S) == 61 * S
    assert restarts.open_until_ns == 61 * S
    assert restarts.failing


def test_restarts_that_are_a_window_ago_do_not_count():
    restarts = Restarts(count_max=2, window_ns=60 * S)
    for at in (1, 61, 62):
        dies(restarts, at=at * S)

    assert restarts.open_until_ns == 0
    assert dies(restarts, at=70 * S) == 121 * S


def test_a_probe_that_comes_up_closes_the_circuit():
    restarts = Restarts(count_max=1, window_ns=60 * S)
    dies(restarts, at=1 * S)
    dies(restarts, at=2 * S)

    restarts.ready(61 * S)

    assert restarts.open_until_ns == 0
    assert not restarts.failing
    assert dies(restarts, at=62 * S) == 121 * S, "its restarts count all the same"


def test_a_probe_that_dies_says_when_the_next_one_is():
    """It kept saying the first one's time, which was over: come back in a second, for as long as it lasts."""
    restarts = Restarts(count_max=2, window_ns=10 * S)
    dies(restarts, at=1 * S)
    dies(restarts, at=9 * S)
    assert dies(restarts, at=9 * S) == 11 * S

    assert restarts.died(30 * S) == 30 * S + 100 * MS
    assert restarts.open_until_ns == 30 * S + 100 * MS
    assert restarts.failing


def test_without_a_limit_there_is_no_circuit():
    restarts = Restarts()
    for _ in range(99):
        dies(restarts, at=1 * S)

    assert restarts.open_until_ns == 0


def test_a_restart_that_was_put_off_counts_from_when_it_was():
    restarts = Restarts(count_max=1, window_ns=60 * S)
    restarts.postponed(1 * S)
    dies(restarts, at=1 * S)
    restarts.postponed(5 * S)

    assert dies(restarts, at=6 * S) == 65 * S


# The states of a child

LIFE = [State.STARTING, State.WARMING, State.READY, State.DRAINING]


def led_to(state: State) -> ChildState:
    child = ChildState(0)
    if state in LIFE:
        for step in LIFE[: LIFE.index(state) + 1]:
            child.move(step)
    elif state is State.BUILDING:
        child.move(State.STARTING)
        child.move(state)
    elif state is State.STUCK:
        child.move(state)
    return child


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_only_the_moves_of_the_table_are_possible(before: State, after: State):
    child = led_to(before)
    if after in TRANSITIONS[before]:
        child.move(after)
        assert child.state is after
        assert child.ready == (after in (State.READY, State.DRAINING))
    else:
        with pytest.raises(AssertionError, match=f"child 0: {before.name} to {after.name}"):
            child.move(after)


@pytest.mark.parametrize("before", [*LIFE, State.BUILDING, State.STUCK])
def test_from_everywhere_there_is_a_way_to_the_next_life(before: State):
    child = led_to(before)

    child.condemn(5, broken=True)
    assert child.condemned
    assert not child.ready
    child.bury(7)
    child.begin(8)

    assert child.state is State.STARTING
    assert (child.condemned, child.broken, child.worked, child.started_ns) == (False, False, False, 8)


def test_one_that_dies_by_itself_is_started_again():
    child = led_to(State.READY)
    child.bury(7)

    assert child.state is State.DEAD
    assert child.spawn_at_ns == 7


def test_nothing_is_hoped_of_one_that_is_stuck_or_keeps_dying():
    assert not led_to(State.READY).is_hopeless
    assert led_to(State.STUCK).is_hopeless

    child = ChildState(0)
    for _ in range(5):
        child.begin(1)
        child.bury(1)
    assert child.is_hopeless
