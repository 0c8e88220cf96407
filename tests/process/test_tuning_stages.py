"""The stages of a tuning run against real workers, decoders and gateways: what they measure, and how they fail."""

from __future__ import annotations

import asyncio
import os
import time

import numpy as np
import pytest
import uvloop

from gateway import config
from gateway.errors import InvalidSettings
from gateway.models.repository import read_version
from gateway.tuning import decode, live, photos, profile
from tests.support.gateways import all_children, encode, png, write_model

pytestmark = pytest.mark.slow


@pytest.fixture
def nothing_left():
    before = set(all_children(os.getpid()))
    yield
    assert set(all_children(os.getpid())) <= before


def model(tmp_path, **sections):
    return read_version(write_model(tmp_path, **sections))


def settings(**values):
    return config.load(None, {}, {"decoders": 2, "log_level": "error", **values})


def grow(found, deadline_ms: float, seconds: float = 20.0) -> list[int]:
    points: list = []
    uvloop.run(
        profile.grow(
            found,
            settings(),
            deadline_ms=deadline_ms,
            seconds=seconds,
            note=points.extend,
            progress=lambda _: None,
        )
    )
    return [point.size for point in points]


@pytest.mark.usefixtures("nothing_left")
def test_growth_goes_on_while_larger_batches_gain(tmp_path):
    found = model(tmp_path, fake={"base_ms": 3, "image_ms": 0})
    assert grow(found, deadline_ms=10_000) == [1, 2, 4, 8, 16, 32, 64, 128, 256]


@pytest.mark.usefixtures("nothing_left")
def test_growth_ends_behind_the_deadline(tmp_path):
    assert grow(model(tmp_path, fake={"base_ms": 20, "image_ms": 1}), deadline_ms=15) == [1, 2]


@pytest.mark.usefixtures("nothing_left")
def test_growth_that_has_no_time_for_one_image_says_so(tmp_path):
    with pytest.raises(profile.TooSlow, match="batches of 1, 2 were not measured in 1 s"):
        grow(model(tmp_path, fake={"base_ms": 5000}), deadline_ms=60_000, seconds=1.0)


@pytest.mark.usefixtures("nothing_left")
def test_a_worker_that_dies_of_the_model_is_a_refusal(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    with pytest.raises(profile.Refused, match="the worker died while it loaded the model"):
        grow(model(tmp_path), deadline_ms=50)


def measure(found, sample, seconds: float = 0.4, **values):
    return uvloop.run(decode.measure(found, settings(**values), sample, seconds, lambda _: None))


@pytest.mark.usefixtures("nothing_left")
def test_decoders_are_timed_and_files_that_are_no_images_are_left_out(tmp_path):
    sample = [photos.Photo(f"{seed}.png", png(seed)) for seed in range(20)]
    sample.insert(3, photos.Photo("bad", b"no image"))
    rate, good, skipped = measure(model(tmp_path), sample)
    assert rate.decoder_count == 2
    assert 0 < rate.p50_ms <= rate.p99_ms
    assert rate.rate > 10
    assert [photo.name for photo in good] == [f"{seed}.png" for seed in range(20)]
    assert [found.name for found in skipped] == ["bad"]


@pytest.mark.usefixtures("nothing_left")
def test_a_photo_that_kills_a_decoder_is_named(tmp_path):
    costly = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    sample = [photos.Photo("good.png", png(1)), photos.Photo("bomb.png", encode(costly))]
    with pytest.raises(InvalidSettings, match=r"died of bomb\.png \(SIGPROF \(cpu budget\)\)"):
        measure(model(tmp_path), sample, decode_cpu_ms_max=10)


def test_the_made_up_photo_is_like_a_photo():
    photo = photos.made_up()
    assert photo == photos.made_up()
    assert 40_000 < len(photo.body) < 150_000, "as many bytes as a photo of that size and quality has"


@pytest.mark.usefixtures("nothing_left")
def test_the_gateway_under_test_serves_the_given_contract_and_probes_count_what_it_does(tmp_path):
    found = model(tmp_path, fake={"base_ms": 2, "image_ms": 0})
    sample = [photos.Photo("a", png(1)), photos.Photo("b", png(2))]

    async def run():
        async with live.serving(found, settings()) as port:
            bodies = live.requests(found, port, sample, 500.0)
            calm = await live.probe(port, bodies, 60, 0.5, deadline_ms=500, seed=1, confirms=False)
            bad = [body.replace(b"/m/1?", b"/n/1?") for body in bodies]
            with pytest.raises(live.Unserved, match="answers 404"):
                await live.probe(port, bad, 60, 0.2, deadline_ms=500, seed=1, confirms=False)
            hasty = live.requests(found, port, sample, 0.5)
            late = await live.probe(port, hasty, 60, 0.5, deadline_ms=0.5, seed=1, confirms=True)
        with pytest.raises(live.Unserved, match="is gone"):
            await live.probe(port, bodies, 60, 0.1, deadline_ms=500, seed=1, confirms=False)
        return calm, late

    calm, late = uvloop.run(run())
    assert calm.due_count > 10
    assert calm.refused_share == 0
    assert 2 <= calm.p50_ms <= calm.p99_ms
    assert late.refused_share == 1
    assert late.verdict(0.5) == "refuses"


@pytest.mark.usefixtures("nothing_left")
def test_a_gateway_that_does_not_start_is_told(tmp_path, monkeypatch):
    found = model(tmp_path)
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))

    async def run():
        async with live.serving(found, settings()):
            pass

    with pytest.raises(live.Unserved, match="ended with status 1"):
        uvloop.run(run())


@pytest.mark.usefixtures("nothing_left")
def test_a_run_that_is_cancelled_leaves_no_gateway(tmp_path):
    found = model(tmp_path)

    async def run():
        async with live.serving(found, settings()):
            await asyncio.sleep(60)

    async def cancelled():
        running = asyncio.ensure_future(run())
        while not all_children(os.getpid()):  # noqa: ASYNC110 - for a moment
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    begin = time.monotonic()
    uvloop.run(cancelled())
    assert time.monotonic() - begin < 30
