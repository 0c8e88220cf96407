"""A decoder as the gateway starts it: a real process with a real heritage."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np

from gateway.decoding.imaging import Recipe, Scratch, decode_into
from shm import failpoints, layout, views, wire
from shm.heritage import Grant, Heritage, Limits, ModelGrant
from shm.recorder import Recorder
from shm.segment import Segment
from shm.wire import Attach, Decode, DecodedItem, DecodeItem, Encoding
from tests.support.pipeline import contract

BODIES_SIZE = 4 << 20
SLOT_COUNT = 4
ADDRESS_SPACE = 1 << 30


class Child:
    """One decoder with one model (index 3) of SLOT_COUNT slots; the gateway's ends of everything it holds."""

    def __init__(
        self,
        *,
        cpu_ns_max=5_000_000_000,
        address_space=ADDRESS_SPACE,
        bodies_size=BODIES_SIZE,
        armed="",
        **options,
    ):
        self.contract = contract(**options)
        shape = self.contract.input.shape
        self.bodies = Segment.create("bodies", bodies_size, sole_writer=True)
        self.slots = Segment.create("input", layout.stride(int(np.prod(shape))) * SLOT_COUNT)
        self.rows = views.pixel_rows(self.slots.map, shape, SLOT_COUNT)
        self.recorder_segment = Segment.create("recorder", layout.RECORDER_SIZE)
        self.recorder = Recorder(self.recorder_segment)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(20)
        readonly = self.bodies.readonly_fd()
        heritage = Heritage(
            parent=os.getpid(),
            socket_fd=theirs.fileno(),
            recorder=Grant(self.recorder_segment.fd, layout.RECORDER_SIZE, writable=True),
            bodies=Grant(readonly, bodies_size, writable=False),
            limits=Limits(cpu_ns_max=cpu_ns_max, address_space_size_max=address_space, nice=1),
            models=[
                ModelGrant(
                    index=3,
                    name="m",
                    version=1,
                    directory="",
                    contract=msgspec.json.encode(self.contract).decode(),
                    slot_count=SLOT_COUNT,
                    input=Grant(self.slots.fd, self.slots.size, writable=True),
                    output=None,
                )
            ],
        )
        fd = heritage.bequeath()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway.decoding", str(fd)],
            pass_fds=(fd, *heritage.fds()),
            stderr=subprocess.PIPE,
            env={**os.environ, failpoints.VARIABLE: armed},
        )
        os.close(fd)
        os.close(readonly)
        theirs.close()
        self._end = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.control.close()
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        del self.rows
        for segment in (self.bodies, self.slots, self.recorder_segment):
            segment.close()

    def wait_ready(self):
        message = wire.read_from_decoder(self.control.recv(wire.FRAME_SIZE_MAX))
        assert isinstance(message, wire.DecoderReady)
        return message.sandbox

    def item(self, ticket, body, *, slot=0, encoding=Encoding.BINARY):
        """Put a body into the segment and name it."""
        start = self._end
        self.bodies.map[start : start + len(body)] = body
        self._end = layout.align(start + len(body), layout.BODY_ALIGN)
        return DecodeItem(ticket, 3, slot, start, len(body), encoding)

    def attach(self, segment, *, model=7):
        """Pass one more model of the same contract."""
        text = msgspec.json.encode(self.contract).decode()
        socket.send_fds(self.control, [wire.encode(Attach(model, text, SLOT_COUNT, segment.size))], [segment.fd])

    def mapped(self, name):
        """How often a segment is mapped there, after everything sent so far was read."""
        return Path(f"/proc/{self.process.pid}/maps").read_text().count(f"penstock-{name} ")

    def send(self, *items):
        self.control.send(wire.encode(Decode(list(items))))

    def receive(self, count) -> dict[int, DecodedItem]:
        """Outcomes of `count` images, by ticket."""
        found = {}
        while len(found) < count:
            message = wire.read_from_decoder(self.control.recv(wire.FRAME_SIZE_MAX))
            assert isinstance(message, wire.Decoded)
            found.update((item.ticket, item) for item in message.items)
        return found

    def expect(self, body):
        """What decoding here gives."""
        recipe = Recipe(self.contract)
        out = np.zeros(recipe.shape, np.uint8)
        decode_into(body, out, recipe, Scratch())
        return out

    def wait_exit(self):
        """Its exit code and what it said."""
        code = self.process.wait(20)
        return code, self.process.stderr.read().decode()
