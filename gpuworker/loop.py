"""The worker's loop: a frame in, a batch run, a frame out, until the gateway closes the socket. One thread, no clock of
its own but the one that says a batch is late.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gpuworker.backend import DeviceLost
from gpuworker.model import GatewayBug
from shm import failpoints, wire
from shm.wire import ItemStatus, Ran

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from gpuworker.interrupts import Interrupts
    from gpuworker.model import Model
    from shm.recorder import Recorder
    from shm.wire import Run

_BATCH_MAX = (1 << 64) - 1
"""What the recorder's word holds."""


def serve(control: socket.socket, models: Mapping[int, Model], recorder: Recorder, interrupts: Interrupts) -> None:
    """Answer every Run with a Ran, in order; return when the gateway is gone.

    Raises:
        WireError, GatewayBug: a frame that no correct gateway sends.
        DeviceLost: nothing more can be run; the batch that showed it was answered.
    """
    while frame := control.recv(wire.FRAME_SIZE_MAX):
        run, model = asked(frame, models)
        answer(run, model, control, recorder, interrupts)


def asked(frame: bytes, models: Mapping[int, Model]) -> tuple[Run, Model]:
    """What a frame asks for, checked. Raises WireError, GatewayBug."""
    run = wire.read_for_worker(frame)
    model = models.get(run.model)
    if model is None:
        raise GatewayBug(f"model {run.model} is not loaded here")
    if not 0 < run.batch <= _BATCH_MAX:
        raise GatewayBug(f"batch {run.batch} has no place in the recorder")
    model.check(run)
    return run, model


def answer(run: Run, model: Model, control: socket.socket, recorder: Recorder, interrupts: Interrupts) -> None:
    """Run a batch, alone, and reply. Raises DeviceLost behind the reply."""
    recorder.note(run.batch)
    now_ns = time.monotonic_ns()
    if now_ns > run.latest_start_ns:
        ran = late(run)
    else:
        interrupts.begin(model, now_ns)
        ran = model.execute(run)
        interrupts.end()
    reply(ran, control)
    # After the reply: dying in between, the batch is blamed though it was answered, never the other way round.
    recorder.note(0)


def reply(ran: Ran, control: socket.socket) -> None:
    """Send one answer. Raises DeviceLost behind it where it says so; ConnectionError: the gateway is gone."""
    failpoints.hit("worker.before_reply")
    control.send(wire.encode(ran))
    if ran.statuses[0] is ItemStatus.DEVICE_LOST:
        raise DeviceLost(ran.detail)
    failpoints.hit("worker.after_reply")


def late(run: Run) -> Ran:
    """The reply to a batch whose time to start has passed."""
    return Ran(run.batch, [ItemStatus.LATE] * len(run.slots), 0, 0, 0)
