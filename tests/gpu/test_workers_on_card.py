"""The worker process on a card: the CPU's answers at every size, also with batches in flight; nothing held after it."""

from __future__ import annotations

import numpy as np
import pytest

from bench.gpu_lab.hog import holding
from bench.gpu_lab.nvml import MIB, Gpu, NoNvml
from bench.gpu_lab.worker import AHEAD, Worker
from gateway.errors import InvalidModel
from tests.gpu.cards import SIZES, TOLERANCE, may_be_missing, noise, right_answers, worker, write
from tests.support.worker_process import OK, SLOTS

FREED_S = 30
pytestmark = pytest.mark.slow


def test_answers_are_the_cpus_at_every_size(tmp_path, engine):
    _, precision = engine
    pixels = noise()
    right = right_answers(tmp_path, pixels)
    with worker(write(tmp_path / "card", *engine), "cuda:0") as (child, slots, outputs):
        slots[:] = pixels
        for size in SIZES:
            for count in {1, size}:
                outputs[:] = np.nan
                chosen = list(range(SLOTS))[-count:]
                assert child.run(chosen, size=size).statuses == [OK] * count
                np.testing.assert_allclose(outputs[chosen], right[chosen], atol=TOLERANCE[precision])
                assert np.isnan(outputs[:-count]).all(), "only its own slots are written"
        assert child.end()[0] == 0


def test_batches_in_flight_do_not_mix(tmp_path, engine):
    _, precision = engine
    pixels = noise()
    right = right_answers(tmp_path, pixels)
    with worker(write(tmp_path / "card", *engine), "cuda:0") as (child, slots, outputs):
        slots[:] = pixels
        outputs[:] = np.nan
        batches = [[0, 1, 2], [3], [4, 5, 6], [7], [2, 1, 0], [6]]
        for number, chosen in enumerate(batches, 1):
            child.send(chosen, size=3, batch=number)
        answers = [child.receive() for _ in batches]
        assert [ran.batch for ran in answers] == list(range(1, len(batches) + 1))
        assert all(set(ran.statuses) == {OK} for ran in answers)
        np.testing.assert_allclose(outputs, right, atol=TOLERANCE[precision])


@pytest.fixture
def gpu():
    try:
        return Gpu()
    except NoNvml as error:
        pytest.skip(f"device memory cannot be read: {error}")


def test_memory_is_back_after_sigkill_mid_batch(tmp_path, engine, gpu):
    _, directory = write(tmp_path / "m" / "1", *engine)
    before = gpu.settled()
    with may_be_missing(), Worker(directory, slot_count=AHEAD * SIZES[-1], engines=_engines(tmp_path)) as child:
        assert gpu.used() > before + MIB
        for _ in range(AHEAD):
            child.send(SIZES[-1])
        child.receive()
        child.kill()
        gpu.wait_used(lambda used: abs(used - before) <= MIB, FREED_S)


def test_a_built_engine_is_used_again(tmp_path):
    _, directory = write(tmp_path / "m" / "1", "tensorrt", "float32")
    engines = _engines(tmp_path)
    with may_be_missing():
        with Worker(directory, slot_count=SLOTS, engines=engines) as first:
            assert "building" in first.stages
        kept = sorted(file.name for file in engines.rglob("*"))
        with Worker(directory, slot_count=SLOTS, engines=engines) as second:
            assert "building" not in second.stages
    assert kept
    assert sorted(file.name for file in engines.rglob("*")) == kept


def test_a_successor_begins_while_its_predecessor_is_killed(tmp_path):
    _, directory = write(tmp_path / "m" / "1", "onnxruntime", "float32")
    with Worker(directory, slot_count=AHEAD * SIZES[-1]) as first:
        profile = first.loaded.profile
        for _ in range(AHEAD):
            first.send(SIZES[-1])
        first.receive()
        first.kill()
        with Worker(directory, slot_count=AHEAD * SIZES[-1], profile=profile) as second:
            assert "profile" not in second.stages, "what was measured before is told"
            assert second.rate(1, 0.01).images_per_s > 0


def test_a_card_without_memory_refuses_a_model_and_runs_one_that_is_loaded(tmp_path):
    _, directory = write(tmp_path / "m" / "1", "onnxruntime", "float32")
    with Worker(directory, slot_count=AHEAD * SIZES[-1]) as loaded, holding(0):
        assert loaded.rate(SIZES[-1], 0.01).images_per_s > 0
        with pytest.raises(InvalidModel, match="memory"):
            Worker(directory, slot_count=SLOTS)
        assert loaded.rate(1, 0.01).images_per_s > 0


def _engines(tmp_path):
    folder = tmp_path / "engines"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
