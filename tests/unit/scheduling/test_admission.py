from __future__ import annotations

import pytest

from gateway import errors
from tests.support.core import MS, NOW, ONE, ROOM, Core, S, accepted_count, line, refused

# The chain, in its order


def test_while_draining_nothing_is_accepted():
    core = Core()
    core.s.drain()

    assert isinstance(refused(core), errors.Draining)


def test_where_the_worker_keeps_dying_trying_again_is_advised_for_its_next_start():
    core = Core()
    core.worker_fails(0, NOW)

    refusal = refused(core)
    assert isinstance(refusal, errors.ModelNotReady)
    assert refusal.retry_after_s == 1, "the fifth back-off"
    core.begun(0, NOW + 1 * S)
    core.s.worker_lost(0, NOW + 2 * S)
    assert refused(core, at=NOW + 2 * S).retry_after_s == 58, "five restarts in a minute are enough"


def test_more_images_than_the_queue_takes_never_fit():
    assert isinstance(refused(Core(), count=17), errors.PayloadTooLarge)


def test_a_deadline_that_has_passed():
    refusal = refused(Core(), in_ms=0)

    assert isinstance(refusal, errors.DeadlineExceeded)
    assert "passed" in str(refusal)


@pytest.mark.parametrize(("in_ms", "impossible"), [(11.19, True), (11.2, False)])
def test_a_deadline_that_an_idle_server_could_not_meet(in_ms: float, impossible: bool):  # noqa: FBT001
    # 10.2 ms and the least margin.
    refusal = refused(Core(), in_ms=in_ms)

    assert isinstance(refusal, errors.DeadlineExceeded) is impossible
    assert not impossible or "11 ms" in str(refusal)


def test_a_deadline_that_leaves_no_room_for_the_margin():
    core = Core(points=((1, 1000),))

    assert isinstance(refused(core, in_ms=1), errors.DeadlineExceeded)
    assert refused(core, in_ms=1.01) is None


def test_decoding_counts_in_what_an_idle_server_needs():
    core = Core()
    core.bodies.__init__(1 << 24)
    with pytest.raises(errors.DeadlineExceeded):
        core.submit(size=1_000_000, deadline_ns=NOW + 19 * MS)  # 8.06 + 10.2 + 1


def test_a_full_queue_is_overload():
    core = Core()
    assert refused(core, count=15) is None

    refusal = refused(core, count=2)
    assert isinstance(refusal, errors.Overloaded)
    assert refusal.retry_after_s == 1
    assert refused(core) is None, "there is room for one"


def test_what_runs_is_not_in_the_queue():
    core = Core(line(slot_count=32, queue_max=4))
    core.tensors(4)
    assert refused(core) is not None
    assert core.do(NOW) == ["run 0: 1 2 3 4 at 4, full"]

    assert refused(core, count=4) is None


def test_real_time_is_refused_beyond_its_quota():
    core = Core(line(**ROOM))
    core.s.lines[0].pace.quota = 3
    core.s.lines[0].review_ns = NOW + 1
    assert refused(core, count=4, priority=1) is None, "the batch class has none"

    assert accepted_count(core, in_ms=1000) == 3


def test_what_the_plan_cannot_keep_is_overload():
    core = Core(line(**ROOM), points=ONE)

    # 90 ms, less the margin of one: 89 / 10.2.
    assert accepted_count(core, in_ms=90) == 8
    refusal = refused(core, in_ms=90)
    assert isinstance(refusal, errors.Overloaded)
    assert "cannot be promised" in str(refusal)


def test_retry_after_is_at_least_a_second():
    core = Core(line(deadline_ns=9 * S, **ROOM), points=((1, 3 * S),))
    assert refused(core, in_ms=4000) is None

    assert refused(core, in_ms=4000).retry_after_s == 3  # 6.12 s, and there are 4


def test_a_promise_is_due_a_margin_before_its_deadline():
    core = Core()
    core.submit(deadline_ns=NOW + 200 * MS, count=2)

    assert [ticket.due_ns for ticket in core.tickets] == core.lines[0].dues == [NOW + 199 * MS] * 2


def test_a_promise_that_would_break_another_is_refused():
    core = Core(line(**ROOM), points=ONE)
    assert refused(core, in_ms=21.4) is None  # due at 20.4
    assert refused(core, in_ms=21.4) is None  # and so is this one, done at 20.4

    assert isinstance(refused(core, in_ms=15), errors.Overloaded)
    assert refused(core, in_ms=40) is None


def test_a_refusal_leaves_nothing_behind():
    core = Core(line(**ROOM), points=ONE)
    assert refused(core, in_ms=40, count=9) is not None

    assert core.quiet()


# Asked for


def test_what_is_refused_before_its_body_was_asked_for_too():
    core = Core()
    with pytest.raises(errors.DeadlineExceeded):
        core.s.precheck(core.lines[0], NOW + 1, NOW)
    once = core.lines[0].pace.rate(NOW)

    core.s.precheck(core.lines[0], NOW + 1 * S, NOW)
    assert core.lines[0].pace.rate(NOW) == once > 0, "what passes is counted when its images are known"
