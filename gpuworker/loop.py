"""The worker's loop: a frame in, a batch run, a frame out, until the gateway closes the socket. One thread, no clock of
its own but the one that says a batch is late.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gpuworker.model import GatewayBug
from shm import wire
from shm.wire import ItemStatus, Ran

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from gpuworker.model import Model
    from shm.recorder import Recorder
    from shm.wire import Run

_BATCH_MAX = (1 << 64) - 1
"""What the recorder's word holds."""


def serve(control: socket.socket, models: Mapping[int, Model], recorder: Recorder) -> None:
    """Answer every Run with a Ran, in order; return when the gateway is gone.

    Raises:
        WireError, GatewayBug: a frame that no correct gateway sends.
    """
    while frame := control.recv(wire.FRAME_SIZE_MAX):
        run = wire.read_for_worker(frame)
        model = models.get(run.model)
        if model is None:
            raise GatewayBug(f"model {run.model} is not loaded here")
        if not 0 < run.batch <= _BATCH_MAX:
            raise GatewayBug(f"batch {run.batch} has no place in the recorder")
        model.check(run)
        recorder.note(run.batch)
        control.send(wire.encode(late(run) if time.monotonic_ns() > run.latest_start_ns else model.execute(run)))
        # After the reply: dying in between, the batch is blamed though it was answered, never the other way round.
        recorder.note(0)


def late(run: Run) -> Ran:
    """The reply to a batch whose time to start has passed."""
    return Ran(run.batch, [ItemStatus.LATE] * len(run.slots), 0, 0, 0)
