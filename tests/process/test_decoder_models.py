"""Models that come to a living decoder and go again, and the failpoints on its way."""

from __future__ import annotations

import resource
import signal
import socket
from pathlib import Path

import msgspec
import numpy as np
import pytest

from gateway.decoding.__main__ import EXIT_BAD_FRAME, EXIT_NO_MEMORY, OOM_POINTS
from shm import layout, views, wire
from shm.segment import Segment
from shm.wire import Attach, Detach, ItemStatus
from tests.support import images
from tests.support.decoder_process import ADDRESS_SPACE, SLOT_COUNT, Child

pytestmark = pytest.mark.slow


@pytest.fixture
def more():
    """Slots of one more model."""
    segment = Segment.create("more", layout.stride(64 * 64 * 3) * SLOT_COUNT)
    yield segment
    segment.close()


def test_models_come_and_go_and_their_memory_with_them(more):
    body = images.variants()["jpeg"]
    with Child() as child:
        child.wait_ready()
        limit = "Max open files"
        limits = Path(f"/proc/{child.process.pid}/limits").read_text().splitlines()
        fds = {int(path.name) for path in Path(f"/proc/{child.process.pid}/fd").iterdir()}
        allowed = int(next(line for line in limits if line.startswith(limit)).removeprefix(limit).split()[0])
        assert len(set(range(allowed)) - fds) == 1, "room for one more"

        for ticket in range(1, 6):
            child.attach(more)
            item = child.item(ticket, body, slot=2)
            item.model = 7
            child.send(item)
            assert child.receive(1)[ticket].status is ItemStatus.OK
            assert child.mapped("more") == 1
            rows = views.pixel_rows(more.map, child.contract.input.shape, SLOT_COUNT)
            assert np.array_equal(rows[2], child.expect(body))
            del rows
            child.control.send(wire.encode(Detach(7)))
            child.send(child.item(100 + ticket, body))
            child.receive(1)
            assert child.mapped("more") == 0
        assert {int(path.name) for path in Path(f"/proc/{child.process.pid}/fd").iterdir()} == fds

        # Also a model that it was born with.
        assert child.mapped("input") == 1
        child.attach(more)
        child.control.send(wire.encode(Detach(3)))
        item = child.item(200, body)
        item.model = 7
        child.send(item)
        assert child.receive(1)[200].status is ItemStatus.OK
        assert (child.mapped("input"), child.mapped("more")) == (0, 1)


def test_address_space_for_a_model_is_given_from_outside(more):
    large = Segment.create("large", ADDRESS_SPACE)
    body = images.variants()["jpeg"]
    with Child() as child:
        child.wait_ready()
        soft, hard = resource.prlimit(child.process.pid, resource.RLIMIT_AS)
        assert soft == ADDRESS_SPACE
        resource.prlimit(child.process.pid, resource.RLIMIT_AS, (soft + large.size, hard))
        child.attach(large)
        item = child.item(1, body)
        item.model = 7
        child.send(item)
        assert child.receive(1)[1].status is ItemStatus.OK
    with Child() as child:
        child.wait_ready()
        child.attach(large)
        code, said = child.wait_exit()
        assert code == EXIT_NO_MEMORY
        assert "slots for model 7: Cannot allocate memory" in said
    large.close()


def test_a_second_descriptor_does_not_fit(more):
    with Child() as child:
        child.wait_ready()
        text = msgspec.json.encode(child.contract).decode()
        frame = wire.encode(Attach(7, text, SLOT_COUNT, more.size))
        socket.send_fds(child.control, [frame], [more.fd, more.fd])
        code, said = child.wait_exit()
        assert code == EXIT_BAD_FRAME
        assert "descriptors with Attach that do not belong there" in said


def test_it_goes_before_the_gateway_when_memory_runs_out():
    own = int(Path("/proc/self/oom_score_adj").read_text())
    with Child() as child:
        child.wait_ready()
        assert int(Path(f"/proc/{child.process.pid}/oom_score_adj").read_text()) == min(own + OOM_POINTS, 1000)


@pytest.mark.parametrize(
    ("armed", "code", "blamed"),
    [
        ("decoder.after_inherit=exit:9", 9, 0),
        ("decoder.before_ready=crash", -signal.SIGSEGV, 0),
        ("decoder.before_decode=crash", -signal.SIGSEGV, 5),
        ("decoder.before_decode=spin", -signal.SIGPROF, 5),
        ("decoder.after_decode=kill", -signal.SIGKILL, 5),
        ("decoder.before_reply=kill", -signal.SIGKILL, 0),
    ],
)
def test_failpoints_are_reached_and_act_in_the_sandbox(armed, code, blamed):
    with Child(armed=armed, cpu_ns_max=300_000_000) as child:
        item = child.item(5, images.variants()["jpeg"])
        try:
            child.send(item)
        except BrokenPipeError:
            assert blamed == 0
        assert child.process.wait(20) == code
        assert child.recorder.last() == blamed


def test_failpoints_that_leave_it_alive():
    armed = "decoder.before_decode=delay:1@1,decoder.before_decode=error@2,decoder.after_decode=error:ENOMEM@2"
    with Child(armed=armed) as child:
        child.wait_ready()
        statuses = []
        for ticket in range(1, 5):
            child.send(child.item(ticket, images.variants()["jpeg"]))
            statuses.append(child.receive(1)[ticket].status)
        assert statuses == [ItemStatus.OK, ItemStatus.FAILED, ItemStatus.FAILED, ItemStatus.OK]
