"""Two batches at a time in a worker: order, lateness, errors, and what is known of a batch at each moment."""

import threading
import time

import pytest

from gpuworker import loop
from gpuworker.backend import DeviceLost
from gpuworker.interrupts import YOUNG_NS
from gpuworker.model import LOST, NO_MEMORY, NOT_RUN, GatewayBug
from shm.wire import ItemStatus, WireError
from tests.support.gateways import wait_until
from tests.support.overlapping import Alone, Held, serving

OK, FAILED, LATE = ItemStatus.OK, ItemStatus.FAILED, ItemStatus.LATE
DEVICE_LOST = ItemStatus.DEVICE_LOST
S = 1_000_000_000


@pytest.fixture
def rig():
    with serving() as made:
        yield made


def two_in_flight(rig):
    rig.send(1, [1])
    rig.send(2, [2, 3])
    assert [rig.step(), rig.step()] == [("start", [1]), ("start", [2, 3])]


def test_the_second_batch_is_gathered_and_started_before_the_first_is_answered(rig):
    two_in_flight(rig)
    rig.pixels[[1, 2, 3], 0] = 99  # whoever reads a slot now is too late
    rig.backends[0].end()
    first = rig.receive()
    assert (first.batch, first.statuses, first.compute_ns) == (1, [OK], 1000)
    rig.backends[0].end()
    second = rig.receive()
    assert (second.batch, second.statuses, second.compute_ns) == (2, [OK, OK], 2000)
    assert rig.outputs[0][[1, 2, 3]].tolist() == [1, 2, 3]
    assert min(second.gather_ns, second.run_ns, second.write_ns) > 0


def test_a_third_waits_until_the_first_is_answered(rig):
    two_in_flight(rig)
    rig.send(3, [4])
    rig.backends[0].end()
    assert rig.step() == ("finish", [1])
    assert rig.receive().batch == 1
    assert rig.step() == ("start", [4])
    rig.backends[0].end()
    rig.backends[0].end()
    assert [rig.receive().batch, rig.receive().batch] == [2, 3]


def test_it_is_started_by_the_thread_that_serves(rig):
    two_in_flight(rig)
    assert rig.backends[0].threads == {rig.thread.ident}


def test_the_recorder_names_the_head_from_its_gather_to_its_answer(rig):
    assert rig.recorded == 0
    rig.send(7, [1])
    assert rig.step() == ("start", [1])
    assert rig.recorded == 7
    rig.send(8, [2])
    assert rig.step() == ("start", [2])
    assert rig.recorded == 7
    rig.backends[0].end()
    assert rig.receive().batch == 7
    wait_until(lambda: rig.recorded == 8, "the second batch the head")
    rig.backends[0].end()
    assert rig.receive().batch == 8
    wait_until(lambda: rig.recorded == 0, "nothing recorded")


def test_running_counts_from_when_a_batch_is_the_head(rig):
    two_in_flight(rig)
    begun_ns = time.monotonic_ns()
    wait_until(lambda: time.monotonic_ns() > begun_ns + S // 20, "the first took its time")
    ending_ns = time.monotonic_ns()
    rig.backends[0].end()
    rig.backends[0].end()
    first, second = rig.receive(), rig.receive()
    assert first.run_ns > S // 20
    # It was no head before; had its own start counted, that were S // 20 more.
    assert second.run_ns <= time.monotonic_ns() - ending_ns


# Interrupts


def test_an_interrupt_reaches_the_head_only_and_its_time_is_the_heads():
    with serving(Held(), Held()) as rig:
        rig.send(1, [1])
        rig.send(2, [2], model=1)
        assert [rig.step(0), rig.step(1)] == [("start", [1]), ("start", [2])]
        behind_ns = time.monotonic_ns()
        rig.interrupts.interrupt(behind_ns + YOUNG_NS)
        assert [backend.interrupted for backend in rig.backends] == [1, 0]
        rig.backends[0].end()
        rig.receive()
        wait_until(lambda: rig.recorded == 2, "the second batch the head")
        # It is young as a head, however long ago it was started.
        rig.interrupts.interrupt(behind_ns + YOUNG_NS)
        assert [backend.interrupted for backend in rig.backends] == [1, 0]
        rig.interrupts.interrupt(time.monotonic_ns() + YOUNG_NS)
        assert [backend.interrupted for backend in rig.backends] == [1, 1]
        rig.backends[1].end()
        rig.receive()
        wait_until(lambda: rig.recorded == 0, "nothing recorded")
        rig.interrupts.interrupt(time.monotonic_ns() + YOUNG_NS)
        assert [backend.interrupted for backend in rig.backends] == [1, 1]


# Lateness


def test_a_batch_whose_start_has_passed_is_late(rig):
    rig.send(1, [1, 2], latest=time.monotonic_ns() - 1)
    ran = rig.receive()
    assert (ran.batch, ran.statuses) == (1, [LATE, LATE])
    rig.send(2, [1])
    assert rig.step() == ("start", [1])  # nobody started the first


def test_a_late_batch_behind_another_waits_for_its_turn(rig):
    rig.send(1, [1])
    assert rig.step() == ("start", [1])
    rig.send(2, [2], latest=time.monotonic_ns() - 1)
    rig.send(3, [3])
    rig.backends[0].end()
    assert rig.receive().batch == 1
    ran = rig.receive()
    assert (ran.batch, ran.statuses) == (2, [LATE])
    assert [rig.step(), rig.step()] == [("finish", [1]), ("start", [3])]


def test_one_that_seems_to_come_too_late_is_decided_once_the_head_is_done(rig):
    rig.pipeline.took_ns[rig.models[0], 4] = 3600 * S
    rig.send(1, [1])
    assert rig.step() == ("start", [1])
    rig.send(2, [2], latest=time.monotonic_ns() + 60 * S)
    rig.backends[0].end()
    assert [rig.step(), rig.step()] == [("finish", [1]), ("start", [2])]
    rig.backends[0].end()
    assert [rig.receive().statuses, rig.receive().statuses] == [[OK], [OK]]


def test_one_that_the_head_was_too_slow_for_is_late(rig):
    """Nobody knows how long the head takes before one like it was run: it is taken to be as good as done."""
    rig.send(1, [1])
    assert rig.step() == ("start", [1])
    assert rig.models[0] not in {model for model, _ in rig.pipeline.took_ns}
    rig.pipeline.took_ns[rig.models[0], 4] = 3600 * S
    latest_ns = time.monotonic_ns() + S // 5
    rig.send(2, [2], latest=latest_ns)
    wait_until(lambda: time.monotonic_ns() > latest_ns, "the latest start passed")
    rig.backends[0].end()
    assert [rig.receive().statuses, rig.receive().statuses] == [[OK], [LATE]]
    assert rig.step() == ("finish", [1])
    assert rig.backends[0].steps.empty()


def test_what_a_size_took_last_is_what_is_expected_of_it(rig):
    rig.send(1, [1])
    rig.backends[0].end()
    rig.receive()
    wait_until(lambda: rig.recorded == 0, "nothing recorded")
    (took,) = rig.pipeline.took_ns.items()
    assert took[0] == (rig.models[0], 4)
    assert took[1] > 0


# Errors


def test_an_error_in_the_start_of_the_second_is_answered_behind_the_first(rig, capfd):
    rig.backends[0].start_errors[2] = MemoryError("arena")
    two_in_flight(rig)
    assert "batch_failed" not in capfd.readouterr().err
    rig.backends[0].end()
    assert rig.receive().statuses == [OK]
    ran = rig.receive()
    assert (ran.batch, ran.statuses, ran.detail) == (2, [ItemStatus.NO_MEMORY] * 2, NO_MEMORY)
    rig.send(3, [4])
    rig.backends[0].end()
    assert rig.receive().statuses == [OK]
    assert capfd.readouterr().err.count("batch_failed") == 1


def test_an_error_in_finish_fails_that_batch_and_not_the_one_behind(rig):
    two_in_flight(rig)
    rig.backends[0].end(RuntimeError("no"))
    ran = rig.receive()
    assert (ran.batch, ran.statuses, ran.detail) == (1, [FAILED], NOT_RUN)
    rig.backends[0].end()
    assert rig.receive().statuses == [OK, OK]


def test_a_lost_device_is_told_of_the_head_alone_and_ends_the_worker(rig):
    two_in_flight(rig)
    rig.backends[0].end(DeviceLost("sticky"))
    ran = rig.receive()
    assert (ran.batch, ran.statuses) == (1, [DEVICE_LOST])
    assert rig.receive() is None
    assert isinstance(rig.over(), DeviceLost)
    assert str(rig.over()) == LOST
    assert rig.recorded == 1


def test_a_device_that_is_lost_at_the_start_of_the_second_is_told_behind_the_first(rig):
    rig.backends[0].start_errors[2] = DeviceLost("sticky")
    two_in_flight(rig)
    rig.backends[0].end()
    assert rig.receive().statuses == [OK]
    assert rig.receive().statuses == [DEVICE_LOST] * 2
    assert rig.receive() is None
    assert isinstance(rig.over(), DeviceLost)


def test_what_waits_for_room_when_the_device_is_lost_is_never_begun(rig):
    two_in_flight(rig)
    rig.send(3, [4])
    rig.backends[0].end(DeviceLost("sticky"))
    assert rig.receive().batch == 1
    assert rig.receive() is None
    assert isinstance(rig.over(), DeviceLost)
    assert rig.step() == ("finish", [1])
    assert rig.backends[0].steps.empty()


def test_a_defect_in_the_thread_that_answers_ends_the_worker(rig, monkeypatch):
    def broken(ran, control):
        raise ZeroDivisionError

    monkeypatch.setattr(loop, "reply", broken)
    rig.send(1, [1])
    rig.backends[0].end()
    assert rig.receive() is None
    assert isinstance(rig.over(), ZeroDivisionError)


# Ends


def test_a_closed_socket_ends_both_threads_once_what_was_begun_is_done(rig):
    two_in_flight(rig)
    rig.gateway.close()
    rig.backends[0].end()
    rig.backends[0].end()
    assert isinstance(rig.over(), BrokenPipeError)
    assert not [thread for thread in threading.enumerate() if thread.name == "answers"]


def test_a_closed_socket_with_nothing_in_flight_is_a_quiet_end(rig):
    rig.send(1, [1])
    rig.backends[0].end()
    rig.receive()
    rig.gateway.close()
    assert rig.over() is None


@pytest.mark.parametrize(
    ("frame", "kind"), [({"slots": [1], "model": 9}, GatewayBug), (None, WireError), ({"slots": []}, GatewayBug)]
)
def test_what_no_gateway_sends_ends_the_worker_once_what_was_begun_is_answered(rig, frame, kind):
    rig.send(1, [1])
    assert rig.step() == ("start", [1])
    if frame is None:
        rig.gateway.send(b"nonsense")
    else:
        rig.send(2, frame.pop("slots"), **frame)
    rig.backends[0].end()
    assert rig.receive().statuses == [OK]
    assert rig.receive() is None
    assert isinstance(rig.over(), kind)


def test_of_two_causes_the_first_ends_it_and_the_other_is_logged(rig, capfd):
    rig.send(1, [1])
    assert rig.step() == ("start", [1])
    rig.gateway.send(b"nonsense")
    rig.backends[0].end(DeviceLost("sticky"))
    rig.receive()
    over = rig.over()
    log = capfd.readouterr().err
    # Which of them comes first is theirs to settle; neither is lost.
    assert isinstance(over, WireError) == ("answers_ended" in log)
    assert isinstance(over, WireError | DeviceLost)


# Models that do not overlap


def test_a_model_that_does_not_overlap_runs_alone_and_in_order():
    with serving(Held(), Alone()) as rig:
        rig.send(1, [1])
        rig.send(2, [2], model=1)
        rig.send(3, [3])
        assert rig.step(0) == ("start", [1])
        rig.backends[0].end()
        assert rig.receive().batch == 1
        assert rig.step(1) == ("start", [2])
        assert rig.recorded == 2
        assert rig.step(0) == ("finish", [1])
        assert rig.backends[0].steps.empty()
        rig.backends[1].end()
        assert rig.receive().statuses == [OK]
        assert rig.step(0) == ("start", [3])
        rig.backends[0].end()
        assert rig.receive().batch == 3
