"""Admission of who was told when to come back, and of what was just looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway import errors
from gateway.scheduling.admission import PASSED_NS
from gateway.scheduling.ticket import TENSOR
from tests.support.core import FLAT, MS, NOW, ONE, ROOM, Core, S, accepted_count, line, refused

if TYPE_CHECKING:
    from collections.abc import Sequence

LATER = NOW + 1 * S


def full(points: Sequence[tuple[int, int]] = ONE, count: int = 8) -> Core:
    """Nothing more is done in 90 ms."""
    core = Core(line(**ROOM), points=points)
    assert accepted_count(core, in_ms=90) == count
    return core


def invited(*clients: str) -> Core:
    """These were refused at NOW, and told to come back; then everybody else left. In 12 ms a batch of four is done."""
    core = full(FLAT, 32)
    for client in clients:
        assert refused(core, in_ms=90, client=client) is not None
    for ticket in core.tickets:
        core.s.cancel(ticket, NOW)
    return core


def passes(core: Core, *, at: int = NOW, in_ms: float = 1000, **named: object) -> bool:
    """Whether a request gets past the look before its body is read."""
    try:
        core.s.precheck(core.lines[0], at + int(in_ms * MS), at, **named)
    except errors.Overloaded:
        return False
    return True


# Dates


def test_retry_after_is_the_client_s_own_date():
    core = full()

    # A sixteenth of the worker does an image in 163.2 ms.
    waits_s = [refused(core, in_ms=90, client=f"client {number}").retry_after_s for number in range(14)]
    assert waits_s == [1, *[2] * 6, *[3] * 6, 4]


def test_who_is_refused_before_its_body_is_read_is_given_a_date_too():
    core = full()
    assert not passes(core, in_ms=90, client="ada")

    assert core.lines[0].returns.is_due("ada", LATER)


def test_a_date_is_not_before_there_is_time():
    core = Core(line(deadline_ns=9 * S, **ROOM), points=((1, 3 * S),))
    assert refused(core, in_ms=4000) is None

    assert refused(core, in_ms=4000, client="ada").retry_after_s == 3  # 6.12 s, and there are 4


def test_who_has_no_name_is_given_no_date():
    core = full()
    refused(core, in_ms=90)

    assert core.lines[0].returns.reserve(8, NOW + 60 * S, NOW) == 0


def test_the_batch_class_is_given_no_date():
    core = Core(line(**ROOM), points=ONE)
    assert refused(core, in_ms=40, count=3) is None
    assert "cannot be promised" in str(refused(core, in_ms=41, priority=1, client="ada"))

    assert core.lines[0].returns.reserve(8, NOW + 60 * S, NOW) == 0


def test_what_is_no_want_of_time_is_given_no_date():
    core = Core(line(queue_max=4))
    assert refused(core, count=4) is None
    assert "4 images wait" in str(refused(core, client="ada"))

    assert core.lines[0].returns.reserve(8, NOW + 60 * S, NOW) == 0


def test_room_is_kept_for_who_comes_on_its_date():
    core = invited("ada")
    assert accepted_count(core, in_ms=12, at=LATER, client="bob") == 2, "of four: three would run at four"

    assert refused(core, in_ms=12, at=LATER, client="ada") is None


def test_no_room_is_kept_before_a_date():
    core = invited("ada")

    assert accepted_count(core, in_ms=12, at=LATER - 11 * MS - 1, client="bob") == 4


def test_before_its_date_a_client_is_as_good_as_any():
    core = invited("ada")
    at = LATER - 1 * MS
    assert accepted_count(core, in_ms=12, at=at, client="bob") == 2

    assert refused(core, in_ms=12, at=at, client="ada") is not None


def test_a_date_is_kept_when_its_images_are_accepted():
    core = invited("ada")
    returns = core.lines[0].returns
    assert passes(core, at=LATER, client="ada")
    assert returns.is_due("ada", LATER)

    assert refused(core, at=LATER, client="ada") is None
    assert not returns.is_due("ada", LATER)


def test_a_date_is_good_for_the_look_before_the_body_is_read():
    core = invited("ada")
    assert accepted_count(core, in_ms=12, at=LATER) == 2

    assert not passes(core, in_ms=12, at=LATER, client="bob")
    assert passes(core, in_ms=12, at=LATER, client="ada")


def test_a_date_is_no_promise_where_there_is_no_time():
    core = invited("ada")
    core.lines[0].returns.invite("bob", 1, 0, 1.0, NOW)
    assert refused(core, in_ms=12, at=LATER, count=4, client="ada") is None

    assert refused(core, in_ms=12, at=LATER, client="bob") is not None


def test_without_a_date_to_come_no_room_is_kept():
    core = invited("ada")
    assert refused(core, in_ms=12, at=LATER, client="ada") is None

    assert accepted_count(core, in_ms=12, at=LATER, client="bob") == 3


@pytest.mark.parametrize("points", [ONE, ((4, 10 * MS),)])
def test_an_idle_server_refuses_nobody_for_a_date_s_sake(points: Sequence[tuple[int, int]]):
    core = Core(line(**ROOM), points=points)
    core.lines[0].returns.invite("ada", 1, 0, 1.0, NOW)

    assert refused(core, at=LATER, client="bob") is None


def test_where_no_smaller_size_is_left_places_are_kept_in_the_plan():
    core = Core(line(**ROOM), points=ONE)
    core.lines[0].returns.invite("ada", 1, 0, 1.0, NOW)

    assert accepted_count(core, in_ms=32, at=LATER, client="bob") == 2, "of three"
    assert refused(core, in_ms=32, at=LATER, client="ada") is None


@pytest.mark.parametrize("count", [3, 4])
def test_an_idle_server_takes_a_whole_batch_while_a_date_is_near(count: int):
    core = invited("ada")

    assert refused(core, count=count, at=LATER, client="bob") is None


def test_dates_do_not_outlive_the_overload():
    core = invited("ada")
    refusals = []
    for tick in range(200):
        at = LATER + tick * 100 * MS
        tickets, refusal = [], None
        try:
            tickets = core.submit(at=at, count=4, encoding=TENSOR, client=f"client {tick}")
        except errors.Overloaded as error:
            refusal = error
        refusals.append(refusal)
        core.fill(at)
        if tickets:
            core.do(at)
            core.ran(at=at + 10 * MS)
            core.do(at + 10 * MS)
        for ticket in tickets:
            core.s.release(ticket)

    assert not any(refusals[-100:]), "ten seconds after, at a tenth of what the worker can do"


def test_who_comes_on_its_date_is_not_kept_out_by_what_may_come():
    core = Core(line(deadline_ns=40 * MS, **ROOM), points=((1, 10 * MS), (4, 30 * MS)))
    core.lines[0].pace.size = 4
    core.s.lines[0].review_ns = LATER + 1
    core.lines[0].returns.invite("ada", 1, 0, 1.0, NOW)
    assert refused(core, in_ms=50, at=LATER) is None
    core.fill(LATER)
    assert core.do(LATER) == ["run 0: 1 at 1, idle"]
    core.lines[0].pace.offered(10, LATER)  # 500 a second: the batch behind is expected to be four

    assert refused(core, in_ms=35, at=LATER, client="bob") is not None
    assert refused(core, in_ms=35, at=LATER, client="ada") is None


# What was just looked at


def test_what_passed_before_its_body_was_read_is_accepted():
    core = full()
    assert passes(core, in_ms=100)

    assert refused(core, in_ms=100) is None


def test_what_costs_more_than_was_looked_at_is_looked_at_again():
    core = Core(line(**ROOM), points=ONE)
    assert passes(core, in_ms=15)

    with pytest.raises(errors.Overloaded):
        core.submit(size=200_000, deadline_ns=NOW + 15 * MS)  # decoded in 4.98 ms at worst, and due at 14


def test_several_images_are_looked_at_again():
    core = full()
    assert passes(core, in_ms=100)

    assert refused(core, in_ms=100, count=2) is not None


def test_what_came_in_between_is_looked_at():
    core = full()
    assert passes(core, in_ms=100)
    assert refused(core, in_ms=100) is None

    assert refused(core, in_ms=100) is not None


def test_a_worker_that_went_in_between_is_looked_at():
    core = full()
    assert passes(core, in_ms=1000)
    core.s.worker_lost(0, NOW)
    core.s.workers[0].start_ns = 2 * S

    assert refused(core, in_ms=1000) is not None


@pytest.mark.parametrize(("after_ns", "accepted"), [(PASSED_NS, True), (PASSED_NS + 1, False)])
def test_what_passed_is_as_good_as_looked_at_for_a_millisecond(after_ns: int, accepted: bool):  # noqa: FBT001
    core = Core(line(**ROOM), points=ONE)
    core.submit(deadline_ns=NOW + 21 * MS)  # it is being decoded, and the worker waits for it
    assert passes(core, in_ms=21.4)  # done after 20.4, and due then

    deadline_ns, at = NOW + 21_400_000, NOW + after_ns
    assert (refused(core, in_ms=(deadline_ns - at) / MS, at=at) is None) is accepted


def test_time_that_went_by_in_between_is_looked_at():
    core = Core(line(**ROOM), points=ONE)
    core.submit(deadline_ns=NOW + 21 * MS)  # it is being decoded, and the worker waits for it
    assert passes(core, in_ms=22)  # done after 20.4
    at = NOW + 10 * MS

    assert refused(core, in_ms=12, at=at) is not None  # done after 30.4
