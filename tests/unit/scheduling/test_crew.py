"""What workers say when they cannot go on, what their deaths mean, and who is to blame."""

from __future__ import annotations

import pytest

from gateway import errors
from gateway.scheduling import refusals
from gateway.scheduling.restarts import State
from gateway.scheduling.ticket import Role
from shm.arena import SlotState
from shm.wire import ItemStatus
from tests.support.core import FLAT_NS, MS, NOW, Core, S, line, refused

FAR = NOW + 60 * S


def running(count: int = 1, **named) -> Core:
    """A worker that runs one batch of so many images."""
    core = Core(**named)
    core.tensors(count, deadline_ns=FAR)
    assert len(core.do(NOW)) == 1
    return core


def with_staged() -> Core:
    """It runs 1 and 2; behind them 3 is staged."""
    core = running(2)
    core.tensor(at=NOW + 10 * MS, deadline_ns=FAR)
    assert core.do(NOW + 10 * MS) == ["run 0: 3 at 1, idle"]
    return core


def deaths(core: Core) -> list[tuple[int, int]]:
    """(deaths, crashes) of each image."""
    return [(ticket.deaths, ticket.crashes) for ticket in core.tickets]


# Deaths


def test_who_ran_is_under_suspicion_and_who_was_staged_is_not():
    core = with_staged()

    core.s.worker_lost(0, NOW + 11 * MS, guilty=True)

    assert deaths(core) == [(1, 1), (1, 1), (0, 0)]
    assert [ticket.runs for ticket in core.tickets] == [1, 1, 0]


def test_an_image_nobody_waits_for_is_not_blamed_and_its_slot_is_free():
    core = with_staged()
    for ticket in core.tickets:
        core.s.cancel(ticket, NOW + 11 * MS)

    core.s.worker_lost(0, NOW + 11 * MS, guilty=True)

    assert deaths(core) == [(0, 0)] * 3
    assert core.quiet()


def test_who_broke_the_protocol_may_have_done_anything():
    core = with_staged()
    core.s.broken(Role.WORKER, 0, "nonsense", NOW)

    core.s.worker_lost(0, NOW + 11 * MS)

    assert deaths(core) == [(1, 0)] * 3


def test_a_worker_that_is_interrupted_and_dies_had_hung():
    core = running()
    assert core.do(NOW + 1 * S) == ["interrupt 0"]

    core.s.worker_lost(0, NOW + 1250 * MS)

    assert deaths(core) == [(1, 1)]


def test_after_a_second_crash_an_image_is_accused_and_convicted():
    core = running()
    core.s.worker_lost(0, NOW, guilty=True)
    core.do(NOW)
    core.worker_up(0, NOW + 1 * S)
    assert core.do(NOW + 1 * S) == ["run 0: 1 at 1, suspect"]
    core.s.worker_lost(0, NOW + 1 * S, guilty=True)
    assert core.s.blame.accused == core.tickets
    assert core.do(NOW + 1 * S) == [], "in its slot, until its pixels were read"

    core.s.convict(core.tickets[0], b"pixels", NOW + 1 * S)

    assert core.do(NOW + 1 * S) == ["finish 1: poisoned"]
    assert core.quiet()
    assert core.s.blame.is_convicted(core.lines[0], b"pixels", NOW + 2 * S)


def test_pixels_that_are_refused_free_their_slot():
    core = Core()
    (ticket,) = core.submit(encoding=None)
    core.do(NOW)

    core.s.filled(ticket, NOW, refusals.poisoned())

    assert core.do(NOW) == ["finish 1: poisoned"]
    assert core.quiet()


def test_after_five_kills_from_outside_an_image_is_given_up():
    core = running()
    for number in range(5):
        at = NOW + number * 10 * S
        core.s.worker_lost(0, at)
        core.do(at)
        core.worker_up(0, at + 9 * S)
        words = core.do(at + 9 * S)

    assert words == []
    assert core.tickets[0].deaths == 5
    assert core.quiet()


def test_a_client_of_three_convicted_images_is_refused_at_the_headers():
    core = running()
    for ticket in core.tensors(3, deadline_ns=FAR, client="ada"):
        core.s.blame.accused.append(ticket)
        core.s.convict(ticket, b"%d" % ticket.number, NOW)

    with pytest.raises(errors.RateLimited):
        core.s.precheck(core.lines[0], FAR, NOW, client="ada")
    core.s.precheck(core.lines[0], FAR, NOW, client="bob")


# Interrupts


def test_an_interrupt_that_meets_the_next_batch_is_no_proof_against_that_one():
    """The first batch was answered while the signal was on its way; the images of the second were struck for it."""
    core = running()
    core.tensor(at=NOW + 10 * MS, deadline_ns=FAR)
    core.do(NOW + 10 * MS)
    assert core.do(NOW + 1 * S) == ["interrupt 0"]
    core.ran(at=NOW + 1 * S + 1)

    core.ran(at=NOW + 1 * S + 2, status=ItemStatus.INTERRUPTED)

    assert deaths(core) == [(0, 0), (0, 0)]
    assert core.do(NOW + 1 * S + 2) == ["finish 1: ok", "run 0: 2 at 1, idle"]
    assert core.tickets[1].runs == 1


def test_an_interrupted_image_that_nobody_waits_for_frees_its_slot():
    core = running()
    core.do(NOW + 1 * S)
    core.s.cancel(core.tickets[0], NOW + 1 * S)

    core.ran(at=NOW + 1 * S + 1, status=ItemStatus.INTERRUPTED)

    assert core.quiet()


# A lost device


def test_a_worker_that_lost_its_device_is_replaced_and_its_batch_suspected():
    core = running()
    core.ran(at=NOW + 5 * MS, status=ItemStatus.DEVICE_LOST)

    assert core.do(NOW + 5 * MS) == ["kill worker 0: lost its device"]
    assert deaths(core) == [(1, 1)]
    core.s.worker_lost(0, NOW + 6 * MS, guilty=True)
    assert core.do(NOW + 6 * MS) == ["spawn worker 0"]


def test_the_batch_behind_a_lost_device_was_never_started():
    """It stood first when the worker's death came, and was blamed for it."""
    core = with_staged()
    core.ran(at=NOW + 11 * MS, status=ItemStatus.DEVICE_LOST)
    core.s.worker_lost(0, NOW + 12 * MS, guilty=True)

    assert deaths(core) == [(1, 1), (1, 1), (0, 0)]


def test_the_batch_behind_the_last_words_of_a_killed_worker_was_never_started():
    core = with_staged()
    core.do(NOW + 1 * S)
    assert core.do(NOW + 1250 * MS) == ["kill worker 0: hung"]
    core.ran(at=NOW + 1250 * MS + 1)
    core.s.worker_lost(0, NOW + 1251 * MS)

    assert core.tickets[2].deaths == 0
    assert core.tickets[2].runs == 0


def test_a_worker_that_is_to_be_killed_already_is_killed_once():
    core = running()
    core.do(NOW + 1 * S)
    core.do(NOW + 1250 * MS)

    core.ran(at=NOW + 1250 * MS + 1, status=ItemStatus.DEVICE_LOST)

    assert core.do(NOW + 1250 * MS + 1) == []


# Memory


def test_a_batch_that_does_not_fit_runs_in_smaller_ones_and_never_again():
    core = running(4)
    core.ran(at=NOW + 5 * MS, status=ItemStatus.NO_MEMORY)

    assert core.lines[0].profile.sizes == [1, 2]
    assert core.do(NOW + 5 * MS) == ["run 0: 1 2 at 2, full"]
    assert deaths(core) == [(0, 0)] * 4, "nobody is to blame"
    core.ran(at=NOW + 10 * MS)
    assert core.do(NOW + 10 * MS) == ["finish 1: ok", "finish 2: ok", "run 0: 3 4 at 2, full"]


def test_workers_that_come_up_later_do_not_try_it_again():
    core = running(4, workers=2)
    core.s.worker_lost(1, NOW)
    core.ran(at=NOW + 5 * MS, status=ItemStatus.NO_MEMORY)
    core.do(NOW + 5 * MS)
    core.worker_up(1, NOW + 6 * MS)
    core.s.worker_lost(0, NOW + 7 * MS)
    core.do(NOW + 7 * MS)
    core.worker_up(0, NOW + 8 * MS)

    assert [worker.profiles[0].sizes for worker in core.s.workers] == [[1, 2], [1, 2]]


def test_a_batch_on_its_way_that_is_as_large_cuts_nothing_more():
    core = Core(workers=2)
    core.tensors(4, deadline_ns=FAR)
    core.do(NOW)
    core.tensors(4, deadline_ns=FAR)
    core.do(NOW)
    core.ran(0, at=NOW + 5 * MS, status=ItemStatus.NO_MEMORY)
    core.ran(1, at=NOW + 6 * MS, status=ItemStatus.NO_MEMORY)

    assert core.lines[0].profile.sizes == [1, 2]
    assert core.lines[0].size_end == 4


def test_an_image_that_does_not_fit_alone_fails():
    core = running()
    core.ran(at=NOW + 5 * MS, status=ItemStatus.NO_MEMORY)

    assert core.do(NOW + 5 * MS) == ["finish 1: inference_failed"]
    assert core.lines[0].profile.sizes == [1, 2, 4]
    assert core.quiet()


def test_an_image_nobody_waits_for_that_did_not_fit_frees_its_slot():
    core = running(2)
    core.s.cancel(core.tickets[0], NOW)
    core.ran(at=NOW + 5 * MS, status=ItemStatus.NO_MEMORY)

    assert core.lines[0].arena.statistics()["free"] == 7


def test_memory_that_is_short_for_a_model_the_worker_has_no_more():
    core = Core(workers=2)
    core.tensors(4, deadline_ns=FAR)
    core.do(NOW)
    core.s.retire_worker(0, NOW)

    core.ran(0, at=NOW + 5 * MS, status=ItemStatus.NO_MEMORY)

    assert core.s.worker(1).profiles[0].sizes == [1, 2]
    assert core.do(NOW + 5 * MS) == ["kill worker 0: retired", "run 1: 1 2 at 2, full"]


def test_a_batch_of_a_model_the_worker_has_no_more_teaches_nothing():
    core = Core(workers=2)
    core.tensor(deadline_ns=FAR)
    core.do(NOW)
    core.s.retire_worker(0, NOW)

    core.ran(0, at=NOW + 500 * MS)

    assert core.lines[0].profile.by_count[1] == FLAT_NS


# Suspects


def test_nothing_is_staged_on_a_worker_that_suspects_wait_for():
    """Under load it would never be idle, and they would wait until their deadlines."""
    core = running(4, workers=2)
    core.tensor(deadline_ns=FAR)
    assert core.do(NOW) == ["run 1: 5 at 1, idle"]
    core.s.worker_lost(0, NOW)
    core.do(NOW)
    core.tensors(4, at=NOW + 10 * MS, deadline_ns=FAR)

    assert core.do(NOW + 10 * MS) == []
    core.ran(1, at=NOW + 11 * MS)
    assert core.do(NOW + 11 * MS) == ["finish 5: ok", "run 1: 1 at 1, suspect"]


def test_suspects_of_another_model_do_not_keep_a_worker_from_its_own():
    core = Core(line(0), line(1), workers=2, up=False)
    core.do(NOW)
    core.s.decoder_ready(0, NOW)
    core.worker_up(0, NOW, models=[0])
    core.worker_up(1, NOW, models=[1])
    core.tensor(deadline_ns=FAR)
    core.do(NOW)
    core.s.worker_lost(0, NOW)
    core.do(NOW)
    core.tensor(model=1, deadline_ns=FAR)
    assert core.do(NOW) == ["run 1: 2 at 1, idle"]
    core.tensor(model=1, at=NOW + 10 * MS, deadline_ns=FAR)

    assert core.do(NOW + 10 * MS) == ["run 1: 3 at 1, idle"]


def test_a_suspect_that_nobody_can_answer_in_time_is_told_so():
    core = Core(workers=2)
    core.tensor(deadline_ns=NOW + 100 * MS)
    core.do(NOW)
    core.s.worker_lost(0, NOW + 95 * MS)

    assert core.do(NOW + 95 * MS) == ["spawn worker 0", "finish 1: deadline_exceeded"]


def test_a_suspect_waits_for_the_worker_that_can_still_do_it():
    core = Core(workers=3, up=False)
    core.do(NOW)
    core.s.decoder_ready(0, NOW)
    core.worker_with(0, NOW, kind="gpu", m0=[(1, 10)])
    core.worker_with(1, NOW, kind="cpu", m0=[(1, 80)])
    core.worker_with(2, NOW, kind="gpu", m0=[(1, 10)])
    core.tensors(3, deadline_ns=NOW + 400 * MS)
    core.do(NOW)
    core.ran(1, at=NOW + 350 * MS)
    core.s.worker_lost(0, NOW + 350 * MS)
    core.ran(2, at=NOW + 389 * MS)

    assert "run 2: 1 at 1, suspect" in core.do(NOW + 389 * MS)


# Hanging in the kernel


def stuck() -> Core:
    core = running()
    core.do(NOW + 1 * S)
    core.do(NOW + 1250 * MS)
    assert core.s.is_ready is False
    assert refused(core, at=NOW + 2 * S, in_ms=30_000) is None, "it is expected back"
    core.fill(NOW + 3 * S)
    assert core.do(NOW + 4 * S) == []
    assert core.s.wake_at_ns() == NOW + 6250 * MS
    assert core.do(NOW + 6250 * MS) == ["stuck worker 0"]
    return core


def test_nobody_waits_for_a_worker_that_hangs_in_the_kernel():
    """It counted as coming back, and whoever was accepted for it waited until the deadline."""
    core = stuck()

    assert isinstance(refused(core, at=NOW + 7 * S), errors.ModelNotReady)
    assert core.s.worker(0).state is State.STUCK
    assert core.lines[0].arena.state(core.tickets[0].slot) is SlotState.RUNNING, "it may still write there"
    assert core.do(NOW + 8 * S) == []


def test_one_that_is_reaped_after_all_is_started_again():
    core = stuck()
    core.s.worker_lost(0, NOW + 9 * S)

    assert core.do(NOW + 9 * S) == ["spawn worker 0"]
    core.worker_up(0, NOW + 10 * S)
    assert core.do(NOW + 10 * S) == ["run 0: 1 at 1, suspect"]


def test_a_model_is_not_served_where_all_decoders_hang_in_the_kernel():
    core = Core()
    core.s.broken(Role.DECODER, 0, "nonsense", NOW)
    core.do(NOW)
    assert core.do(NOW + 5 * S) == ["stuck decoder 0"]

    assert isinstance(refused(core, at=NOW + 5 * S), errors.ModelNotReady)
