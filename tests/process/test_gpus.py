"""Workers on pretend GPUs, under a real gateway: which one each is given, and that killing gives its memory back."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys

import pytest

from tests.support import pretend
from tests.support.commanded import OTHER_COUNT, Askers, commanded, other, rewrite
from tests.support.gateways import (
    CLASS_COUNT,
    ROOT,
    digest,
    environment,
    gateway,
    pixels,
    png,
    runtime_folder,
    wait_until,
    write_model,
)

pytestmark = pytest.mark.slow

MIB = 1 << 20
CONTEXT_SIZE, RESERVED_SIZE, MODEL_SIZE = 300 * MIB, 500 * MIB, 64 * MIB
"""What a process holds that has opened a pretend GPU, what the driver keeps, what a model of these tests takes."""


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def nvml(monkeypatch, tmp_path):
    """Pretend NVML in this process, over the same GPUs as the gateway's."""
    (tmp_path / "gpus").mkdir()
    library = pretend.nvml(monkeypatch, gpus=2, dir=tmp_path / "gpus")
    library.nvmlInit()
    return library


def on_gpu(place, **fake):
    """A model on one seat, which takes memory there."""
    return {"residency": {"devices": [f"cuda:{place}"]}, "fake": {"memory_size": MODEL_SIZE, **fake}}


def used(nvml, place):
    """Bytes in use on a GPU, by NVML."""
    return nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(place)).used


def worker_on(running, device):
    (found,) = [worker for worker in running.tell("workers") if worker["device"] == device]
    return found


def test_every_worker_sees_the_one_gpu_that_it_is_given(root, state, nvml, tmp_path):
    write_model(root, "a", **on_gpu(0))
    write_model(root, "b", **on_gpu(1))
    pretend_gpus = importlib.import_module("pretend_gpus")
    environ = pretend.of_gateway(tmp_path / "gpus", gpus=2)
    with commanded(root, state, environ=environ, devices="cuda:1,cuda:0") as running:
        assert running.predict(png(1), "a").top == digest(pixels(1))
        assert running.predict(png(1), "b").top == digest(pixels(1))
        for place in range(2):
            worker = worker_on(running, f"cuda:{place}")
            assert worker["runs_on"] == "Pretend GPU, 8 GiB"
            assert pretend_gpus.holdings(pretend_gpus.uuid(place)) == {worker["pid"]: CONTEXT_SIZE + MODEL_SIZE}
        locks = {path.name for path in (running.runtime / "penstock").glob("cuda-*.lock")}
        assert locks == {f"cuda-{pretend_gpus.uuid(place)}.lock" for place in range(2)}
        # Seat 0 is the second GPU.
        wait_until(
            lambda: running.metric("penstock_gpu_memory_used_bytes", "0") == used(nvml, 1), "the metrics have seen it"
        )
        assert running.metric("penstock_gpu_memory_bytes", "1") == 8 << 30
        assert running.metric("penstock_gpu_power_watts", "0") == 250
        assert running.metric("penstock_worker_memory_bytes", "0") == CONTEXT_SIZE + MODEL_SIZE


def test_unloading_gives_all_device_memory_back_and_leaves_the_other_gpu_alone(root, state, nvml, tmp_path):
    write_model(root, "a", **on_gpu(0))
    write_model(root, "b", **on_gpu(1))
    environ = pretend.of_gateway(tmp_path / "gpus", gpus=2)
    with commanded(root, state, environ=environ, devices="cuda:0,cuda:1") as running:
        assert used(nvml, 0) == RESERVED_SIZE + CONTEXT_SIZE + MODEL_SIZE
        with Askers(running, model="b") as askers:
            askers.wait_more()
            ended = running.done("unload", "a")
            askers.wait_more()
        askers.assert_all_ok(CLASS_COUNT)
        assert ended["result"]["given_back_share"] == 1.0
        (gone,) = ended["result"]["workers"]
        assert gone["before"]["device_memory_size"] == CONTEXT_SIZE + MODEL_SIZE
        assert gone["after"]["device_memory_size"] == 0
        assert used(nvml, 0) == RESERVED_SIZE
        assert used(nvml, 1) == RESERVED_SIZE + CONTEXT_SIZE + MODEL_SIZE


def test_a_killed_worker_leaves_nothing_and_is_followed_and_the_other_gpu_serves_on(root, state, nvml, tmp_path):
    write_model(root, "a", **on_gpu(0))
    write_model(root, "b", **on_gpu(1))
    environ = pretend.of_gateway(tmp_path / "gpus", gpus=2)
    with commanded(root, state, environ=environ, devices="cuda:0,cuda:1") as running:
        killed, spared = worker_on(running, "cuda:0"), worker_on(running, "cuda:1")
        with Askers(running, model="b") as askers:
            askers.wait_more()
            os.kill(killed["pid"], signal.SIGKILL)
            running.wait_event("child_died", pid=killed["pid"])
            wait_until(lambda: worker_on(running, "cuda:0")["state"] == "ready", "it is followed")
            askers.wait_more()
        askers.assert_all_ok(CLASS_COUNT)
        after = worker_on(running, "cuda:0")
        assert after["pid"] != killed["pid"]
        assert worker_on(running, "cuda:1")["pid"] == spared["pid"]
        assert used(nvml, 0) == RESERVED_SIZE + CONTEXT_SIZE + MODEL_SIZE, "its own, and nothing of the dead one's"
        assert running.predict(png(1), "a").top == digest(pixels(1))


@pytest.mark.parametrize("overlap", ["auto", "never"])
def test_where_nvml_names_other_pids_the_gpu_before_and_after_is_the_proof(root, state, nvml, tmp_path, overlap):
    write_model(root, "a", **on_gpu(0))
    environ = pretend.of_gateway(tmp_path / "gpus", gpus=2, hidden=1)
    with commanded(root, state, environ=environ, devices="cuda:0,cuda:1", overlap=overlap) as running:
        rewrite(root, "a", residency={"devices": ["cuda:0"]}, **other(memory_size=2 * MODEL_SIZE))
        ended = running.done("reload", "a")
        assert running.predict(png(1), "a").top == digest(pixels(1), OTHER_COUNT)
        (gone,) = ended["result"]["workers"]
        assert gone["before"]["device_memory_size"] == CONTEXT_SIZE + MODEL_SIZE
        assert (gone["after"]["device_memory_size"], ended["result"]["given_back_share"]) == (0, 1.0)
        assert running.metric("penstock_worker_memory_bytes", "0") == CONTEXT_SIZE + 2 * MODEL_SIZE
        ended = running.done("unload", "a")
        assert ended["result"]["workers"][0]["before"]["device_memory_size"] == CONTEXT_SIZE + 2 * MODEL_SIZE
        assert ended["result"]["given_back_share"] == 1.0
        assert used(nvml, 0) == RESERVED_SIZE


def test_memory_that_stays_where_nvml_names_nobody_is_told(root, state, nvml, tmp_path):
    write_model(root, "a", **on_gpu(0, base_ms=2000.0))
    environ = pretend.of_gateway(tmp_path / "gpus", gpus=2, hidden=1)
    pretend_gpus = importlib.import_module("pretend_gpus")
    with commanded(root, state, environ=environ, devices="cuda:0,cuda:1") as running:
        asked = running.begin(png(1), "a")
        wait_until(lambda: running.slots("a/1").get("running"), "the worker has something to finish")
        begun = running.tell("unload", "a")
        wait_until(lambda: running.tell("operation", begun["id"])["stage"] == "unloading", "it is to go")
        # What a driver would keep of it: somebody else holds half as much.
        (tmp_path / "gpus" / str(os.getpid())).write_text(f"{200 * MIB} {pretend_gpus.uuid(0)}")
        assert asked.read_answer().status == 200
        ended = running.tell("wait", begun["id"])
        assert ended["error"]["code"] == "memory_not_given_back"
        assert "somebody on the GPU (209715200 bytes; NVML does not say who)" in ended["error"]["detail"]


@pytest.mark.parametrize(
    ("told", "devices", "mask", "words"),
    [
        ({"gpus": 2}, "cuda:2", None, "cuda:2 is not there"),
        ({"gpus": 2}, "cuda:0,cuda:GPU-00000000", None, "names one twice"),
        ({"gpus": "mig"}, "cuda:0", None, "name one of its slices: cuda:MIG-00000000-5555"),
        ({"gpus": 2}, "cuda:1", "1", "CUDA_VISIBLE_DEVICES=1"),
    ],
)
def test_a_device_that_cannot_be_had_is_refused_before_anything_is_started(root, tmp_path, told, devices, mask, words):
    write_model(root)
    environ = pretend.of_gateway(tmp_path / "gpus", **told) | ({} if mask is None else {"CUDA_VISIBLE_DEVICES": mask})
    with runtime_folder() as runtime:
        command = [sys.executable, "-m", "gateway", "serve", "--models", str(root), "--port", "0"]
        whole = environment(runtime, devices=devices) | environ
        ended = subprocess.run(command, cwd=ROOT, env=whole, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert words in " ".join(ended.stderr.split())


def test_a_slice_serves_by_its_name_and_its_lock_keeps_others_away(root, tmp_path):
    write_model(root, fake={"memory_size": MODEL_SIZE})
    environ = pretend.of_gateway(tmp_path / "gpus", gpus="mig")
    with runtime_folder() as runtime:
        one = gateway(root, runtime=runtime, environ=environ, devices="cuda:MIG-00000001")
        with one as running:
            (version,) = running.ask("GET", "/models/m").document["versions"]
            assert (version["workers"][0]["device"], version["workers"][0]["runs_on"]) == (
                "cuda:MIG-00000001",
                "Pretend GPU, 4 GiB",
            )
            command = [sys.executable, "-m", "gateway", "serve", "--models", str(root), "--port", "0"]
            # The same slice, by another name.
            whole = environment(runtime, devices="cuda:MIG-00000001-5555-6666-7777-888888888888") | environ
            second = subprocess.run(
                command, cwd=ROOT, env=whole, capture_output=True, text=True, timeout=60, check=False
            )
            assert "is in use by another gateway" in " ".join(second.stderr.split())
            assert running.predict(png(1)).top == digest(pixels(1))


def test_without_nvml_there_is_one_line_in_the_log(root, tmp_path):
    write_model(root)
    with gateway(root, devices="cuda:0") as running:
        (line,) = running.events("no_nvml")
        assert line["devices"] == ["cuda:0"]
        assert running.predict(png(1)).top == digest(pixels(1))
        assert not [key for key in running.metrics() if key[0].startswith("penstock_gpu_")]
