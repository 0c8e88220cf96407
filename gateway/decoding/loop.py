"""The decoder's one loop: frames of images in, frames of outcomes out. One thread, no state but what it was given.

A bad image becomes a status. A bad frame is the gateway's bug and ends the process.
"""

from __future__ import annotations

import binascii
import contextlib
import logging
import os
import signal
import socket
import sys
import time
import traceback
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from gateway import logs
from gateway.decoding.edge import OUT_OF_MEMORY
from gateway.decoding.imaging import Recipe, Scratch, decode_into
from gateway.errors import PayloadTooLarge, Refusal, UndecodableImage, UnsupportedMediaType
from gateway.models.spec import Contract
from shm import failpoints, views, wire
from shm.segment import map_for_views
from shm.wire import Attach, Decode, DecodedItem, DecodeItem, Encoding, ItemStatus, WireError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gateway.decoding.header import Body
    from shm.recorder import Recorder

FLUSH_NS = 2_000_000
"""Outcomes wait at most this long for the next image of their frame to be done, and that image itself."""

LARGE_BODY_SIZE = 64 * 1024
"""Bytes. An image of this size takes about FLUSH_NS, so outcomes at hand are sent before it is begun."""

REPLY_ITEMS_MAX = 256
"""Outcomes in one frame; with details of 120 characters they stay under wire.FRAME_SIZE_MAX."""

_RIGHTS = socket.SCM_RIGHTS
_FD_SIZE = 4
"""Bytes of one descriptor in an SCM_RIGHTS message."""

_STATUSES: dict[type[Refusal], ItemStatus] = {
    UndecodableImage: ItemStatus.UNDECODABLE,
    UnsupportedMediaType: ItemStatus.UNSUPPORTED_FORMAT,
    PayloadTooLarge: ItemStatus.PIXELS_OVER_LIMIT,
}


class Model(NamedTuple):
    """One model's recipe, and its slots: uint8[h, w, c] each, in shared memory."""

    recipe: Recipe
    slots: list[NDArray[np.uint8]]

    @classmethod
    def of(cls, contract: str, slots: memoryview, slot_count: int) -> Model:
        """`contract` is JSON, `slots` the input segment. Raises msgspec.DecodeError, ValueError."""
        parsed = msgspec.json.decode(contract, type=Contract)
        # Indexing a list is four times as fast as making the view anew for each image.
        return cls(Recipe(parsed), list(views.pixel_rows(slots, parsed.input.shape, slot_count)))


class BadBase64(Exception):
    """An image that was said to be base64 is not."""


class NoMemoryForModel(Exception):
    """The slots of an attached model cannot be mapped: the address space that this decoder may have is too small."""


class CpuBudget:
    """CPU time per image, kept by the kernel, which ends the process in the middle of any code that exceeds it.

    SIGPROF is left at its default (kill) on purpose: a handler in Python runs only between bytecodes, and a JPEG bomb
    spends its seconds within one. The gateway reads the recorder to learn which image it was.
    """

    __slots__ = ("_seconds",)

    def __init__(self, cpu_ns_max: int) -> None:
        assert cpu_ns_max > 0
        self._seconds = cpu_ns_max / 1e9
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])

    def arm(self) -> None:
        """Start an image's budget."""
        signal.setitimer(signal.ITIMER_PROF, self._seconds)

    def disarm(self) -> None:
        """The image is done."""
        signal.setitimer(signal.ITIMER_PROF, 0.0)


class Decoder:
    """Everything that the loop needs. `bodies` is read-only; `models`, by the wire's index, is its own."""

    __slots__ = ("_bodies", "_budget", "_control", "_models", "_recorder", "_scratch")

    def __init__(
        self,
        control: socket.socket,
        bodies: memoryview,
        models: dict[int, Model],
        recorder: Recorder,
        budget: CpuBudget,
    ) -> None:
        self._control = control
        self._bodies = bodies
        self._models = models
        self._recorder = recorder
        self._budget = budget
        self._scratch = Scratch()

    def serve(self) -> None:
        """Work until the gateway closes the socket, or is gone. Raises WireError, NoMemoryForModel."""
        room = socket.CMSG_SPACE(_FD_SIZE)
        while True:
            try:
                frame, ancillary, flags, _ = self._control.recvmsg(wire.FRAME_SIZE_MAX, room)
            except ConnectionError:
                return
            if not frame:
                return
            message = wire.read_for_decoder(frame)
            if flags & socket.MSG_CTRUNC or (ancillary and not isinstance(message, Attach)):
                raise WireError(f"descriptors with {type(message).__name__} that do not belong there")
            try:
                if isinstance(message, Decode):
                    self._work_off(message.items)
                elif isinstance(message, Attach):
                    self._attach(message, ancillary)
                elif self._models.pop(message.model, None) is None:
                    raise WireError(f"no model {message.model} to detach")
            except ConnectionError:
                return

    def _attach(self, attach: Attach, ancillary: list[tuple[int, int, bytes]]) -> None:
        """Map one more model, whose descriptor came with the frame. Raises WireError, NoMemoryForModel."""
        passed = [content for level, kind, content in ancillary if (level, kind) == (socket.SOL_SOCKET, _RIGHTS)]
        if len(passed) != 1 or len(passed[0]) != _FD_SIZE:
            raise WireError(f"model {attach.model} came without the descriptor of its slots")
        fd = int.from_bytes(passed[0], sys.byteorder)
        if attach.model in self._models:
            raise WireError(f"model {attach.model} was attached twice")
        try:
            slots = map_for_views(fd, attach.size)
        except OSError as error:
            raise NoMemoryForModel(f"{attach.size} bytes of slots for model {attach.model}: {error.strerror}") from None
        try:
            self._models[attach.model] = Model.of(attach.contract, slots, attach.slot_count)
        except ValueError as error:  # msgspec's own among them
            raise WireError(f"model {attach.model}: {error}") from None

    def _work_off(self, items: list[DecodeItem]) -> None:
        """Decode in order; answer in as few frames as leave no image waiting for a slow neighbour."""
        done: list[DecodedItem] = []
        sent_ns = time.monotonic_ns()
        for item in items:
            if done and item.size >= LARGE_BODY_SIZE:
                self._send(done)
                sent_ns = time.monotonic_ns()
            outcome, now_ns = self._decode(item)
            done.append(outcome)
            if now_ns - sent_ns > FLUSH_NS or len(done) == REPLY_ITEMS_MAX:
                self._send(done)
                sent_ns = now_ns
        if done:
            self._send(done)

    def _send(self, done: list[DecodedItem]) -> None:
        """Answer `done`, and empty it."""
        failpoints.hit("decoder.before_reply")
        self._control.send(wire.encode(wire.Decoded(done)))
        done.clear()

    def _decode(self, item: DecodeItem) -> tuple[DecodedItem, int]:
        """One image, whatever it holds: its outcome, and the time at its end. Raises WireError."""
        slot, recipe, body = self._locate(item)
        began_ns = time.monotonic_ns()
        # Noted before it is armed, and disarmed before it is cleared: a death by budget always names its image.
        self._recorder.note(item.ticket)
        self._budget.arm()
        status, detail = ItemStatus.OK, ""
        width = height = 0
        try:
            failpoints.hit("decoder.before_decode")
            if item.encoding is Encoding.BASE64:
                body = from_base64(body)
            width, height = decode_into(body, slot, recipe, self._scratch)
            failpoints.hit("decoder.after_decode")
        except BadBase64 as error:
            status, detail = ItemStatus.BAD_BASE64, str(error)
        except Refusal as refusal:
            status, detail = _STATUSES[type(refusal)], refusal.detail
        except MemoryError:
            status, detail = ItemStatus.UNDECODABLE, OUT_OF_MEMORY
        except Exception:  # noqa: BLE001 - a bug of ours costs this image, not the process
            status, detail = ItemStatus.FAILED, "The image could not be decoded because of an error in the server."
            report("decode_failed", traceback.format_exc())
        self._budget.disarm()
        self._recorder.note(0)
        now_ns = time.monotonic_ns()
        return DecodedItem(item.ticket, status, now_ns - began_ns, width, height, detail), now_ns

    def _locate(self, item: DecodeItem) -> tuple[NDArray[np.uint8], Recipe, Body]:
        """Slot, recipe and bytes of an item. Raises WireError when the gateway names what is not there."""
        model = self._models.get(item.model)
        if model is None:
            raise WireError(f"no model {item.model}")
        if not 0 <= item.slot < len(model.slots):
            raise WireError(f"slot {item.slot} of model {item.model}, which has {len(model.slots)}")
        end = item.offset + item.size
        if item.offset < 0 or item.size < 0 or end > len(self._bodies):
            raise WireError(f"bytes {item.offset} to {end} of a bodies segment of {len(self._bodies)}")
        if item.ticket <= 0:
            raise WireError(f"ticket {item.ticket}")
        return model.slots[item.slot], model.recipe, self._bodies[item.offset : end]


def from_base64(body: Body) -> bytes:
    """Strict base64 of the standard alphabet, its padding whole or left out. Raises BadBase64, MemoryError."""
    missing = -len(body) % 4
    try:
        return binascii.a2b_base64(bytes(body) + b"=" * missing if missing else body, strict_mode=True)
    except binascii.Error:
        raise BadBase64("The image is not base64 (standard alphabet, no line breaks).") from None


def report(event: str, detail: str) -> None:
    """One line on stderr in the shape of the gateway's, if it can be written; the sandbox may forbid it (RLIMIT_FSIZE
    on a file).
    """
    record = logging.LogRecord("penstock.decoder", logging.ERROR, "", 0, event, None, None)
    record.penstock_fields = {"pid": os.getpid(), "detail": detail}
    with contextlib.suppress(OSError):
        os.write(2, logs.render(record))
