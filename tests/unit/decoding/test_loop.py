"""The loop in this process: its order of sends, and what a bug of ours costs."""

from __future__ import annotations

import signal
import socket

import numpy as np
import pytest

from gateway.decoding import loop
from gateway.decoding.loop import Decoder, Model
from shm import layout, wire
from shm.recorder import Recorder
from shm.segment import Segment
from shm.wire import Decode, DecodeItem, Encoding, ItemStatus
from tests.support import images
from tests.support.pipeline import contract


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
    model = Model.of(contract(), np.zeros((300, 32, 32, 3), np.uint8))
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
