"""The real worker process with a real heritage: what it says at its birth, how it answers, and how it ends."""

import json
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from shm import layout, wire
from shm.wire import Loaded, LoadFailed, Loading, Ran, Run, WorkerReady
from tests.support import graphs
from tests.support.worker_process import FAILED, LATE, NEVER_LATE, OK, ROOT, fake, spawning


@pytest.fixture
def spawn():
    with spawning() as start:
        yield start


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
def test_a_gpu_that_cannot_be_used_is_refused_by_name(spawn, tmp_path):
    worker = spawn((graphs.contract(), graphs.save(graphs.means(), tmp_path)), device="cuda:0")
    said = worker.born()
    assert [type(message) for message in said] == [LoadFailed, WorkerReady]
    assert "penstock doctor" in said[0].detail


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
