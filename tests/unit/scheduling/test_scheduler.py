from __future__ import annotations

import pytest

from gateway import errors
from gateway.scheduling.ticket import TENSOR, Stage
from shm.arena import SlotState
from shm.wire import ItemStatus
from tests.support.core import MS, NOW, Core, S, line

BAD = errors.UndecodableImage("not an image")


def refusal(core: Core, *, deadline_ns: int = 0, at: int = NOW) -> str:
    deadline_ns = deadline_ns or at + 1 * S
    try:
        core.s.precheck(core.lines[0], deadline_ns, at)
    except errors.Refusal as error:
        return error.code
    return ""


# Before the body is read


def test_precheck_lets_pass_what_can_succeed():
    assert refusal(Core()) == ""


def test_precheck_while_draining():
    core = Core()
    assert not core.s.draining
    core.s.drain()

    assert core.s.draining
    assert refusal(core) == "draining"
    with pytest.raises(errors.Draining):
        core.submit()
    assert core.quiet()


def test_precheck_before_a_worker_was_ready():
    assert refusal(Core(up=False)) == "model_not_ready"


def test_precheck_while_a_worker_restarts():
    core = Core()
    core.s.worker_lost(0, NOW)

    assert refusal(core) == ""


def test_precheck_when_the_only_worker_keeps_dying_and_when_it_is_back():
    core = Core()
    for _ in range(5):
        core.s.worker_lost(0, NOW)
    assert refusal(core) == "model_not_ready"

    core.worker_up(0, NOW + 1 * S)
    assert refusal(core, at=NOW + 1 * S) == ""


def test_precheck_when_every_decoder_keeps_dying():
    core = Core(decoders=2)
    for _ in range(5):
        core.s.decoder_lost(0, 0, guilty=False, now_ns=NOW)
    assert refusal(core) == ""

    for _ in range(5):
        core.s.decoder_lost(1, 0, guilty=False, now_ns=NOW)
    assert refusal(core) == "model_not_ready"


def test_precheck_of_a_deadline_that_passed():
    assert refusal(Core(), deadline_ns=NOW, at=NOW) == "deadline_exceeded"


def test_precheck_of_a_full_queue():
    core = Core(line(queue_max=2))
    core.submit(count=2)

    assert refusal(core) == "overloaded"


def test_a_request_is_accepted_whole_or_not_at_all():
    core = Core(line(queue_max=3))
    core.submit(count=2)

    with pytest.raises(errors.Overloaded, match="2 images wait for model m0, which takes 3"):
        core.submit(count=2)
    assert core.s.live_count == 2


def test_bodies_are_bounded_by_bytes():
    core = Core()
    body = core.s.allocate_body(1 << 20)

    with pytest.raises(errors.Overloaded):
        core.s.allocate_body(1)
    body.release()
    core.s.allocate_body(1).release()
    assert core.quiet()


# The way of an image


def test_a_ticket_from_submit_to_release():
    core = Core()
    ticket = core.submit()[0]
    arena = core.lines[0].arena
    assert core.do(NOW) == ["send 0: 1"]
    assert arena.state(ticket.slot) is SlotState.FILLING

    core.decoded(1, at=NOW + 1 * MS, decode_ns=700_000)
    assert core.bodies.held_size == 0
    assert arena.state(ticket.slot) is SlotState.QUEUED

    assert core.do(NOW + 2 * MS) == ["run 0: 1 at 1, idle"]
    assert arena.state(ticket.slot) is SlotState.RUNNING
    assert core.lines[0].dues == []

    core.ran(at=NOW + 12 * MS)
    assert arena.state(ticket.slot) is SlotState.DONE
    assert core.do(NOW + 12 * MS) == ["finish 1: ok"]

    core.s.release(ticket)
    assert core.quiet()
    times = (ticket.submitted_ns, ticket.sent_ns, ticket.decoded_ns, ticket.run_ns, ticket.done_ns)
    assert times == (NOW, NOW, NOW + 1 * MS, NOW + 2 * MS, NOW + 12 * MS)
    assert (ticket.decode_ns, ticket.runs) == (700_000, 1)


def test_a_tensor_is_copied_and_runs():
    core = Core()
    first, _ = core.submit(count=2, encoding=TENSOR)
    assert core.do(NOW) == ["fill 1", "fill 2"]

    core.s.filled(first, NOW)
    assert core.do(NOW) == ["run 0: 1 at 1, idle"]
    assert core.bodies.held_size > 0


def test_a_tensor_cancelled_before_it_was_copied():
    core = Core()
    ticket = core.submit(encoding=TENSOR)[0]
    core.do(NOW)

    core.s.cancel(ticket, NOW)
    core.s.filled(ticket, NOW)

    assert core.quiet()
    assert core.do(NOW) == []


def test_a_refused_image_frees_its_slot_and_harms_nobody():
    core = Core()
    core.submit(count=2)
    core.do(NOW)

    core.decoded(1, at=NOW, refusal=BAD)
    core.decoded(2, at=NOW)

    assert core.do(NOW) == ["finish 1: undecodable_image", "run 0: 2 at 1, idle"]


def test_statuses_are_per_item():
    core = Core()
    for number in (1, 2, 3):
        core.submit()
        core.do(NOW) if number == 1 else None
    core.do(NOW)
    core.s.workers[0].ready = False
    for number in (1, 2, 3):
        core.decoded(number, at=NOW)
    core.s.workers[0].ready = True
    assert core.do(NOW) == ["run 0: 1 2 3 at 4, idle"]
    batch = core.s.workers[0].batches[0]

    core.s.batch_done(0, batch.number, [ItemStatus.LATE, ItemStatus.FAILED, ItemStatus.OK], NOW)

    # What was refused as late was not run, and still has time: it runs in the next batch.
    assert core.do(NOW) == ["finish 2: inference_failed", "finish 3: ok", "run 0: 1 at 1, idle"]
    assert core.lines[0].arena.free_count == 6


# Cancel


def test_cancel_while_waiting():
    core = Core()
    ticket = core.submit()[0]

    core.s.cancel(ticket, NOW)

    assert core.quiet()
    assert core.do(NOW) == []
    assert core.s.wake_at_ns() is None, "nobody waits, and no child owes anything"


def test_cancel_while_decoding_keeps_slot_and_bytes_until_the_decoder_answers():
    core = Core()
    ticket = core.submit()[0]
    core.do(NOW)

    core.s.cancel(ticket, NOW)
    assert core.lines[0].arena.state(ticket.slot) is SlotState.ZOMBIE
    assert core.bodies.held_size > 0
    assert core.s.live_count == 0

    core.decoded(1, at=NOW)
    assert core.quiet()
    assert core.do(NOW) == []


def test_cancel_while_decoding_and_the_decoder_dies():
    core = Core()
    ticket = core.submit()[0]
    core.do(NOW)

    core.s.cancel(ticket, NOW)
    core.s.decoder_lost(0, ticket.number, guilty=True, now_ns=NOW)

    assert core.quiet()
    assert core.do(NOW) == ["spawn decoder 0"]


def test_cancel_while_queued():
    core = Core(line(window_ns=5 * MS))
    ticket = core.queued()

    core.s.cancel(ticket, NOW)

    assert core.quiet()
    assert core.lines[0].window_from_ns == 0


def test_cancel_while_running_keeps_the_slot_until_the_worker_answers():
    core = Core()
    ticket = core.queued()
    core.do(NOW)

    core.s.cancel(ticket, NOW)
    assert core.lines[0].arena.state(ticket.slot) is SlotState.ZOMBIE

    core.ran(at=NOW + 10 * MS)
    assert core.quiet()
    assert core.do(NOW + 10 * MS) == []


def test_cancel_while_running_and_the_worker_dies():
    core = Core()
    ticket = core.queued()
    core.do(NOW)

    core.s.cancel(ticket, NOW)
    core.s.worker_lost(0, NOW)

    assert core.quiet()
    assert core.do(NOW) == ["spawn worker 0"]


def test_cancel_of_an_output_that_was_not_read():
    core = Core()
    ticket = core.queued()
    core.do(NOW)
    core.ran(at=NOW)
    assert core.do(NOW) == ["finish 1: ok"]

    core.s.cancel(ticket, NOW)

    assert core.quiet()
    assert ticket.stage is Stage.ENDED


def test_cancel_between_the_reply_and_its_hand_over_takes_the_answer_back():
    core = Core()
    ticket = core.queued()
    core.do(NOW)
    core.ran(at=NOW)

    core.s.cancel(ticket, NOW)

    assert core.do(NOW) == []  # a Finish would have its slot read after it was freed
    assert core.quiet()


def test_cancel_after_the_end_does_nothing():
    core = Core()
    ticket = core.submit()[0]
    core.do(NOW)
    core.decoded(1, at=NOW, refusal=BAD)
    assert core.do(NOW) == ["finish 1: undecodable_image"]

    core.s.cancel(ticket, NOW)

    assert core.do(NOW) == []
    assert core.quiet()


# Deadlines


@pytest.mark.parametrize("stage", [Stage.WAITING, Stage.FILLING, Stage.QUEUED, Stage.RUNNING])
def test_a_deadline_is_answered_on_time_in_every_stage(stage: Stage):
    core = Core()
    if stage is Stage.WAITING:
        core.s.feeder.decoders[0].ready = False
    core.submit(deadline_ns=NOW + 50 * MS)
    core.do(NOW)
    if stage >= Stage.QUEUED:
        core.decoded(1, at=NOW)
        core.s.workers[0].ready = stage is Stage.RUNNING
        core.do(NOW + 39 * MS)
    assert core.tickets[0].stage is stage

    assert core.s.wake_at_ns() == NOW + 50 * MS
    assert core.do(NOW + 50 * MS - 1) == []
    assert core.do(NOW + 50 * MS) == ["finish 1: deadline_exceeded"]


def test_an_image_that_cannot_be_answered_in_time_any_more_is_not_run():
    core = Core()
    core.queued(deadline_ns=NOW + 20 * MS)

    assert core.do(NOW + 10 * MS + 1) == ["finish 1: deadline_exceeded"]
    assert core.quiet()


def test_the_slot_of_a_late_image_goes_to_the_next_at_once():
    core = Core(line(slot_count=1))
    core.queued(deadline_ns=NOW + 20 * MS)
    core.submit()

    assert core.do(NOW + 10 * MS + 1) == ["finish 1: deadline_exceeded", "send 0: 2"]


def test_time_never_goes_back():
    core = Core()
    core.queued(deadline_ns=NOW + 50 * MS, at=NOW + 20 * MS)

    core.do(NOW)

    assert core.tickets[0].run_ns == NOW + 20 * MS
