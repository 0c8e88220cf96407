"""Real workers and real builders on a pretend card: who builds, who waits, and what is left when somebody is killed."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from shm.heritage import DeviceGrant
from shm.wire import Loaded, LoadFailed, Loading, WorkerReady
from tests.support import graphs, pretend, processes
from tests.support.gateways import wait_until
from tests.support.worker_process import OK, ROOT, fake, spawning

pytestmark = pytest.mark.slow


@pytest.fixture
def spawn():
    with spawning() as start:
        yield start


class Site:
    """A pretend machine: its folders, and a gate that builds wait at if it is there."""

    def __init__(self, folder):
        self.engines, self.builds, self.gate = folder / "engines", folder / "builds", folder / "gate"
        self.model = graphs.save(graphs.means(), folder / "m")
        self.held = folder / "held"
        self.builds.mkdir()
        self.held.mkdir()

    def worker(self, spawn, *models, gated=False, kept=True):
        settings = {"PENSTOCK_PRETEND_BUILDS": str(self.builds)}
        if gated:
            if not self.gate.exists():
                os.mkfifo(self.gate)
            settings["PENSTOCK_PRETEND_BUILD_GATE"] = str(self.gate)
        contract = graphs.contract('backend = "tensorrt"', input="scale = 0.5")
        return spawn(
            (contract, self.model),
            *models,
            device="cuda:0",
            environment=pretend.environment(self.held, **settings),
            device_grant=DeviceGrant(engine_dir=str(self.engines) if kept else "", engines_size_max=1 << 30),
        )

    def builder(self):
        """The pid of the one builder that has come to the gate."""
        (file,) = wait_until(lambda: list(self.builds.iterdir()), "a builder at work")
        return int(file.name)

    def open_gate(self):
        with self.gate.open("wb"):
            pass


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def stages(said):
    return [message.stage for message in said if isinstance(message, Loading) and message.model == 0]


def assert_right(worker, said):
    loaded = next(message for message in said if isinstance(message, Loaded))
    model = worker.models[0]
    model.pixels[:] = np.random.default_rng(5).integers(0, 256, model.pixels.shape, np.uint8)
    for slots in ([3], [6, 1], [0, 5, 2], [7, 6, 5, 4]):
        size = next(size for size in (1, 2, 4) if size >= len(slots))
        reply = worker.run(slots, size=size, top_k=3)
        assert reply.statuses == [OK] * len(slots)
        for slot in slots:
            means = model.pixels[slot].astype(np.float32).mean(axis=(0, 1)) * 0.5
            found = model.outputs(loaded)
            assert found["index"][slot].tolist() == np.argsort(-means, kind="stable").tolist()
            np.testing.assert_allclose(found["probability"][slot], np.sort(means)[::-1], rtol=1e-5)


def test_a_worker_builds_says_so_and_serves_and_the_next_one_only_serves(spawn, site):
    first = site.worker(spawn)
    said = first.born()
    assert set(stages(said)) == {"building", "engine", "warmup", "profile"}
    assert stages(said).index("engine") > stages(said).index("building")
    assert next(message for message in said if isinstance(message, Loaded)).provider.startswith("TensorRT 10.13")
    assert said[-1].device == "Pretend GPU, 8 GiB"
    assert_right(first, said)
    assert site.builder() != first.child.pid
    code, log = first.end()
    assert code == 0
    assert [line["event"] for line in log if line["level"] != "info"] == []

    second = site.worker(spawn)
    said = second.born()
    assert "building" not in stages(said)
    assert_right(second, said)
    assert len(list(site.builds.iterdir())) == 1


def test_a_worker_says_that_it_lives_while_a_build_takes_its_time(spawn, site):
    worker = site.worker(spawn, gated=True)
    site.builder()
    said = [worker.receive() for _ in range(5)]
    assert {message.stage for message in said} == {"building"}
    shares = [message.share for message in said]
    assert shares == sorted(shares)
    assert 0 < shares[-1] < 1  # the monitor had come to say something before the gate
    site.open_gate()
    said += worker.born()
    assert_right(worker, said)


def test_a_builder_that_is_killed_is_a_refusal_and_not_a_dead_worker(spawn, site):
    worker = site.worker(spawn, fake(), gated=True)
    os.kill(site.builder(), signal.SIGKILL)
    said = worker.born()
    failed = next(message for message in said if isinstance(message, LoadFailed))
    assert failed.model == 0
    assert failed.detail.startswith(
        "the process that built the engine was killed by SIGKILL; the kernel does that when"
    )
    assert any(isinstance(message, Loaded) and message.model == 1 for message in said)
    assert isinstance(said[-1], WorkerReady)
    assert worker.run([1], model=1).statuses == [OK]
    assert not list(site.engines.glob("*.plan"))


def test_a_worker_that_is_killed_takes_its_builder_with_it(spawn, site):
    worker = site.worker(spawn, gated=True)
    fds = processes.watch([site.builder()])
    worker.child.kill()
    processes.assert_gone_within(fds, 30)
    assert not list(site.engines.glob("*.plan"))
    # What it left behind is in nobody's way.
    (site.builds / next(site.builds.iterdir()).name).unlink()
    heir = site.worker(spawn)
    assert_right(heir, heir.born())


def test_a_worker_whose_gateway_is_gone_takes_its_builder_with_it(spawn, site):
    worker = site.worker(spawn, gated=True)
    fds = processes.watch([site.builder()])
    worker.control.close()
    assert worker.child.wait(30) == 0
    processes.assert_gone_within(fds, 30)


def test_of_two_workers_that_need_the_same_engine_one_builds(spawn, site):
    workers = [site.worker(spawn, gated=True) for _ in range(2)]
    site.builder()
    # Both say that they build: one does, the other one waits for it.
    assert [worker.receive().stage for worker in workers] == ["building"] * 2
    site.open_gate()
    lives = [[], []]
    threads = [threading.Thread(target=lambda n=n: lives[n].extend(workers[n].born())) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for worker, said in zip(workers, lives, strict=True):
        assert_right(worker, said)
    assert len(list(site.builds.iterdir())) == 1
    assert len(list(site.engines.glob("*.plan"))) == 1


def test_without_a_folder_a_worker_builds_and_leaves_nothing(spawn, site):
    worker = site.worker(spawn, kept=False)
    assert_right(worker, worker.born())
    assert not site.engines.exists()
    code, log = worker.end()
    assert code == 0
    assert "engines_not_kept" in [line["event"] for line in log]


def test_a_folder_that_others_can_write_is_refused(spawn, site):
    site.engines.mkdir(mode=0o777)
    site.engines.chmod(0o777)
    said = site.worker(spawn).born()
    failed = next(message for message in said if isinstance(message, LoadFailed))
    assert "engine_dir is open to others, and engines are native code" in failed.detail
    assert not list(site.builds.iterdir())


def test_a_builder_needs_an_errand():
    for arguments in ([], ["x"], ["99"]):
        ended = subprocess.run(
            [sys.executable, "-m", "gpuworker.gpu.building", *arguments], cwd=ROOT, capture_output=True, check=False
        )
        assert ended.returncode == 64
        assert b'"event":"no_errand"' in ended.stderr
