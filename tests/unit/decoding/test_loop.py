"""The loop in this process: its order of sends, and what a bug of ours costs."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import msgspec
import pytest

from gateway.decoding import loop
from gateway.decoding.loop import Decoder, Model, NoMemoryForModel
from shm import layout, wire
from shm.recorder import Recorder
from shm.segment import Segment
from shm.wire import Attach, Decode, DecodeItem, Detach, Encoding, ItemStatus, WireError
from tests.support import images
from tests.support.pipeline import contract

CONTRACT = msgspec.json.encode(contract()).decode()
SLOT = 32 * 32 * 3


class NoBudget:
    """Stands in for the kernel's timer, which would end the tests; the process tests have the real one."""

    armed = False

    def arm(self):
        assert not self.armed
        self.armed = True

    def disarm(self):
        assert self.armed
        self.armed = False


@pytest.fixture
def ours():
    """(our end, a decoder on the other end, its bodies)."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    recorder = Segment.create("recorder", layout.RECORDER_SIZE)
    bodies = bytearray(1 << 16)
    model = Model.of(CONTRACT, memoryview(bytearray(SLOT * 300)), 300)
    decoder = Decoder(right, memoryview(bodies), {0: model}, Recorder(recorder), NoBudget())
    left.settimeout(5)
    yield left, decoder, bodies
    left.close()
    right.close()
    recorder.close()


def put(bodies, body, *, count=1, first=1):
    bodies[: len(body)] = body
    return [DecodeItem(first + index, 0, index, 0, len(body), Encoding.BINARY) for index in range(count)]


def work(left, decoder, items):
    """Send, close, serve: all frames that came back."""
    left.send(wire.encode(Decode(items)))
    left.shutdown(socket.SHUT_WR)
    decoder.serve()
    decoder._control.close()
    frames = []
    while frame := left.recv(wire.FRAME_SIZE_MAX):
        frames.append(wire.read_from_decoder(frame).items)
    return frames


@pytest.fixture
def clock(monkeypatch):
    """time.monotonic_ns under the test's control: what each decode takes is drawn from a list."""
    now = [0]
    monkeypatch.setattr(loop.time, "monotonic_ns", lambda: now[0])

    def takes(*durations_ns):
        left = list(durations_ns)

        def decode(_body, _out, _recipe, _scratch):
            now[0] += left.pop(0)
            return 1, 1

        monkeypatch.setattr(loop, "decode_into", decode)

    return takes


def tickets(frames):
    return [[item.ticket for item in frame] for frame in frames]


def test_a_quick_frame_is_answered_by_one(ours, clock):
    left, decoder, bodies = ours
    clock(*[100_000] * 8)
    assert tickets(work(left, decoder, put(bodies, b"x", count=8))) == [[1, 2, 3, 4, 5, 6, 7, 8]]


def test_outcomes_leave_once_they_waited(ours, clock):
    left, decoder, bodies = ours
    clock(100_000, 3_000_000, 100_000, 1_000_000, 1_500_000, 10)
    assert tickets(work(left, decoder, put(bodies, b"x", count=6))) == [[1, 2], [3, 4, 5], [6]]


def test_outcomes_leave_before_a_large_body(ours, clock):
    left, decoder, bodies = ours
    clock(1, 1, 1)
    items = put(bodies, b"x", count=3)
    items[1] = DecodeItem(2, 0, 1, 0, loop.LARGE_BODY_SIZE, Encoding.BINARY)
    assert tickets(work(left, decoder, items)) == [[1], [2, 3]]


def test_a_reply_has_a_bound(ours, clock):
    left, decoder, bodies = ours
    clock(*[1] * 300)
    assert [len(frame) for frame in work(left, decoder, put(bodies, b"x", count=300))] == [256, 44]


def test_the_longest_reply_fits_a_frame():
    item = wire.DecodedItem(2**63, ItemStatus.UNDECODABLE, 2**40, 65535, 65535, "a" * 120)
    wire.encode(wire.Decoded([item] * loop.REPLY_ITEMS_MAX))


def test_a_bug_of_ours_costs_one_image_and_tells_the_client_nothing(ours, monkeypatch, capfd):
    left, decoder, bodies = ours
    real = loop.decode_into
    calls = []

    def decode(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise KeyError("/secret/path")
        return real(*arguments)

    monkeypatch.setattr(loop, "decode_into", decode)
    frames = work(left, decoder, put(bodies, images.variants()["jpeg"], count=2))
    outcomes = [item for frame in frames for item in frame]
    assert [item.status for item in outcomes] == [ItemStatus.FAILED, ItemStatus.OK]
    assert "secret" not in outcomes[0].detail
    assert "KeyError" in capfd.readouterr().err
    assert decoder._recorder.last() == 0


def test_memory_that_is_not_there_is_a_status(ours, monkeypatch):
    left, decoder, bodies = ours

    def decode(*_):
        raise MemoryError

    monkeypatch.setattr(loop, "decode_into", decode)
    (outcomes,) = work(left, decoder, put(bodies, b"x"))
    assert outcomes[0].status is ItemStatus.UNDECODABLE
    assert "memory" in outcomes[0].detail


def attach(left, fds, *, model=7, text=CONTRACT, slot_count=2, size=SLOT * 2):
    frame = wire.encode(Attach(model, text, slot_count, size))
    socket.send_fds(left, [frame], fds)


@pytest.fixture
def slots():
    segment = Segment.create("attached", SLOT * 2)
    yield segment
    segment.close()


def mapped():
    return Path("/proc/self/maps").read_text().count("penstock-attached ")


def test_an_attached_model_is_decoded_for_until_it_is_detached(ours, slots):
    left, decoder, bodies = ours
    attach(left, [slots.fd])
    items = put(bodies, images.variants()["png"])
    items[0].model, items[0].slot = 7, 1
    left.send(wire.encode(Decode(items)))
    left.send(wire.encode(Detach(7)))
    before = len(list(Path("/proc/self/fd").iterdir()))
    (outcomes,) = work(left, decoder, put(bodies, images.variants()["png"]))[:1]
    assert outcomes[0].status is ItemStatus.OK
    assert not any(slots.map[:SLOT])
    assert any(slots.map[SLOT:])
    assert mapped() == 1, "ours alone"
    assert len(list(Path("/proc/self/fd").iterdir())) == before - 1, (
        "the decoder's socket is closed, and no other stays"
    )


@pytest.mark.parametrize(
    ("send", "words"),
    [
        (lambda left, fd: attach(left, []), "without the descriptor"),
        (lambda left, fd: attach(left, [fd, fd]), "without the descriptor"),
        (lambda left, fd: attach(left, [fd], model=0), "attached twice"),
        (lambda left, fd: attach(left, [fd], text="{}"), "model 7: "),
        (lambda left, fd: attach(left, [fd], slot_count=3), "model 7: "),
        (lambda left, fd: left.send(wire.encode(Detach(7))), "no model 7 to detach"),
        (lambda left, fd: socket.send_fds(left, [wire.encode(Detach(0))], [fd]), "descriptors with Detach"),
    ],
    ids=["none", "two", "twice", "contract", "slots", "detach", "misplaced"],
)
def test_an_attach_that_no_gateway_sends(ours, slots, send, words):
    left, decoder, _ = ours
    send(left, slots.fd)
    with pytest.raises(WireError, match=words):
        decoder.serve()


def test_slots_that_cannot_be_mapped_are_said(ours, slots):
    left, decoder, _ = ours
    fd = slots.readonly_fd()
    attach(left, [fd])
    os.close(fd)
    with pytest.raises(NoMemoryForModel, match="6144 bytes of slots for model 7: Permission denied"):
        decoder.serve()


def test_a_gateway_that_is_gone_ends_the_loop(ours):
    left, decoder, bodies = ours
    left.send(wire.encode(Decode(put(bodies, b"x"))))
    left.close()
    decoder.serve()


def test_the_budget_is_the_kernels_timer(monkeypatch):
    calls = []
    monkeypatch.setattr(loop.signal, "setitimer", lambda *arguments: calls.append(arguments))
    before = signal.getsignal(signal.SIGPROF)
    budget = loop.CpuBudget(1_500_000_000)
    assert signal.getsignal(signal.SIGPROF) is signal.SIG_DFL
    budget.arm()
    budget.disarm()
    signal.signal(signal.SIGPROF, before)
    assert calls == [(signal.ITIMER_PROF, 1.5), (signal.ITIMER_PROF, 0.0)]
