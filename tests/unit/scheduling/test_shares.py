"""What models want of the workers they share, each seen from all the others."""

from __future__ import annotations

import pytest

from gateway.scheduling.shares import Rivals
from tests.support.core import MS, NOW, S, line, profile

SLOPE = profile((1, 10), (3, 35), (4, 40))


def asked_for(index: int, *, size: int = 1, count: int = 0, weight: float = 1.0):
    """A line of which `count` images were just asked for, planned in batches of `size`."""
    made = line(index, weight=weight)
    made.profile = SLOPE
    made.pace.size = size
    if count:
        made.pace.offered(count, NOW)
    return made


def test_a_line_alone_has_everything():
    alone = asked_for(0, count=100)
    rivals = Rivals([alone], NOW)

    assert (len(rivals), rivals.share(alone), rivals.taken_ns(alone, 7 * S), rivals.longest_ns(alone)) == (1, 1, 0, 0)


def test_one_that_nobody_asks_for_yields_to_all():
    busy = [asked_for(0, count=4, size=4), asked_for(1, count=2)]
    idle = asked_for(2)
    rivals = Rivals(busy, NOW)

    wants_ns = [each.pace.demand_ns(SLOPE, NOW) for each in busy]
    assert rivals.share(idle) == 1
    assert rivals.taken_ns(idle, 10 * S) == sum(wants_ns)
    assert rivals.longest_ns(idle) == 40 * MS


@pytest.mark.parametrize("room_ns", [10 * S, 30 * MS])
def test_what_is_taken_of_each_is_the_sum_over_the_others(room_ns: int):
    lines = [asked_for(index, count=count, weight=1 + index) for index, count in enumerate((1, 5, 9, 40))]
    rivals = Rivals(lines, NOW)

    for each in lines:
        others = [other for other in lines if other is not each]
        parts = [min(other.pace.demand_ns(SLOPE, NOW), other.weight / 10 * room_ns) for other in others]
        assert rivals.taken_ns(each, room_ns) == pytest.approx(sum(parts), abs=1)
        assert rivals.share(each) == each.weight / 10


def test_the_longest_batch_is_that_of_another():
    short, long, middle = (asked_for(index, size=size) for index, size in enumerate((1, 4, 3)))
    rivals = Rivals([short, long, middle], NOW)

    assert [rivals.longest_ns(each) for each in (short, long, middle)] == [40 * MS, 35 * MS, 40 * MS]
