"""The backend without a model: what it answers, what it takes, and the faults that it has to offer."""

import zlib

import numpy as np
import pytest

from gateway.errors import InvalidModel
from gpuworker import fake_backend
from gpuworker.device import memory_size
from gpuworker.model import NO_ANSWER
from gpuworker.profile import noise
from shm.wire import ItemStatus
from tests.support.models import FAILED, OK, RNG, batch, fake, interrupted, opened, refusal


def test_a_fake_answers_class_zero(tmp_path):
    model, _, slots = opened(fake(class_count=10), tmp_path)
    assert model.execute(batch([3, 1], top_k=4)).statuses == [OK] * 2
    assert slots["index"][3].tolist() == [0, 1, 2, 3, 0, 0, 0, 0, 0, 0]
    assert slots["probability"][3, :4].tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("top_k_max", [1, 5, 40])
def test_a_fake_with_a_digest_answers_the_pixels(tmp_path, top_k_max):
    contract = fake(digest=True, class_count=40, output=f"top_k = 1\ntop_k_max = {top_k_max}")
    model, pixels, slots = opened(contract, tmp_path)
    for _ in range(20):
        pixels[:] = RNG.integers(0, 256, pixels.shape, np.uint8)
        model.execute(batch([5, 0, 2], top_k=top_k_max))
        for slot in (5, 0, 2):
            best = zlib.crc32(pixels[slot].tobytes()) % 40
            others = [place for place in range(40) if place != best]
            assert slots["index"][slot].tolist() == [best, *others][:top_k_max]


def test_a_fake_of_another_task_gives_its_digest(tmp_path):
    model, pixels, slots = opened(fake("raw", digest=True), tmp_path)
    pixels[2] = 5
    model.execute(batch([2], size=1))
    assert slots["digest"][2, 0] == zlib.crc32(pixels[2].tobytes())


def test_a_fake_fails_the_images_it_is_told_to_and_no_padding(tmp_path):
    model, pixels, _ = opened(fake(fail_pixel=[1, 2, 3]), tmp_path)
    pixels[1, 0, 0] = 1, 2, 3
    ran = model.execute(batch([0, 1, 2]))
    assert ran.statuses == [OK, FAILED, OK]
    assert ran.detail == NO_ANSWER
    assert model.execute(batch([0], size=4)).statuses == [OK]


def test_a_fake_takes_its_time(tmp_path, monkeypatch):
    model, _, _ = opened(fake(base_ms=10, image_ms=2.5), tmp_path, warm=False)
    now_ns, slept_s = 0, 0.0

    def look() -> int:
        nonlocal now_ns
        now_ns += 1000
        return now_ns

    def wait(seconds) -> bool:
        nonlocal now_ns, slept_s
        now_ns += round(seconds * 1e9)
        slept_s += seconds
        return False

    monkeypatch.setattr(fake_backend.time, "monotonic_ns", look)
    monkeypatch.setattr(model._backend._interrupted, "wait", wait)
    model.execute(batch([0, 1], size=4))
    assert 0.0198 < slept_s < 0.0199, "the end is waited out awake"
    assert 20_000_000 <= now_ns < 20_010_000


def test_a_fake_that_spins_is_interrupted(tmp_path):
    model, pixels, _ = opened(fake(spin_pixel=[1, 2, 3]), tmp_path)
    pixels[1, 0, 0] = 1, 2, 3
    for _ in range(2):
        assert interrupted(model, batch([0, 1])).statuses == [ItemStatus.INTERRUPTED] * 2
        assert model.execute(batch([0])).statuses == [OK]


def test_a_fake_that_takes_its_time_is_interrupted(tmp_path):
    model, _, _ = opened(fake(base_ms=60_000), tmp_path, warm=False)
    assert interrupted(model, batch([0])).statuses == [ItemStatus.INTERRUPTED]


def test_a_fake_loses_its_device(tmp_path):
    model, pixels, _ = opened(fake(lost_pixel=[1, 2, 3], fail_pixel=[4, 4, 4]), tmp_path)
    pixels[1, 0, 0] = 1, 2, 3
    assert model.execute(batch([0, 1])).statuses == [ItemStatus.DEVICE_LOST] * 2
    assert model.execute(batch([0])).statuses == [OK]


def test_a_fake_has_room_for_so_many_images_and_for_what_a_load_measures_with(tmp_path):
    model, _, _ = opened(fake(memory_images=2), tmp_path)
    assert model.execute(batch([0, 1], size=4)).statuses == [OK] * 2
    assert model.execute(batch([0, 1, 2], size=4)).statuses == [ItemStatus.NO_MEMORY] * 3
    model.rehearse(4, noise(48), 1, model._answer)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"load": '"refuse"'}, InvalidModel, "set it to 'ok'"),
        ({"load": '"no_memory"'}, MemoryError, "fake.load"),
    ],
)
def test_a_fake_refuses_to_load(tmp_path, settings, error, words):
    with pytest.raises(error, match=words):
        opened(fake(**settings), tmp_path)


def test_a_fake_takes_time_and_memory_to_load(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(fake_backend.time, "sleep", slept.append)
    before = memory_size()
    model, _, _ = opened(fake(load_ms=250, memory_size=64 << 20), tmp_path)
    assert slept == [0.25]
    assert memory_size() - before > 60 << 20
    model.close()
    assert memory_size() - before < 32 << 20


@pytest.mark.parametrize("name", ["crash", "kill", "hang", "spin", "fail", "lost"])
def test_a_fake_that_would_fire_on_black_is_refused_whatever_it_would_do(tmp_path, name):
    assert f"fake.{name}_pixel = [0, 0, 0] would fire" in refusal(fake(**{f"{name}_pixel": [0, 0, 0]}), tmp_path)


def test_a_fake_that_would_fire_on_black_is_refused(tmp_path):
    assert refusal(fake(crash_pixel=[0, 0, 0]), tmp_path) == (
        "fake.crash_pixel = [0, 0, 0] would fire on warm-up; choose a pixel that is not black"
    )
