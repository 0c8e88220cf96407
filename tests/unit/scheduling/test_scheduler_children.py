"""The scheduler and its children: starts, deaths, hangs, readiness, drain."""

from __future__ import annotations

import pytest

from gateway import errors
from gateway.scheduling.ticket import Role
from shm.wire import ItemStatus
from tests.support.core import FLAT_NS, MS, NOW, Core, S, line

# Decoders


def test_children_are_started_first():
    core = Core(decoders=2, workers=2, up=False)

    assert core.do(NOW) == ["spawn decoder 0", "spawn decoder 1", "spawn worker 0", "spawn worker 1"]


def test_a_child_that_does_not_start_is_killed_and_never_believed():
    core = Core(up=False)
    core.do(NOW)
    core.do(core.s.wake_at_ns())
    assert core.s.wake_at_ns() == NOW + 20 * S

    assert core.do(NOW + 20 * S) == [
        "kill decoder 0: did not start in time",
        "kill worker 0: did not start in time",
    ]
    core.s.decoder_ready(0, NOW + 20 * S)
    core.worker_up(0, NOW + 20 * S)
    assert not core.s.is_ready
    with pytest.raises(errors.ModelNotReady):
        core.submit(at=NOW + 20 * S)

    core.s.decoder_lost(0, 0, guilty=False, now_ns=NOW + 20 * S)
    core.s.worker_lost(0, NOW + 20 * S)
    assert core.do(NOW + 20 * S) == ["spawn decoder 0", "spawn worker 0"]
    core.s.decoder_ready(0, NOW + 20 * S)
    core.worker_up(0, NOW + 20 * S)
    core.submit(at=NOW + 20 * S)
    assert core.do(NOW + 20 * S) == ["send 0: 1"]


def test_a_child_that_died_again_waits_for_its_back_off():
    core = Core()
    core.s.decoder_lost(0, 0, guilty=False, now_ns=NOW)
    assert core.do(NOW) == ["spawn decoder 0"]
    core.s.decoder_lost(0, 0, guilty=False, now_ns=NOW)

    assert core.do(NOW) == []
    assert core.s.wake_at_ns() == NOW + 100 * MS
    assert core.do(NOW + 100 * MS) == ["spawn decoder 0"]


def test_a_hung_decoder_is_killed():
    core = Core()
    core.submit(count=2, deadline_ns=NOW + 60 * S)
    core.do(NOW)
    core.decoded(1, at=NOW + 1 * S)
    core.do(NOW + 1 * S)

    assert core.s.feeder.decoders[0].due_ns == NOW + 3 * S
    assert "kill decoder 0: hung" in core.do(NOW + 3 * S)
    assert "kill decoder 0: hung" not in core.do(NOW + 4 * S)


def test_a_child_that_was_stopped_is_killed_once():
    core = Core()
    core.s.stopped(Role.DECODER, 0, NOW)
    core.s.stopped(Role.WORKER, 0, NOW)
    assert core.do(NOW) == ["kill decoder 0: stopped", "kill worker 0: stopped"]
    assert not core.s.feeder.decoders[0].ready
    core.s.stopped(Role.DECODER, 0, NOW)
    assert core.do(NOW) == []


def test_a_worker_that_was_stopped_over_a_batch_is_left_to_the_batch_s_own_clock():
    core = Core()
    core.queued()
    assert core.do(NOW) == ["run 0: 1 at 1, idle"]
    core.s.stopped(Role.WORKER, 0, NOW)
    assert core.do(NOW) == []


def test_an_answer_about_an_image_that_was_never_sent():
    core = Core()

    assert not core.s.decoded(0, 77, None, 1, NOW)
    core.s.broken(Role.DECODER, 0, "nonsense", NOW)
    assert core.do(NOW) == ["kill decoder 0: nonsense"]


def held_by_decoder(count: int) -> Core:
    core = Core(decoders=1)
    core.submit(count=count, deadline_ns=NOW + 60 * S)
    core.do(NOW)
    return core


def decoder_dies(core: Core, blamed: int, *, guilty: bool, at: int) -> list[str]:
    """It dies on the `blamed`th image (0: it does not say), and its successor is up at once."""
    number = core.tickets[blamed - 1].number if blamed else 0
    core.s.decoder_lost(0, number, guilty=guilty, now_ns=at)
    finished = [word for word in core.do(at) if word.startswith("finish")]
    core.do(at + 9 * S)
    core.s.decoder_ready(0, at + 9 * S)
    core.do(at + 9 * S)
    return finished


def test_the_guilty_image_is_refused_at_once_and_its_neighbours_go_on():
    core = held_by_decoder(3)

    assert decoder_dies(core, 2, guilty=True, at=NOW) == ["finish 2: undecodable_image"]
    assert list(core.s.feeder.decoders[0].held.values()) == [core.tickets[0], core.tickets[2]]
    assert [ticket.attempts for ticket in core.tickets] == [0, 1, 0]


def test_a_blamed_image_survives_one_kill_from_outside():
    core = held_by_decoder(2)

    assert decoder_dies(core, 1, guilty=False, at=NOW) == []
    assert decoder_dies(core, 1, guilty=False, at=NOW + 10 * S) == ["finish 1: undecodable_image"]
    assert core.tickets[1].attempts == 0


def test_when_nobody_is_blamed_everybody_may_be_there_three_times():
    core = held_by_decoder(2)

    assert decoder_dies(core, 0, guilty=True, at=NOW) == []
    assert decoder_dies(core, 0, guilty=True, at=NOW + 10 * S) == []
    finished = decoder_dies(core, 0, guilty=True, at=NOW + 20 * S)
    assert finished == ["finish 1: undecodable_image", "finish 2: undecodable_image"]
    assert core.quiet()


# Workers


def test_a_lost_batch_runs_again_one_image_at_a_time():
    core = Core(workers=2)
    core.tensors(2, deadline_ns=NOW + 60 * S)
    assert core.do(NOW) == ["run 0: 1 2 at 2, idle"]

    core.s.worker_lost(0, NOW)
    assert core.do(NOW) == ["spawn worker 0", "run 1: 1 at 1, suspect"]
    core.queued(deadline_ns=NOW + 60 * S)
    core.ran(1, at=NOW + 10 * MS)
    assert core.do(NOW + 10 * MS) == ["finish 1: ok", "run 1: 2 at 1, suspect"], "before those who came later"
    core.ran(1, at=NOW + 20 * MS)
    assert core.do(NOW + 20 * MS) == ["finish 2: ok", "run 1: 3 at 1, idle"]


def test_a_lost_batch_waits_for_the_successor():
    core = Core()
    core.queued()
    core.do(NOW)

    core.s.worker_lost(0, NOW)
    assert core.do(NOW) == ["spawn worker 0"]
    core.worker_up(0, NOW + 300 * MS)
    assert core.do(NOW + 300 * MS) == ["run 0: 1 at 1, suspect"]


def test_a_hung_worker_is_interrupted_after_a_second_at_least_and_killed_if_that_does_not_help():
    core = Core()
    core.queued(deadline_ns=NOW + 60 * S)
    core.do(NOW)

    assert core.s.wake_at_ns() == NOW + 1 * S
    assert core.do(NOW + 1 * S) == ["interrupt 0"]
    assert core.s.wake_at_ns() == NOW + 1250 * MS
    assert core.do(NOW + 1250 * MS) == ["kill worker 0: hung"]


def test_an_interrupted_worker_that_answers_goes_on():
    core = Core()
    core.tensors(2, deadline_ns=NOW + 60 * S)
    core.do(NOW)
    core.do(NOW + 1 * S)

    core.ran(at=NOW + 1010 * MS, status=ItemStatus.INTERRUPTED)
    assert core.do(NOW + 1010 * MS) == ["run 0: 1 at 1, suspect"]
    core.ran(at=NOW + 1020 * MS)
    assert core.do(NOW + 1020 * MS) == ["finish 1: ok", "run 0: 2 at 1, suspect"]
    assert core.do(NOW + 2020 * MS) == ["interrupt 0"]


def test_a_slow_batch_is_given_five_times_its_time():
    core = Core(points=((1, 400 * MS),))
    core.queued(deadline_ns=NOW + 60 * S)
    core.do(NOW)

    core.do(NOW + 1 * S)
    assert core.s.wake_at_ns() == NOW + 5 * 408 * MS
    assert core.do(NOW + 5 * 408 * MS) == ["interrupt 0"]


def test_a_staged_batch_is_watched_from_its_own_start():
    core = Core()
    core.queued()
    core.do(NOW)
    core.queued()
    core.do(NOW + 10 * MS)
    first, staged = core.s.workers[0].batches
    assert (first.started_ns, staged.started_ns) == (NOW, 0)
    assert core.s.workers[0].free_at_ns == NOW + 2 * FLAT_NS

    core.ran(at=NOW + 13 * MS)

    assert staged.started_ns == NOW + 13 * MS
    assert core.s.workers[0].free_at_ns == NOW + 13 * MS + FLAT_NS


def test_senseless_replies_are_not_believed():
    core = Core()
    core.queued()
    core.do(NOW)
    number = core.s.workers[0].batches[0].number

    assert core.s.batch_done(0, number + 1, [ItemStatus.OK], NOW) is None
    assert core.s.batch_done(0, number, [], NOW) is None
    assert core.s.batch_done(0, number, [ItemStatus.OK], NOW) is not None
    assert core.s.batch_done(0, number, [ItemStatus.OK], NOW) is None


# Drain


def test_drain_finishes_what_was_accepted():
    core = Core()
    core.queued()
    core.s.drain()

    assert core.do(NOW) == ["run 0: 1 at 1, idle"]
    core.ran(at=NOW + 10 * MS)
    assert core.do(NOW + 10 * MS) == ["finish 1: ok"]
    assert core.s.live_count == 0


def test_whoever_still_waits_at_the_end_of_a_drain_is_told_so():
    core = Core(decoders=2)
    core.queued()
    core.submit(count=2)
    core.do(NOW)
    core.s.drain()

    core.s.refuse_rest(NOW + 1 * MS)

    assert core.do(NOW + 1 * MS) == ["finish 1: draining", "finish 2: draining", "finish 3: draining"]
    assert core.s.live_count == 0


def test_more_images_than_the_queue_ever_takes_are_refused_for_good():
    core = Core(line(queue_max=2))
    with pytest.raises(errors.PayloadTooLarge, match=r"3 images.*takes 2"):
        core.submit(count=3)
    assert core.bodies.held_size == 0


def test_trying_again_is_advised_only_while_a_worker_still_loads():
    core = Core(up=False)
    core.do(NOW)
    with pytest.raises(errors.ModelNotReady) as caught:
        core.s.precheck(core.lines[0], NOW + 1 * S, NOW)
    assert caught.value.retry_after_s == 1

    core.s.worker_ready(0, {}, NOW)
    with pytest.raises(errors.ModelNotReady, match="refused") as caught:
        core.s.precheck(core.lines[0], NOW + 1 * S, NOW)
    assert caught.value.retry_after_s is None


def test_ready_is_every_model_and_a_decoder():
    core = Core(line(0), line(1), decoders=2, up=False)
    core.do(NOW)
    core.s.worker_ready(0, {0: core.points}, NOW)
    assert [core.s.is_up(one) for one in core.lines] == [True, False]
    core.s.decoder_ready(1, NOW)
    assert not core.s.is_ready

    core.s.worker_lost(0, NOW)
    assert not core.s.is_up(core.lines[0])
    core.do(NOW)
    core.worker_up(0, NOW)
    assert core.s.is_ready
    core.s.decoder_lost(1, 0, guilty=False, now_ns=NOW)
    assert not core.s.is_ready


# What batches teach


def ran_slowly(core: Core, count: int, took_ns: int) -> None:
    """That many batches of one, each `took_ns` long."""
    for number in range(count):
        at = NOW + number * 2 * took_ns
        core.tensors(1, at=at, deadline_ns=at + 10 * S)
        assert len(core.do(at)) == 1
        core.ran(at=at + took_ns)
        core.do(at + took_ns)
        core.s.release(core.tickets[-1])


def test_batches_that_run_keep_the_profile_current():
    core = Core(points=((1, 10 * MS),))
    before_ns = core.lines[0].profile.by_count[1]
    ran_slowly(core, 16, 30 * MS)

    assert before_ns < 11 * MS < 30 * MS <= core.lines[0].profile.by_count[1]


def test_batches_that_take_longer_than_expected_widen_the_margin():
    core = Core(points=((1, 10 * MS),))
    ran_slowly(core, 1, 200 * MS)
    core.s._admission.review(NOW + 1 * S)

    assert core.lines[0].statistics().overrun_ns >= 180 * MS


def test_a_batch_that_was_refused_as_late_teaches_nothing():
    core = Core(points=((1, 10 * MS),))
    core.tensors(1, deadline_ns=NOW + 10 * S)
    core.do(NOW)
    core.ran(at=NOW + 900 * MS, status=ItemStatus.LATE)
    core.s._admission.review(NOW + 1 * S)

    assert core.lines[0].statistics().overrun_ns == 0
