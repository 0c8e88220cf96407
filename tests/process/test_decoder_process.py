"""The decoder as the gateway starts it: a real process, a real heritage, real death."""

from __future__ import annotations

import base64
import os
import select
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from gateway.decoding.__main__ import EXIT_BAD_FRAME, EXIT_SANDBOX, EXIT_USAGE
from shm import wire
from shm.wire import Attach, Decode, DecodeItem, Detach, Encoding, ItemStatus
from tests.support import images
from tests.support.decoder_process import ADDRESS_SPACE, BODIES_SIZE, SLOT_COUNT, Child

pytestmark = pytest.mark.slow


def test_every_variant_is_decoded_in_the_sandbox_as_outside_of_it():
    with Child() as child:
        sandbox = child.wait_ready()
        assert {"no_new_privs", "rlimit_as"} <= set(sandbox)
        for ticket, (name, body) in enumerate(images.variants().items(), 1):
            child.send(child.item(ticket, body, slot=ticket % SLOT_COUNT))
            outcome = child.receive(1)[ticket]
            assert (outcome.status, outcome.width, outcome.height) == (ItemStatus.OK, 61, 47), name
            assert np.array_equal(child.rows[ticket % SLOT_COUNT], child.expect(body)), name
            assert outcome.decode_ns > 0
        assert child.recorder.last() == 0
        child.control.close()
        assert child.wait_exit() == (0, "")


def test_neighbours_in_one_frame_have_a_status_each():
    good = images.variants()["jpeg"]
    with Child(pixels_max=10_000) as child:
        child.wait_ready()
        child.send(
            child.item(1, good, slot=0),
            child.item(2, good[:300], slot=1),
            child.item(3, b"GIF is not spelled so", slot=1),
            child.item(4, images.png_bomb(), slot=1),
            child.item(5, b"*not base64*", slot=1, encoding=Encoding.BASE64),
            child.item(6, base64.b64encode(good), slot=2, encoding=Encoding.BASE64),
            child.item(7, base64.b64encode(good).rstrip(b"="), slot=3, encoding=Encoding.BASE64),
        )
        found = child.receive(7)
        statuses = [found[ticket].status for ticket in range(1, 8)]
        assert statuses == [
            ItemStatus.OK,
            ItemStatus.UNDECODABLE,
            ItemStatus.UNSUPPORTED_FORMAT,
            ItemStatus.PIXELS_OVER_LIMIT,
            ItemStatus.BAD_BASE64,
            ItemStatus.OK,
            ItemStatus.OK,
        ]
        assert all(bool(found[ticket].detail) == (found[ticket].status is not ItemStatus.OK) for ticket in found)
        for slot in (0, 2, 3):
            assert np.array_equal(child.rows[slot], child.expect(good))


def test_neighbours_do_not_wait_for_a_large_photo():
    small = images.variants()["jpeg"]
    large = images.encode(images.photo("coffee", 1200), "JPEG", quality=95)
    with Child() as child:
        child.wait_ready()
        child.send(child.item(1, small), child.item(2, large, slot=1), child.item(3, small, slot=2))
        first = wire.read_from_decoder(child.control.recv(wire.FRAME_SIZE_MAX))
        assert [item.ticket for item in first.items] == [1]
        assert set(child.receive(2)) == {2, 3}


def test_an_image_over_its_cpu_budget_kills_the_decoder_and_the_recorder_names_it():
    good = images.variants()["jpeg"]
    bomb = images.scan_bomb(4400, 90)
    assert len(bomb) < 100_000
    with Child(cpu_ns_max=30_000_000) as child:
        child.wait_ready()
        for ticket in range(1, 60):  # a budget is per image: many cheap ones never add up to it
            child.send(child.item(ticket, good))
            assert child.receive(1)[ticket].status is ItemStatus.OK
        child.send(child.item(77, bomb), child.item(78, good))
        code, _ = child.wait_exit()
        assert code == -signal.SIGPROF
        assert child.recorder.last() == 77
        assert child.control.recv(wire.FRAME_SIZE_MAX) == b""


def test_memory_over_the_limit_is_a_status_and_the_decoder_lives():
    body = images.encode(Image.new("RGB", (9000, 5000)), "PNG", compress_level=1)
    good = images.variants()["png"]
    with Child(address_space=ADDRESS_SPACE // 4) as child:
        child.wait_ready()
        child.send(child.item(1, body), child.item(2, good, slot=1))
        found = child.receive(2)
        assert found[1].status is ItemStatus.UNDECODABLE
        assert "memory" in found[1].detail
        assert found[2].status is ItemStatus.OK


@pytest.mark.parametrize(
    "frame",
    [
        b"\xc1 no message pack",
        wire.encode(wire.DecoderReady([])),
        wire.encode(Attach(7, "{}", 1, 4096)),
        wire.encode(Detach(9)),
        wire.encode(Decode([DecodeItem(1, 9, 0, 0, 10, Encoding.BINARY)])),
        wire.encode(Decode([DecodeItem(1, 3, SLOT_COUNT, 0, 10, Encoding.BINARY)])),
        wire.encode(Decode([DecodeItem(1, 3, -1, 0, 10, Encoding.BINARY)])),
        wire.encode(Decode([DecodeItem(1, 3, 0, BODIES_SIZE - 9, 10, Encoding.BINARY)])),
        wire.encode(Decode([DecodeItem(1, 3, 0, -1, 10, Encoding.BINARY)])),
        wire.encode(Decode([DecodeItem(1, 3, 0, 5, -1, Encoding.BINARY)])),
        wire.encode(Decode([DecodeItem(0, 3, 0, 0, 10, Encoding.BINARY)])),
    ],
    ids=["bytes", "message", "attach", "detach", "model", "slot", "slot_negative", "end", "offset", "size", "ticket"],
)
def test_a_frame_that_no_gateway_sends_ends_the_process(frame):
    with Child() as child:
        child.wait_ready()
        child.control.send(frame)
        code, said = child.wait_exit()
        assert code == EXIT_BAD_FRAME
        assert said.count("\n") == 1
        assert "gateway sent a frame" in said


def test_an_address_space_too_small_to_start_in_is_said():
    with Child(address_space=64 << 20) as child:
        code, said = child.wait_exit()
        assert code == EXIT_SANDBOX
        assert "are allowed" in said


def test_started_by_hand_it_says_so():
    for arguments in ([], ["x"], ["1", "2"]):
        done = subprocess.run([sys.executable, "-m", "gateway.decoding", *arguments], capture_output=True, check=False)
        assert done.returncode == EXIT_USAGE
        assert b"started by the gateway" in done.stderr


def test_it_dies_with_the_process_that_started_it():
    script = textwrap.dedent(
        """
        import os, sys
        sys.path.insert(0, os.getcwd())
        from tests.support.decoder_process import Child
        child = Child()
        child.wait_ready()
        print(child.process.pid, flush=True)
        sys.stdin.read()
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    pidfd = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    assert _wait_death(pidfd)
    os.close(pidfd)


def _wait_death(pidfd):

    return bool(select.select([pidfd], [], [], 10)[0])
