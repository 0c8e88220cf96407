"""A worker's birth, step by step: segments → models → ready → loop. Imported once the environment is settled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuworker import device as devices
from gpuworker import loop, pipeline
from gpuworker.backend import Setup
from gpuworker.interrupts import Interrupts
from gpuworker.loading import load
from gpuworker.model import GatewayBug
from shm import failpoints, wire
from shm.recorder import Recorder

if TYPE_CHECKING:
    from gpuworker.model import Model
    from shm.heritage import Heritage


def work(heritage: Heritage) -> None:
    """Load every model, say so, and serve until the gateway is gone.

    Raises:
        WireError, GatewayBug: the gateway is broken.
        ConnectionError: it is gone in the middle of a message.
        DeviceLost: nothing can be run on the device by this process any more.
    """
    try:
        device = devices.parse(heritage.device)
    except ValueError as error:
        raise GatewayBug(str(error)) from None
    device.hide_others()
    recorder = Recorder(heritage.recorder.attach())
    interrupts = Interrupts()
    interrupts.watch()
    with heritage.open_socket() as control:
        setup = Setup(device, heritage.thread_count, heritage.device_grant)
        models: dict[int, Model] = {}
        for grant in heritage.models:
            model = load(grant, setup, lambda message: control.sendall(wire.encode(message)))
            if model is not None:
                models[grant.index] = model
        label = devices.label(device, heritage.thread_count)
        failpoints.hit("worker.before_ready")
        control.send(wire.encode(wire.WorkerReady(label, devices.rss_size(), devices.memory_size())))
        overlapped = any(model.depth > 1 for model in models.values())
        serve = pipeline.serve if overlapped else loop.serve
        serve(control, models, recorder, interrupts)
