"""A decoder dies under a real gateway, by our hand, by a stranger's, or of an image: that image alone pays for it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgpack
import pytest

from tests.support.gateways import (
    MSGPACK,
    assert_problem,
    digest,
    encode,
    gateway,
    pixels,
    png,
    wait_until,
    write_model,
)
from tests.support.images import scan_bomb

pytestmark = pytest.mark.slow

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def costly():
    """A legal JPEG of few bytes that takes some tenths of a second of CPU."""
    return scan_bomb(4000, 95)


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """One decoder with ten seconds for an image."""
    root = tmp_path_factory.mktemp("patient")
    write_model(root)
    with gateway(root, decoders=1, decode_cpu_ms_max=10_000) as running:
        yield running


@pytest.fixture(autouse=True)
def whole(patient):
    yield
    patient.wait_ready()
    patient.wait_idle()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def wait_at_work(pid: int) -> None:
    """Until a decoder has spent a tick on what it is doing now."""
    before = cpu_s(pid)
    wait_until(lambda: cpu_s(pid) > before + 0.02, "it is in the middle of the image")


def test_killed_in_the_middle_of_an_image_it_is_tried_again_and_its_neighbours_are_unharmed(patient, costly):
    wanted = patient.predict(costly).top
    pid = patient.child("decoder")
    first = patient.begin(costly)
    wait_until(lambda: patient.slots().get("filling"), "it has the image")
    wait_at_work(pid)
    neighbours = [patient.begin(png(seed)) for seed in range(10)]
    os.kill(pid, signal.SIGKILL)
    for seed, connection in enumerate(neighbours):
        with connection:
            assert connection.read_answer().top == digest(pixels(seed))
    with first:
        assert first.read_answer().top == wanted
    assert patient.child("decoder") != pid


def test_killed_twice_on_one_image_that_image_is_refused(patient, costly):
    with patient.begin(costly) as first:
        dead = set()
        for _ in range(2):
            (pid,) = wait_until(lambda: [p for p in patient.children("decoder") if p not in dead], "there is another")
            wait_until(lambda: patient.slots().get("filling"), "it has the image")
            wait_at_work(pid)
            os.kill(pid, signal.SIGKILL)
            dead.add(pid)
        assert_problem(first.read_answer(), 422, "undecodable_image")
    assert patient.predict(png(1)).top == digest(pixels(1))


def test_stopped_with_images_in_hand_and_killed_all_of_them_are_decoded_by_the_next(patient):
    pid = patient.child("decoder")
    os.kill(pid, signal.SIGSTOP)
    connections = [patient.begin(png(seed)) for seed in range(6)]
    wait_until(lambda: patient.slots().get("filling"), "it has images")
    os.kill(pid, signal.SIGKILL)
    for seed, connection in enumerate(connections):
        with connection:
            assert connection.read_answer().top == digest(pixels(seed))


@pytest.mark.parametrize("count", [0, 6], ids=["idle", "with images in hand"])
def test_one_that_was_stopped_is_replaced_whatever_it_holds(patient, count):
    pid = patient.child("decoder")
    os.kill(pid, signal.SIGSTOP)
    connections = [patient.begin(png(seed)) for seed in range(count)]
    assert patient.wait_event("child_killed", pid=pid)["reason"] == "stopped"
    for seed, connection in enumerate(connections):
        with connection:
            assert connection.read_answer().top == digest(pixels(seed))


def test_an_image_over_the_cpu_budget_costs_itself_only(tmp_path, costly):
    write_model(tmp_path)
    with gateway(tmp_path, decoders=2, decode_cpu_ms_max=60) as running:
        before = set(wait_until(lambda: len(running.children("decoder")) == 2 and running.children("decoder"), "two"))
        neighbours = [running.begin(png(seed)) for seed in range(4)]
        bomb = running.begin(costly)
        neighbours += [running.begin(png(seed)) for seed in range(4, 12)]
        for seed, connection in enumerate(neighbours):
            with connection:
                assert connection.read_answer().top == digest(pixels(seed))
        with bomb:
            problem = assert_problem(bomb.read_answer(), 422, "undecodable_image")
            assert "more than is allowed" in problem["detail"]
        assert running.wait_event("child_died", role="decoder")["cause"] == "SIGPROF (cpu budget)"
        wait_until(lambda: len(running.children("decoder")) == 2, "it is replaced")
        assert len(set(running.children("decoder")) - before) == 1
        running.wait_ready()
        # Among several in one request, too.
        body = msgpack.packb({"images": [png(1), costly, png(2)]})
        answer = running.predict(body, Content_Type=MSGPACK)
        assert answer.tops == [digest(pixels(1)), "undecodable_image", digest(pixels(2))]
        running.wait_idle()


def test_a_flood_of_costly_images_does_not_take_the_service_down(tmp_path, costly):
    write_model(tmp_path)
    with gateway(tmp_path, decoders=2, decode_cpu_ms_max=60) as running:
        bombs = [running.begin(costly) for _ in range(8)]
        for bomb in bombs:
            with bomb:
                assert bomb.read_answer().status in (422, 503)
        wait_until(lambda: running.predict(png(1)).status == 200, "it serves on")
        running.wait_idle()


def test_a_photo_larger_than_its_share_of_memory_costs_itself_only(tmp_path):
    """The address space is a bound on what one image may take; the decoder says so and lives, or dies alone."""
    write_model(tmp_path, limits={"pixels_max": 200_000_000})
    large = encode(pixels(1, side=16).repeat(800, 0).repeat(800, 1), "PNG", compress_level=1)
    with gateway(tmp_path, decoders=1, decoder_memory_size_max=256 << 20) as running:
        neighbours = [running.begin(png(seed)) for seed in range(3)]
        with running.begin(large) as photo:
            assert photo.read_answer().status in (413, 422)
        for seed, connection in enumerate(neighbours):
            with connection:
                assert connection.read_answer().top == digest(pixels(seed))
        running.wait_idle()
