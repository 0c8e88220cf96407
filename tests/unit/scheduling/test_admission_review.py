"""Admission's review: shares, sizes, and who counts."""

from __future__ import annotations

import pytest

from gateway import errors
from gateway.scheduling.admission import REVIEW_NS
from gateway.scheduling.pace import NO_QUOTA
from tests.support.core import FLAT_NS, MS, NOW, ONE, ROOM, Core, S, line, refused


def test_a_review_follows_the_inflation():
    core = Core()
    core.lines[0].pace.late()
    core.s._admission.review(NOW + 1 * S)

    assert core.lines[0].profile.times_ns[1] == 10_400_000


def test_a_review_takes_place_every_twenty_milliseconds_while_there_is_traffic():
    core = Core()
    refused(core)
    core.lines[0].pace.late()
    core.lines[0].pace._checked_ns = 0

    refused(core, at=NOW + REVIEW_NS - 1)
    assert core.lines[0].pace.inflation == 1.02
    refused(core, at=NOW + REVIEW_NS)
    assert core.lines[0].pace.inflation == pytest.approx(1.04)


def test_a_second_model_that_wakes_up_takes_its_share_at_once():
    core = Core(line(0, deadline_ns=100 * MS, **ROOM), line(1, deadline_ns=100 * MS, **ROOM), points=ONE)
    assert refused(core) is None
    assert core.lines[0].pace.quota == NO_QUOTA

    core.s.lines[1].pace.offered(1, NOW - 1 * S)
    refused(core, model=1, at=NOW + 1)
    # 100 ms less the margin and a batch are 88.8; less the 30.6 that 3 images of the other take: 5 of its own.
    assert core.lines[0].pace.quota == 5

    refused(core, at=NOW + 1 * S)
    refused(core, at=NOW + 1 * S + REVIEW_NS)
    assert core.lines[0].pace.quota == NO_QUOTA, "the other sleeps"


def test_shares_go_by_weight():
    core = Core(
        line(0, deadline_ns=100 * MS, weight=3.0, **ROOM), line(1, deadline_ns=100 * MS, weight=1.0, **ROOM), points=ONE
    )
    for each in core.lines:
        each.pace.offered(1000, NOW)
    core.s._admission.review(NOW)

    assert [each.pace.quota for each in core.lines] == [6, 2]  # 3/4 and 1/4 of 88.8 ms


def test_models_on_workers_of_their_own_share_nothing():
    core = Core(line(0, deadline_ns=100 * MS, **ROOM), line(1, deadline_ns=100 * MS, **ROOM), workers=2, points=ONE)
    for each, worker in zip(core.lines, core.s.workers, strict=True):
        each.pace.offered(1000, NOW)
        worker.profiles = {each.index: worker.profiles[each.index]}
    core.s._admission.review(NOW)

    assert [each.pace.quota for each in core.lines] == [NO_QUOTA, NO_QUOTA]


def test_a_size_is_not_changed_where_that_breaks_a_promise():
    core = Core(line(**ROOM), points=((1, 10 * MS), (4, 10 * MS)))
    assert core.lines[0].pace.size == 4
    assert refused(core, count=8, in_ms=22) is None  # two batches, due at 21
    core.lines[0].deadline_ns = core.lines[0].pace.deadline_ns = 15 * MS

    core.s._admission.review(NOW)
    assert (core.lines[0].pace.best_size, core.lines[0].pace.size) == (1, 4)

    for each in core.tickets:
        core.s.cancel(each, NOW)
    core.s._admission.review(NOW)
    assert core.lines[0].pace.size == 1


def test_a_size_is_changed_where_every_promise_is_kept():
    core = Core(line(deadline_ns=25 * MS, **ROOM), points=((1, 1 * MS), (4, 10 * MS)))
    core.lines[0].pace.size = 4
    core.s.lines[0].review_ns = NOW + 1
    assert refused(core, count=4, in_ms=25) is None
    assert core.lines[0].pace.size == 4

    core.s._admission.review(NOW)
    assert core.lines[0].pace.size == 1


def test_workers_that_serve_a_model_are_counted():
    core = Core(line(0), line(1), workers=3)
    core.worker_up(2, NOW, models=[1])
    assert [each.worker_count for each in core.lines] == [2, 3]

    core.worker_fails(0, NOW)
    assert [each.worker_count for each in core.lines] == [1, 2]


def test_of_unlike_workers_the_slowest_is_planned_with():
    core = Core(workers=2)
    slow = [type(point)(point.size, 3 * point.p50_ns, 3 * point.p99_ns) for point in core.points]
    core.s.worker_ready(1, {0: slow}, NOW, kind="old")

    assert core.lines[0].profile.times_ns[4] == 3 * FLAT_NS


def test_a_worker_that_is_slow_with_small_batches_only_is_not_overlooked():
    core = Core(line(deadline_ns=40 * MS, **ROOM), workers=2, up=False)
    core.do(NOW)
    core.s.decoder_ready(0, NOW)
    core.worker_with(0, NOW, kind="slow to start", m0=((1, 30), (4, 31)))
    core.worker_with(1, NOW, kind="slow to end", m0=((1, 10), (4, 40)))

    assert core.lines[0].pace.size == 1
    assert refused(core, in_ms=25) is not None  # the first worker takes 30.6


def test_like_workers_share_a_profile():
    core = Core(workers=2)

    assert core.s.workers[0].profiles[0] is core.s.workers[1].profiles[0]


# Of several models and kinds of workers


def lopsided() -> Core:
    """Two models with a worker each."""
    core = Core(line(0, **ROOM), line(1, **ROOM), workers=2, points=ONE)
    core.worker_up(0, NOW, models=[0])
    core.worker_up(1, NOW, models=[1])
    return core


def test_a_model_whose_worker_is_gone_does_not_shut_out_the_others():
    core = lopsided()
    assert refused(core, count=2, model=1, in_ms=10_000) is None
    core.worker_fails(1, NOW)

    assert refused(core, in_ms=20) is None


def test_retry_after_is_never_absurd():
    core = lopsided()
    assert refused(core, count=2, model=1, in_ms=10_000) is None
    core.worker_fails(1, NOW)

    refusal = refused(core, in_ms=20)
    assert refusal is None or refusal.retry_after_s < 60


def test_a_model_that_is_not_served_does_not_shut_out_the_batch_class():
    core = lopsided()
    core.worker_fails(1, NOW)
    assert isinstance(refused(core, model=1), errors.ModelNotReady)

    assert refused(core, priority=1) is None


def test_a_model_that_is_not_served_takes_no_share():
    core = lopsided()
    core.worker_fails(1, NOW)
    assert isinstance(refused(core, count=8, model=1), errors.ModelNotReady)
    core.s._admission.review(NOW)

    assert core.lines[0].pace.quota == NO_QUOTA


def test_a_large_request_is_not_refused_for_ever_beside_a_model_that_is_hardly_used():
    core = Core(line(0, deadline_ns=100 * MS, **ROOM), line(1, deadline_ns=100 * MS, **ROOM), points=ONE)
    core.lines[1].pace.offered(1, NOW)

    assert refused(core, count=8, in_ms=1000) is None


def test_the_plan_follows_a_review():
    core = Core(line(**ROOM), points=ONE)
    core.tensors(1)
    core.do(NOW)
    plan, first = core.s._plan, core.lines[0]
    assert plan.lateness_ns(first, NOW + 15 * MS, 1, NOW, NOW) == 2 * FLAT_NS - 15 * MS

    first.pace.inflation = 1.5
    core.s._admission.review(NOW)
    assert plan.lateness_ns(first, NOW + 15 * MS, 1, NOW, NOW) == FLAT_NS + 15 * MS - 15 * MS


def test_a_review_inflates_what_is_expected_of_every_kind_of_worker():
    core = Core(workers=2)
    core.worker_with(1, NOW, kind="old", m0=((1, 30), (2, 30), (4, 30)))
    core.lines[0].pace.inflation = 1.5
    core.s._admission.review(NOW)

    assert core.s.workers[0].profiles[0].times_ns[1] == 15 * MS
