"""A real worker with two batches at a time on the pretend card: what it does, and what can be known of its death."""

import contextlib
import signal
import zlib

import numpy as np
import pytest

from shm.recorder import Recorder
from shm.wire import ItemStatus, Loaded, Ran
from tests.support import pretend
from tests.support.gateways import wait_until
from tests.support.worker_process import LATE, OK, fake, spawning

pytestmark = pytest.mark.slow

MEET = [9, 9, 9]
"""The first pixel of an image that is computed until the next batch is on the card."""


@pytest.fixture
def spawn(tmp_path):
    with spawning() as start:

        def on_card(*models, engine="1", **how):
            environment = pretend.environment(
                tmp_path, PENSTOCK_PRETEND_ENGINE=engine, PENSTOCK_PRETEND_MEET=",".join(map(str, MEET))
            )
            worker = start(*models, device="cuda:0", environment=environment, **how)
            for number, pixels in enumerate(worker.models[0].pixels):
                pixels[:] = np.random.default_rng(number).integers(10, 256, pixels.shape, np.uint8)
            return worker

        yield on_card


def answers(worker, said):
    """The classes that the worker wrote into its slots."""
    (loaded,) = [message for message in said if isinstance(message, Loaded)]
    return worker.models[0].outputs(loaded)["index"][:, 0]


def right(worker, slot):
    return zlib.crc32(worker.models[0].pixels[slot].tobytes()) % 1000


def test_the_second_batch_is_on_the_card_before_the_first_is_done(spawn):
    worker = spawn(fake(digest=True))
    said = worker.born()
    worker.models[0].pixels[0, 0, 0] = MEET
    worker.send([0], batch=1)
    worker.send([1, 2], batch=2)
    first, second = worker.receive(), worker.receive()
    assert [first.batch, first.statuses, second.batch, second.statuses] == [1, [OK], 2, [OK, OK]]
    assert min(first.compute_ns, second.compute_ns) > 0
    assert first.compute_ns <= first.run_ns
    assert answers(worker, said)[:3].tolist() == [right(worker, slot) for slot in range(3)]
    assert worker.end()[0] == 0


def test_many_batches_in_a_row_are_right_and_in_order(spawn):
    worker = spawn(fake(digest=True, base_ms=1))
    said = worker.born()
    found = answers(worker, said)
    expected = [right(worker, slot) for slot in range(8)]
    worker.send([0, 1, 2], batch=1, size=4)
    worker.send([3], batch=2)
    for batch in range(3, 60):
        assert worker.receive().batch == batch - 2
        slots = [batch % 8, (batch + 1) % 8] if batch % 3 else [batch % 8]
        worker.send(slots, batch=batch)
    assert [worker.receive().batch, worker.receive().batch] == [58, 59]
    assert found.tolist() == expected


def test_a_worker_whose_engine_does_not_overlap_has_the_plain_loop(spawn):
    worker = spawn(fake(digest=True), engine="alone")
    worker.born()
    worker.models[0].pixels[0, 0, 0] = MEET
    worker.send([0], batch=1)
    worker.send([1], batch=2)
    # Nobody starts the second, which the first waits for.
    worker.control.settimeout(0.5)
    with pytest.raises(TimeoutError):
        worker.receive()


def test_a_kill_with_two_in_flight_names_the_head(spawn):
    worker = spawn(fake(spin_pixel=[7, 7, 7]))
    worker.born()
    worker.models[0].pixels[0] = 7
    worker.send([0], batch=40)
    worker.send([1], batch=41)
    wait_until(lambda: Recorder(worker.recorder).last() == 40, "the batch begun")
    worker.child.kill()
    assert worker.receive() is None
    assert worker.child.wait(30) == -signal.SIGKILL
    assert Recorder(worker.recorder).last() == 40


@pytest.mark.parametrize("point", ["before_gather", "before_run"])
def test_a_death_in_the_start_of_the_second_comes_before_the_first_is_answered(spawn, point):
    """The first never ends, so nobody waited for it."""
    worker = spawn(fake(spin_pixel=[7, 7, 7]), armed=f"worker.{point}=crash@2")
    worker.born()
    worker.models[0].pixels[0] = 7
    worker.send([0], batch=40)
    worker.send([1], batch=41)
    assert worker.receive() is None
    assert worker.child.wait(30) == -signal.SIGSEGV
    assert Recorder(worker.recorder).last() == 40


@pytest.mark.parametrize(("pixel", "cause"), [("crash_pixel", signal.SIGSEGV), ("kill_pixel", signal.SIGKILL)])
def test_a_death_in_the_second_names_the_second(spawn, pixel, cause):
    worker = spawn(fake(**{pixel: [7, 7, 7]}))
    worker.born()
    worker.models[0].pixels[1] = 7
    worker.send([0], batch=40)
    assert worker.receive().statuses == [OK]
    wait_until(lambda: Recorder(worker.recorder).last() == 0, "nothing recorded")
    worker.send([1], batch=41)
    worker.send([2], batch=42)
    assert worker.receive() is None
    assert worker.child.wait(30) == -cause
    assert Recorder(worker.recorder).last() == 41


def test_a_lost_device_is_told_of_the_head_and_the_batch_behind_it_is_not_answered(spawn):
    worker = spawn(fake(lost_pixel=[7, 7, 7]))
    worker.born()
    worker.models[0].pixels[1] = 7
    worker.send([1, 2], batch=7)
    worker.send([0], batch=8)
    ran = worker.receive()
    assert (ran.batch, ran.statuses) == (7, [ItemStatus.DEVICE_LOST] * 2)
    assert worker.receive() is None
    assert worker.child.wait(30) == 75
    assert Recorder(worker.recorder).last() == 7
    _, log = worker.end()
    assert [line["event"] for line in log if line["level"] == "error"][-1] == "device_lost"


@pytest.mark.parametrize(
    ("armed", "code", "answered", "blamed"),
    [
        ("worker.before_gather=crash@2", -signal.SIGSEGV, {0, 1}, {1, 2}),
        ("worker.before_run=exit:9@1", 9, {0}, {1}),
        ("worker.after_run=kill@2", -signal.SIGKILL, {1}, {2}),
        ("worker.before_reply=error@2", 70, {1}, {2}),
        ("worker.after_reply=crash@2", -signal.SIGSEGV, {2}, {2}),
    ],
)
def test_failpoints_are_where_their_names_say(spawn, armed, code, answered, blamed):
    worker = spawn(fake(), armed=armed)
    for batch in range(1, 4):
        with contextlib.suppress(BrokenPipeError):
            worker.send([0], batch=batch)
    ran = []
    while (message := worker.receive()) is not None:
        ran += [message] if isinstance(message, Ran) else []
    assert worker.child.wait(30) == code
    assert len(ran) in answered
    assert Recorder(worker.recorder).last() in blamed


def test_a_closed_socket_ends_it_with_batches_in_flight(spawn):
    worker = spawn(fake(base_ms=20))
    worker.born()
    worker.send([0], batch=1)
    worker.send([1], batch=2)
    code, log = worker.end()
    assert code == 0
    assert [line for line in log if line["level"] == "error"] == []


def test_a_gateways_defect_ends_it_with_a_line(spawn):
    worker = spawn(fake())
    worker.born()
    worker.control.send(b"nonsense")
    assert worker.receive() is None
    assert worker.child.wait(30) == 76


def test_a_late_batch_is_answered_in_its_turn(spawn):
    worker = spawn(fake(base_ms=20))
    worker.born()
    worker.send([0], batch=1)
    worker.send([1], batch=2, latest=1)
    worker.send([2], batch=3)
    assert [worker.receive().statuses for _ in range(3)] == [[OK], [LATE], [OK]]
