"""l(b) of one model on one device: real workers that load it, warm it and time it, at ever larger sizes.

A worker measures the sizes that its contract names, so each step of the growth is a worker of its own. The growth ends
where a larger batch is no faster per image, or takes longer than the deadline, or the time is up.
"""

from __future__ import annotations

import asyncio
import math
import os
from typing import TYPE_CHECKING

import msgspec

from gateway import gpus
from gateway.errors import InvalidModel
from gateway.memory import Memory, device_grant
from gateway.scheduling.ticket import Role
from gateway.tuning.crew import supervised
from shm import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.config import Settings
    from gateway.models.repository import ModelVersion
    from gateway.supervisor import Child, Obituary
    from shm.wire import ProfilePoint

STEPS = ((1, 2), (4, 8), (16, 32), (64, 128), (256,))
"""Sizes that one worker measures together."""

GAIN_MIN = 1.05
"""Growth goes on while a step has this many times the images/s of the one before."""

BATCH_PIXELS_SIZE_MAX = 1 << 30
"""Bytes of a batch as float32 at most: growth does not try the machine's memory."""

BODIES_SIZE = 4096
"""Bytes of the bodies segment, which a worker has no use for."""


class Refused(InvalidModel):
    """The worker refuses the model at these sizes, or dies of it."""


class TooSlow(Exception):
    """The time was up before the worker was through."""


async def measure(
    model: ModelVersion, sizes: Sequence[int], settings: Settings, timeout_s: float, progress: Callable[[str], None]
) -> list[ProfilePoint]:
    """Load `model` in a worker on the settings' first device, with these sizes. Raises Refused, TooSlow."""
    batching = msgspec.structs.replace(model.contract.batching, sizes=tuple(sizes))
    contract = msgspec.structs.replace(model.contract, batching=batching)
    found: asyncio.Future[list[ProfilePoint]] = asyncio.get_running_loop().create_future()

    def on_frame(_child: Child, frame: memoryview) -> None:
        message = wire.read_from_worker(frame)
        if isinstance(message, wire.Loading):
            progress(f"batches of {', '.join(map(str, sizes))}: {message.stage} {message.share:.0%}")
        elif isinstance(message, wire.Loaded) and not found.done():
            found.set_result(message.profile)
        elif isinstance(message, wire.LoadFailed) and not found.done():
            found.set_exception(Refused(message.detail))

    def on_death(_child: Child, obituary: Obituary) -> None:
        if not found.done():
            found.set_exception(Refused(f"the worker died while it loaded the model ({obituary.cause})"))

    # One slot: a worker that only measures is given no images.
    memory = Memory(bodies_size=BODIES_SIZE)
    try:
        memory.add(0, msgspec.structs.replace(model, contract=contract), 1)
        async with supervised() as supervisor:
            supervisor.spawn(
                Role.WORKER,
                0,
                seat=0,
                module="gpuworker",
                heritage=lambda fd, recorder: memory.worker_heritage(
                    os.getpid(),
                    fd,
                    recorder,
                    models=[0],
                    device=gpus.resolve(settings.devices[:1], os.environ)[0],
                    thread_count=settings.worker_thread_count(),
                    device_grant=device_grant(settings),
                ),
                on_frame=on_frame,
                on_eof=lambda _child: None,
                on_death=on_death,
            )
            progress(f"batches of {', '.join(map(str, sizes))}: starting a worker")
            return await asyncio.wait_for(found, timeout_s)
    except TimeoutError:
        named = ", ".join(map(str, sizes))
        raise TooSlow(f"batches of {named} were not measured in {timeout_s:.0f} s; give it more --minutes") from None
    finally:
        memory.close()


async def grow(
    model: ModelVersion,
    settings: Settings,
    *,
    deadline_ms: float,
    seconds: float,
    note: Callable[[Sequence[ProfilePoint]], None],
    progress: Callable[[str], None],
) -> None:
    """Measure sizes from 1 upwards and tell each step's points to `note`, for `seconds` at most.

    Raises: Refused, TooSlow when not even the smallest could be measured.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    points: list[ProfilePoint] = []
    for step in STEPS:
        sizes = [size for size in step if size * _row_size(model) <= BATCH_PIXELS_SIZE_MAX or size == 1]
        if not sizes:
            return
        try:
            try:
                step_points = await measure(model, sizes, settings, max(0.0, end - loop.time()), progress)
            except Refused:
                # A graph may be for batches of one alone, and memory may do for the smaller of two.
                if len(sizes) == 1:
                    raise
                step_points = await measure(model, sizes[:1], settings, max(0.0, end - loop.time()), progress)
        except (Refused, TooSlow):
            if not points:
                raise
            return
        points += step_points
        note(step_points)
        if len(step_points) < len(step) or not worth_growing(points, len(step_points), deadline_ms):
            return
        # The next step is about four times this one's work.
        if loop.time() >= end:
            return


def worth_growing(points: Sequence[ProfilePoint], count: int, deadline_ms: float) -> bool:
    """Whether the last `count` points say that larger batches could be of use."""
    if points[-1].p50_ns > deadline_ms * 1e6:
        return False
    # The first step has nothing before it but its own first size.
    earlier = points[:-count] or points[:1]
    before = max(point.size / max(1, point.p50_ns) for point in earlier)
    now = max(point.size / max(1, point.p50_ns) for point in points[-count:])
    return now >= GAIN_MIN * before


def _row_size(model: ModelVersion) -> int:
    """Bytes of one image's tensor as float32."""
    return 4 * math.prod(model.contract.input.shape)
