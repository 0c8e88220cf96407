"""Admission of the batch class, beside the real-time class."""

from __future__ import annotations

from gateway import errors
from tests.support.core import MS, NOW, ONE, ROOM, Core, S, accepted_count, line, refused

FOUR = ((1, 10 * MS), (4, 10 * MS))


def test_the_batch_class_waits_for_a_quarter_of_its_time_at_most():
    core = Core(line(**ROOM), points=FOUR)

    # 2 s / 4 are 49 batches of four, on one worker.
    assert accepted_count(core, in_ms=2000, priority=1) == 4 * 49


def test_more_workers_take_more_of_the_batch_class():
    core = Core(line(slot_count=512, queue_max=512), points=FOUR, workers=2)

    assert accepted_count(core, in_ms=2000, priority=1) == 4 * 98


def test_retry_after_of_the_batch_class_is_how_long_its_backlog_takes():
    core = Core(line(deadline_ns=60 * S, **ROOM), points=((1, 1 * S),))
    assert accepted_count(core, in_ms=20_000, priority=1) == 4

    refusal = refused(core, in_ms=20_000, priority=1)
    assert "batch class" in str(refusal)
    assert refusal.retry_after_s == 6  # 5.1 s


def test_the_batch_class_is_refused_for_a_second_after_real_time_was():
    core = Core(line(**ROOM), points=ONE)
    assert accepted_count(core, in_ms=20) == 1
    for _ in range(2):
        assert refused(core, in_ms=20) is not None

    refusal = refused(core, priority=1)
    assert isinstance(refusal, errors.Overloaded)
    assert refusal.retry_after_s == 2
    assert refused(core, priority=1, at=NOW + 1 * S - 1) is not None
    assert refused(core, priority=1, at=NOW + 1 * S) is None


def test_the_batch_class_s_own_refusals_do_not_shut_it_out():
    core = Core(line(**ROOM), points=ONE)
    assert refused(core, in_ms=40, count=2, priority=1) is not None

    assert refused(core, priority=1) is None


def test_the_batch_class_is_refused_where_real_time_that_may_come_would_find_no_room():
    core = Core(line(deadline_ns=100 * MS, **ROOM), points=((1, 50 * MS),))
    core.tensor(priority=1)
    assert core.do(NOW) == ["run 0: 1 at 1, full"]
    core.s.lines[0].pace.offered(3, NOW)
    assert refused(core, in_ms=1000, priority=1) is not None

    core.ran(at=NOW + 50 * MS)
    assert refused(core, in_ms=1000, priority=1, at=NOW + 1 * S) is None, "nobody came for a second"


def test_the_batch_class_keeps_to_the_plan():
    core = Core(line(**ROOM), points=ONE)
    assert refused(core, in_ms=40, count=3) is None

    refusal = refused(core, in_ms=41, priority=1)
    assert "cannot be promised" in str(refusal)
    assert not core.lines[0].pace.is_refusing(NOW)


def test_the_batch_class_does_not_count_in_the_rate():
    core = Core()
    refused(core, priority=1)
    assert core.lines[0].pace.rate(NOW) == 0

    refused(core)
    assert core.lines[0].pace.rate(NOW) > 0
