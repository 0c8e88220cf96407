"""One rate: what conforms, how long until it does to the nanosecond, and what giving back means. Time in literals."""

from __future__ import annotations

from fractions import Fraction

import pytest

from gateway.scheduling.meter import Meter

S = 1_000_000_000


def meter(rate="1", burst=1):
    return Meter(Fraction(rate), burst)


def taken(made, now_ns, cost=1):
    """Take when it conforms; the charge, or None."""
    return None if made.wait_ns(now_ns, cost) else made.take(now_ns, cost)


def test_a_burst_at_once_and_then_the_rate():
    made = meter("2", 3)
    assert [taken(made, 10 * S) is not None for _ in range(4)] == [True, True, True, False]
    assert made.wait_ns(10 * S, 1) == S // 2
    assert taken(made, 10 * S + S // 2 - 1) is None
    assert taken(made, 10 * S + S // 2) is not None
    assert made.wait_ns(10 * S + S // 2, 3) == 3 * S // 2


@pytest.mark.parametrize("rate", ["0.5", "3", "7", "0.001", "999999.999"])
def test_the_wait_is_right_to_the_nanosecond(rate):
    made = meter(rate, 5)
    made.take(S, 5)
    for cost in (1, 3, 5):
        wait_ns = made.wait_ns(S, cost)
        assert wait_ns == -(-(cost * S) // Fraction(rate))
        assert made.wait_ns(S + wait_ns, cost) == 0
        assert made.wait_ns(S + wait_ns - 1, cost) == 1


def test_a_third_of_a_nanosecond_is_never_lost():
    """Three a second for a week: an interval kept in whole nanoseconds would be 600 images off."""
    made = meter("3", 1)
    for number in range(0, 3 * 604_800, 997):
        assert taken(made, -(-number * S // 3)) is not None
    now_ns = 604_800 * S
    assert (taken(made, now_ns) is not None, made.wait_ns(now_ns, 1)) == (True, S // 3 + 1)


def test_a_refusal_changes_nothing():
    made = meter("1", 2)
    made.take(0, 2)
    assert [made.wait_ns(0, 2) for _ in range(5)] == [2 * S] * 5


def test_what_remains_and_when_it_is_full():
    made = meter("2", 4)
    assert (made.remaining(0), made.full_ns(0)) == (4, 0)
    made.take(10 * S, 3)
    assert (made.remaining(10 * S), made.full_ns(10 * S)) == (1, 3 * S // 2)
    assert (made.remaining(10 * S + S // 2 - 1), made.remaining(10 * S + S // 2)) == (1, 2)
    assert (made.remaining(20 * S), made.full_ns(20 * S)) == (4, 0)


def test_more_than_the_burst_is_not_a_question_for_it():
    with pytest.raises(AssertionError):
        meter("1", 2).wait_ns(0, 3)
    made = meter("1", 1)
    made.take(0, 1)
    with pytest.raises(AssertionError, match="wait_ns"):
        made.take(0, 1)


@pytest.mark.parametrize(("rate", "burst"), [("0", 1), ("1", 0)])
def test_a_limit_is_something(rate, burst):
    with pytest.raises(AssertionError):
        meter(rate, burst)


# -- giving back ---------------------------------------------------------------------------------------------------


def test_what_is_given_back_at_once_was_never_there():
    made = meter("1", 3)
    made.settle(made.take(0, 2))
    made.give_back(made.take(0, 1))
    assert (made.remaining(0), made.full_ns(0)) == (1, 2 * S)


def test_what_the_meter_has_forgotten_is_not_given_back():
    """Full again in between: handing the image out anew would let four through at once where three may."""
    made = meter("1", 3)
    old = made.take(0, 1)
    made.settle(made.take(5 * S, 1))
    made.give_back(old)
    assert made.remaining(5 * S) == 2


def test_what_the_meter_remembers_in_part_is_given_back_in_part():
    made = meter("1", 3)
    old = made.take(0, 2)
    new = made.take(S, 1)
    assert made.full_ns(S) == 2 * S
    made.give_back(old)
    assert made.full_ns(S) == S
    made.give_back(new)
    assert made.full_ns(S) == 0


def test_charges_settle_and_come_back_in_any_order():
    made = meter("1", 5)
    first, second, third, fourth = (made.take(number * S // 2, 1) for number in range(4))
    made.settle(second)
    made.settle(third)
    made.give_back(first)
    # As if only the second and third had been, at 0.5 s and 1 s, and the fourth at 1.5 s.
    assert made.full_ns(3 * S // 2) == 2 * S
    made.give_back(fourth)
    assert made.full_ns(3 * S // 2) == S
    assert not made._open


def test_a_later_charge_that_never_felt_it_stays_as_it_is():
    made = meter("1", 1)
    old, new = made.take(0, 1), made.take(3 * S, 1)
    newest = made.take(6 * S, 1)
    made.give_back(old)
    assert made.full_ns(6 * S) == S
    made.give_back(newest)
    assert made.full_ns(6 * S) == 0
    made.give_back(new)
    assert made.full_ns(3 * S) == 0


def test_open_charges_are_all_that_is_kept():
    made = meter("1000", 10)
    held = made.take(0, 1)
    for number in range(1, 10_000):
        made.settle(made.take(number * S // 1000, 1))
    assert len(made._open) == 1
    made.give_back(held)
    assert not made._open
