"""A real worker that crashes, hangs, is interrupted, or loses memory or device: what the gateway can know of it."""

import contextlib
import os
import re
import resource
import signal
from pathlib import Path

import pytest

from gpuworker.__main__ import OOM_POINTS
from shm.recorder import Recorder
from shm.wire import ItemStatus, Loaded, LoadFailed, Loading, Ran
from tests.support import graphs
from tests.support.gateways import wait_until
from tests.support.worker_process import FAILED, OK, fake, spawning


@pytest.fixture
def spawn():
    with spawning() as start:
        yield start


@pytest.mark.slow
@pytest.mark.parametrize(("pixel", "cause"), [("crash_pixel", signal.SIGSEGV), ("kill_pixel", signal.SIGKILL)])
def test_death_in_a_batch_names_the_batch(spawn, pixel, cause):
    worker = spawn(fake(**{pixel: [9, 9, 9]}))
    worker.born()
    assert worker.run([0], batch=40).statuses == [OK]
    worker.models[0].pixels[1] = 9
    worker.send([0, 1], batch=41)
    assert worker.receive() is None
    assert worker.child.wait(30) == -cause
    assert Recorder(worker.recorder).last() == 41


@pytest.mark.slow
def test_a_crash_leaves_no_core_and_its_worker_goes_before_the_gateway(spawn):
    own = int(Path("/proc/self/oom_score_adj").read_text())
    worker = spawn(fake())
    worker.born()
    assert resource.prlimit(worker.child.pid, resource.RLIMIT_CORE) == (0, 0)
    assert int(Path(f"/proc/{worker.child.pid}/oom_score_adj").read_text()) == min(own + OOM_POINTS, 1000)


def took_the_signal(worker):
    """Whether SIGUSR1 is no longer pending, and every thread sleeps: who took it is done with it."""
    folder = Path(f"/proc/{worker.child.pid}")
    pending = re.search(r"ShdPnd:\s*(\w+)", (folder / "status").read_text())[1]
    if int(pending, 16) & 1 << (signal.SIGUSR1 - 1):
        return False
    states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in (folder / "task").iterdir()]
    return set(states) == {"S"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnxruntime", "fake"])
def test_the_signal_ends_the_batch_that_runs_and_no_other(spawn, tmp_path, kind):
    if kind == "fake":
        worker = spawn(fake(spin_pixel=[255, 255, 255]))
    else:
        worker = spawn((graphs.contract(), graphs.save(graphs.endless(), tmp_path)))
    worker.born()
    worker.models[0].pixels[1] = 255
    for number in range(1, 4):
        # Between batches: nothing is ended, now or later.
        worker.child.send_signal(signal.SIGUSR1)
        wait_until(lambda: took_the_signal(worker), "the signal taken")
        assert worker.run([0], batch=number * 10).statuses == [OK]
        worker.send([1], batch=number * 10 + 1)
        worker.send([0], batch=number * 10 + 2)
        wait_until(lambda number=number: Recorder(worker.recorder).last() == number * 10 + 1, "the batch begun")
        # A batch that has just begun is not the one that is meant, so the first signals end nothing.
        worker.control.settimeout(0.05)
        ran = None
        for _ in range(200):
            worker.child.send_signal(signal.SIGUSR1)
            with contextlib.suppress(TimeoutError):
                ran = worker.receive()
                break
        worker.control.settimeout(30)
        assert ran.batch == number * 10 + 1
        assert ran.statuses == [ItemStatus.INTERRUPTED]
        assert worker.receive().statuses == [OK]
    code, log = worker.end()
    assert code == 0
    assert [line["event"] for line in log] == ["batch_failed"] * 3


@pytest.mark.slow
def test_a_lost_device_is_told_and_then_the_worker_ends(spawn):
    worker = spawn(fake(lost_pixel=[9, 9, 9]))
    worker.born()
    worker.models[0].pixels[1] = 9
    worker.send([0, 1], batch=7)
    worker.send([0], batch=8)
    assert worker.receive().statuses == [ItemStatus.DEVICE_LOST] * 2
    assert worker.receive() is None
    assert worker.child.wait(30) == 75
    _, log = worker.end()
    assert [line["event"] for line in log] == ["batch_failed", "device_lost"]
    assert log[1]["detail"] == "sticky device error: the worker's device failed"


@pytest.mark.slow
def test_a_load_that_does_not_fit_is_refused_and_one_that_crashes_dies(spawn):
    worker = spawn(fake(load='"no_memory"'), fake(memory_size=64 << 20))
    said = worker.born()
    assert [message.detail for message in said if isinstance(message, LoadFailed)] == [
        "there is not enough memory for this model; make the largest of batching.sizes smaller"
    ]
    (loaded,) = [message for message in said if isinstance(message, Loaded)]
    assert 60 << 20 < loaded.memory_size < 80 << 20
    assert worker.run([0], model=1).statuses == [OK]

    dying = spawn(fake(load='"crash"'))
    assert [type(message) for message in dying.born()] == [Loading, type(None)]
    assert dying.child.wait(30) == -signal.SIGSEGV


@pytest.mark.slow
@pytest.mark.parametrize(
    ("armed", "code", "answers", "blamed"),
    [
        ("worker.after_inherit=exit:9", 9, 0, 0),
        ("worker.before_load=crash", -signal.SIGSEGV, 0, 0),
        ("worker.after_session=crash", -signal.SIGSEGV, 0, 0),
        ("worker.before_ready=kill", -signal.SIGKILL, 0, 0),
        ("worker.before_gather=crash@2", -signal.SIGSEGV, 1, 2),
        ("worker.before_run=exit:9@2", 9, 1, 2),
        ("worker.after_run=kill@2", -signal.SIGKILL, 1, 2),
        ("worker.before_reply=error@2", 70, 1, 2),
        ("worker.after_reply=crash@2", -signal.SIGSEGV, 2, 2),
    ],
)
def test_failpoints_are_where_their_names_say(spawn, armed, code, answers, blamed):
    worker = spawn(fake(), armed=armed)
    for batch in range(1, 4):
        with contextlib.suppress(BrokenPipeError):
            worker.send([0], batch=batch)
    ran = []
    while (message := worker.receive()) is not None:
        ran += [message] if isinstance(message, Ran) else []
    assert worker.child.wait(30) == code
    assert len(ran) == answers
    assert Recorder(worker.recorder).last() == blamed


@pytest.mark.slow
def test_an_error_at_a_failpoint_is_an_engines(spawn):
    worker = spawn(fake(), armed="worker.before_gather=error@1,worker.before_run=error@2,worker.after_run=delay:1@1")
    worker.born()
    # The first batch fails before before_run is passed, so its second pass is the third batch's.
    assert [worker.run([0], batch=batch).statuses for batch in range(1, 5)] == [[FAILED], [OK], [FAILED], [OK]]


@pytest.mark.slow
def test_a_hang_is_a_stopped_process_that_can_still_be_killed(spawn):
    worker = spawn(fake(hang_pixel=[9, 9, 9]))
    worker.born()
    worker.models[0].pixels[0] = 9
    worker.send([0], batch=3)
    _, status = os.waitpid(worker.child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert Recorder(worker.recorder).last() == 3
    worker.child.kill()
    assert worker.receive() is None
    assert worker.child.wait(30) == -signal.SIGKILL
