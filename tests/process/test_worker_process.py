"""The real worker process with a real heritage: what it says at its birth, how it answers, and how it ends."""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from gpuworker.__main__ import OOM_POINTS
from shm import failpoints, layout, views, wire
from shm.heritage import Grant, Heritage, ModelGrant
from shm.recorder import Recorder
from shm.segment import Segment
from shm.wire import ItemStatus, Loaded, LoadFailed, Loading, Ran, Run, WorkerReady
from tests.support import graphs
from tests.support.gateways import wait_until

ROOT = Path(__file__).resolve().parents[2]
SLOTS = 8
NEVER_LATE = 1 << 62
OK, FAILED, LATE = ItemStatus.OK, ItemStatus.FAILED, ItemStatus.LATE


class Served:
    """One model of the harness: its slots as arrays, and what the worker said about it."""

    def __init__(self, index, contract, directory):
        self.index, self.contract = index, contract
        size = contract.output.size_max
        if contract.output.task == "classification":
            size = contract.output.top_k_max * 8 + layout.SLOT_ALIGN
        self.input = Segment.create("test-in", layout.stride(int(np.prod(contract.input.shape))) * SLOTS)
        self.output = Segment.create("test-out", layout.stride(size) * SLOTS)
        self.readonly = self.input.readonly_fd()
        self.pixels = views.pixel_rows(self.input.map, contract.input.shape, SLOTS)
        self._slot_size = layout.stride(size)
        self.grant = ModelGrant(
            index=index,
            name=f"model{index}",
            version=1,
            directory=str(directory),
            contract=msgspec.json.encode(contract).decode(),
            slot_count=SLOTS,
            input=Grant(self.readonly, self.input.size, writable=False),
            output=Grant(self.output.fd, self.output.size, writable=True),
        )

    def outputs(self, loaded):
        return views.slot_arrays(self.output.map, loaded.fields, slot_size=self._slot_size, slot_count=SLOTS)


class Worker:
    """A child, its socket and its segments, all of it gone at the end of the test."""

    def __init__(self, models, *, device="cpu", armed=""):
        self.models = models
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(30)
        self.recorder = Segment.create("test-recorder", layout.RECORDER_SIZE)
        heritage = Heritage(
            parent=os.getpid(),
            socket_fd=theirs.fileno(),
            recorder=Grant(self.recorder.fd, self.recorder.size, writable=True),
            models=[model.grant for model in models],
            device=device,
        )
        fd = heritage.bequeath()
        self.child = subprocess.Popen(
            [sys.executable, "-m", "gpuworker", str(fd)],
            pass_fds=(fd, *heritage.fds()),
            cwd=ROOT,
            stderr=subprocess.PIPE,
            env={**os.environ, failpoints.VARIABLE: armed},
        )
        os.close(fd)
        theirs.close()

    def receive(self):
        try:
            frame = self.control.recv(wire.FRAME_SIZE_MAX)
        except ConnectionResetError:  # it died with frames of ours unread, which is said once, before its last words
            frame = self.control.recv(wire.FRAME_SIZE_MAX)
        return wire.read_from_worker(frame) if frame else None

    def born(self):
        """Everything up to and with WorkerReady."""
        said = [self.receive()]
        while not isinstance(said[-1], WorkerReady | None):
            said.append(self.receive())
        return said

    def send(self, slots, *, model=0, size=None, top_k=1, latest=NEVER_LATE, batch=1):
        self.control.send(wire.encode(Run(batch, model, size or len(slots), slots, top_k, latest)))

    def run(self, slots, **how):
        self.send(slots, **how)
        return self.receive()

    def end(self):
        """Close the socket; return the exit code and what was logged."""
        self.control.close()
        _, log = self.child.communicate(timeout=30)
        return self.child.returncode, [json.loads(line) for line in log.splitlines()]

    def close(self):
        self.child.kill()
        self.child.communicate()
        self.control.close()
        self.recorder.close()
        for model in self.models:
            os.close(model.readonly)
            model.input.close()
            model.output.close()


@pytest.fixture
def spawn():
    with contextlib.ExitStack() as stack:

        def start(*models, **how):
            served = [Served(index, contract, directory) for index, (contract, directory) in enumerate(models)]
            worker = Worker(served, **how)
            stack.callback(worker.close)
            return worker

        yield start


def fake(**settings):
    lines = "\n".join(f"{name} = {str(value).lower()}" for name, value in settings.items())
    return graphs.contract('backend = "fake"', fake=lines), "/nonexistent"


@pytest.mark.slow
def test_a_good_life_with_several_models(spawn, tmp_path):
    raw = graphs.contract(task="raw", input="scale = 0.5")
    worker = spawn(
        (graphs.contract(), graphs.save(graphs.means(), tmp_path / "a")),
        fake(digest=True),
        (raw, graphs.save(graphs.echo(["N", 3, 4, 4]), tmp_path / "c")),
    )
    said = worker.born()
    loaded = {message.model: message for message in said if isinstance(message, Loaded)}
    assert [loaded[model].provider for model in range(3)] == ["CPUExecutionProvider", "fake", "CPUExecutionProvider"]
    assert [[point.size for point in loaded[model].profile] for model in range(3)] == [[1, 2, 4]] * 3
    assert all(0 < point.p50_ns <= point.p99_ns for message in loaded.values() for point in message.profile)
    assert loaded[0].fields == [layout.Field("index", "uint32", (3,)), layout.Field("probability", "float32", (3,))]
    assert all(message.load_ns > 0 for message in loaded.values())
    stages = [message.stage for message in said if isinstance(message, Loading) and message.model == 0]
    assert stages == ["session", *["warmup"] * 3, *["profile"] * 3]
    assert said[-1].device.endswith("1 thread")
    assert said[-1].rss_size > said[-1].memory_size > 10_000_000
    assert said[-1].memory_size > sum(message.memory_size for message in loaded.values()) > 0

    first, second, third = worker.models
    rng = np.random.default_rng(5)
    for number in range(1, 4):
        for model in worker.models:
            model.pixels[:] = rng.integers(0, 256, model.pixels.shape, np.uint8)
        for index in range(3):
            worker.send([6, 1, 3], size=4, model=index, top_k=3, batch=number * 10 + index)
        replies = [worker.receive() for _ in range(3)]
        assert [reply.batch for reply in replies] == [number * 10 + index for index in range(3)]
        assert all(reply.statuses == [OK] * 3 for reply in replies)
        for slot in (6, 1, 3):
            means = first.pixels[slot].astype(np.float32).mean(axis=(0, 1))
            assert first.outputs(loaded[0])["index"][slot].tolist() == np.argsort(-means, kind="stable").tolist()
            digest = zlib.crc32(second.pixels[slot].tobytes()) % 1000
            assert second.outputs(loaded[1])["index"][slot, 0] == digest
            expected = third.pixels[slot].transpose(2, 0, 1) * np.float32(0.5)
            assert (third.outputs(loaded[2])["y"][slot] == expected).all()
    assert worker.end() == (0, [])


@pytest.mark.slow
def test_a_bad_model_is_refused_and_the_good_one_serves(spawn, tmp_path):
    good = (graphs.contract(), graphs.save(graphs.means(), tmp_path / "good"))
    bad = (graphs.contract(), graphs.save(graphs.means(batch=1), tmp_path / "bad"))
    worker = spawn(bad, good, (graphs.contract('backend = "tensorrt"'), tmp_path))
    said = worker.born()
    failed = {message.model: message.detail for message in said if isinstance(message, LoadFailed)}
    assert sorted(failed) == [0, 2]
    assert "set batching.sizes = [1]" in failed[0]
    assert "tensorrt" in failed[2]
    assert [message.model for message in said if isinstance(message, Loaded)] == [1]
    assert worker.run([0], model=1).statuses == [OK]


@pytest.mark.slow
def test_a_gpu_that_cannot_be_used_yet_is_refused_by_name(spawn, tmp_path):
    worker = spawn((graphs.contract(), graphs.save(graphs.means(), tmp_path)), device="cuda:0")
    said = worker.born()
    assert [type(message) for message in said] == [LoadFailed, WorkerReady]
    assert "the worker is for cuda:0" in said[0].detail


@pytest.mark.slow
def test_late_failed_and_gone(spawn, tmp_path):
    bounded = (graphs.contract(), graphs.save(graphs.bounded(100), tmp_path))
    worker = spawn(bounded, fake(fail_pixel=[1, 2, 3]))
    worker.born()
    first, second = worker.models

    assert worker.run([0, 1], latest=time.monotonic_ns() - 1, batch=7) == Ran(7, [LATE] * 2, 0, 0, 0)

    first.pixels[0] = 200
    failed = worker.run([0, 1], batch=8)
    assert failed.statuses == [FAILED] * 2
    assert failed.detail == "the model failed on the batch that this image was in"
    assert worker.run([1, 2], batch=9).statuses == [OK] * 2

    second.pixels[4, 0, 0] = 1, 2, 3
    mixed = worker.run([3, 4, 5], model=1, size=4, batch=10)
    assert mixed.statuses == [OK, FAILED, OK]

    code, log = worker.end()
    assert code == 0
    assert [(line["event"], line["batch"]) for line in log] == [("batch_failed", 8)]
    assert "Traceback" in log[0]["traceback"]


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


@pytest.mark.slow
def test_it_is_the_gateway_that_says_when_to_stop(spawn):
    worker = spawn(fake())
    worker.born()
    worker.child.send_signal(signal.SIGINT)
    worker.child.send_signal(signal.SIGTERM)
    assert worker.run([0], batch=2).statuses == [OK]
    assert worker.end() == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"\xc1 no frame", "malformed"),
        (wire.encode(Run(1, 9, 1, [0], 1, NEVER_LATE)), "model 9 is not loaded here"),
        (wire.encode(Run(1, 0, 3, [0], 1, NEVER_LATE)), "model0 was never warmed at size 3"),
        (wire.encode(Run(0, 0, 1, [0], 1, NEVER_LATE)), "batch 0 has no place in the recorder"),
    ],
)
def test_a_broken_gateway_is_left_with_a_line_that_says_why(spawn, frame, words):
    worker = spawn(fake())
    worker.born()
    worker.control.send(frame)
    assert worker.receive() is None
    code, log = worker.end()
    assert code == 76
    assert log[0]["event"] == "gateway_defect"
    assert words in log[0]["detail"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["x"], ["999"]])
def test_started_by_hand_it_says_so(arguments):
    child = subprocess.run(
        [sys.executable, "-m", "gpuworker", *arguments], cwd=ROOT, capture_output=True, check=False, timeout=30
    )
    assert child.returncode == 64
    assert "a worker is started by the gateway" in json.loads(child.stderr)["detail"]


@pytest.mark.slow
def test_nothing_is_written_to_the_users_home(spawn, tmp_path, monkeypatch):
    home, model = tmp_path / "home", tmp_path / "model"
    home.mkdir()
    model.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)

    spawn((graphs.contract(), graphs.save(graphs.means(), model))).born()

    assert list(home.rglob("*")) == []


def test_nothing_heavy_is_imported_for_a_fake(spawn):
    worker = spawn(fake())
    worker.born()
    maps = Path(f"/proc/{worker.child.pid}/maps").read_text()
    assert "onnx" not in maps
    environment = Path(f"/proc/{worker.child.pid}/environ").read_bytes()
    assert b"OMP_NUM_THREADS" not in environment  # set by the worker itself, for itself
