from __future__ import annotations

from gateway.scheduling.returns import DATES_MAX, GRACE_NS, SHARE, WAIT_NS_MAX, Returns
from tests.support.core import MS, NOW, S

RATE = 100 / S
"""Images that the workers can do in a nanosecond; a sixteenth of them is for those who come back."""

APART_NS = 160 * MS
"""Of the dates of two single images, at that rate."""


def invited(returns: Returns, *clients: str, count: int = 1, wait_ns: int = 0, at: int = NOW) -> list[int]:
    """How long each is told to wait."""
    return [returns.invite(client, count, wait_ns, RATE, at) for client in clients]


# Dates


def test_nobody_is_told_to_wait_for_less_than_a_second():
    assert invited(Returns(), "ada", wait_ns=0) == [1 * S]


def test_a_date_is_not_before_there_is_time():
    assert invited(Returns(), "ada", wait_ns=7 * S) == [7 * S]


def test_dates_are_as_far_apart_as_a_sixteenth_of_the_workers_can_serve():
    assert SHARE == 1 / 16
    assert invited(Returns(), "ada", "bob", "cleo") == [1 * S, 1 * S + APART_NS, 1 * S + 2 * APART_NS]


def test_a_request_of_several_images_takes_the_time_of_several():
    returns = Returns()
    invited(returns, "ada", count=10)

    assert invited(returns, "bob") == [1 * S + 10 * APART_NS]


def test_who_asks_later_is_told_a_later_date_not_a_longer_wait():
    returns = Returns()
    invited(returns, "ada", "bob")

    assert invited(returns, "cleo", at=NOW + 100 * MS) == [1 * S + 2 * APART_NS - 100 * MS]
    assert invited(returns, "dan", at=NOW + 1900 * MS) == [1 * S], "those dates are over before"


def test_dates_are_given_in_order():
    returns = Returns()
    invited(returns, "ada", wait_ns=9 * S)

    assert invited(returns, "bob", wait_ns=1 * S) == [9 * S + APART_NS]


def test_a_client_that_has_a_date_is_told_that_one_again():
    returns = Returns()
    invited(returns, "ada")

    assert invited(returns, "ada", at=NOW + 300 * MS) == [700 * MS]
    assert invited(returns, "bob") == [1 * S + APART_NS], "nobody else is moved back by it"


def test_a_client_that_came_on_its_date_for_nothing_is_given_another():
    returns = Returns()
    invited(returns, "ada")

    assert invited(returns, "ada", at=NOW + 1 * S) == [1 * S]
    assert not returns.is_due("ada", NOW + 1 * S), "the new one is the only one"
    assert returns.is_due("ada", NOW + 2 * S)


def test_who_finds_no_date_is_told_to_come_after_all_of_them():
    returns = Returns()
    for number in range(DATES_MAX):
        returns.invite(number, 1, 0, RATE, NOW)

    after = 1 * S + DATES_MAX * APART_NS
    assert invited(returns, "ada", "bob") == [after, after]
    assert not returns.is_due("ada", NOW + after)


# On the day


def test_a_client_is_due_from_its_date_on_for_five_seconds():
    returns = Returns()
    assert not returns.is_due("ada", NOW)
    invited(returns, "ada")

    due = [returns.is_due("ada", NOW + 1 * S + ns) for ns in (-1, 0, GRACE_NS, GRACE_NS + 1)]
    assert due == [False, True, True, False]
    assert not returns.is_due("bob", NOW + 1 * S)
    assert not returns.is_due(None, NOW + 1 * S)


def test_a_date_is_kept_once():
    returns = Returns()
    invited(returns, "ada")
    returns.keep("ada")

    assert not returns.is_due("ada", NOW + 1 * S)


def test_a_date_that_was_kept_is_forgotten_without_the_next_one():
    returns = Returns()
    invited(returns, "ada")
    returns.keep("ada")
    invited(returns, "ada", at=NOW + 1 * S)
    returns.reserve(8, NOW, NOW + 1 * S + GRACE_NS + 1)  # the first date's time is over

    assert returns.is_due("ada", NOW + 2 * S)


def test_a_date_that_nobody_came_on_is_over():
    returns = Returns()
    invited(returns, "ada")
    returns.reserve(8, NOW, NOW + 1 * S + GRACE_NS + 1)
    invited(returns, "ada", at=NOW + 1 * S + GRACE_NS + 1)

    assert returns.is_due("ada", NOW + 2 * S + GRACE_NS + 1)


# Room


def test_a_sixteenth_of_a_batch_is_kept_free_for_dates_that_come_in_time():
    returns = Returns()
    assert returns.reserve(32, NOW + 60 * S, NOW) == 0
    invited(returns, "ada")

    assert returns.reserve(32, NOW + 1 * S - 1, NOW) == 0, "its date is later"
    assert returns.reserve(64, NOW + 1 * S, NOW) == 4
    assert returns.reserve(1, NOW + 1 * S, NOW) == 1, "one at least"


def test_no_room_is_kept_for_dates_that_are_over():
    returns = Returns()
    invited(returns, "ada")

    assert returns.reserve(32, NOW + 60 * S, NOW + 1 * S + GRACE_NS) == 2
    assert returns.reserve(32, NOW + 60 * S, NOW + 1 * S + GRACE_NS + 1) == 0


def test_no_room_is_kept_for_a_date_that_was_kept():
    returns = Returns()
    invited(returns, "ada", "bob")
    returns.keep("ada")

    assert returns.reserve(32, NOW + 1 * S, NOW) == 0
    assert returns.reserve(32, NOW + 1 * S + APART_NS, NOW) == 2, "the other one's is still to come"
    returns.keep("bob")
    assert returns.reserve(32, NOW + 60 * S, NOW) == 0


def test_there_are_no_dates_beyond_a_minute_and_they_move_nobody_elses():
    returns = Returns()

    assert invited(returns, "ada", wait_ns=WAIT_NS_MAX + 1) == [WAIT_NS_MAX + 1]
    assert invited(returns, "bob") == [1 * S]
