"""Proof that an ended worker gave its memory back: what it held before, what is left after, and who holds that.

Unloading is killing, so nothing should be left. Something is when a descendant escaped the kill, when the process hangs
in the kernel, or when a driver leaks; then the operator is told by name.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.lifecycle import holdings
from gateway.scheduling.restarts import State
from gateway.scheduling.ticket import Role

if TYPE_CHECKING:
    from gateway.driver import Driver
    from gateway.lifecycle.footprints import Footprints
    from gateway.lifecycle.holdings import Holding, Process

GIVEN_BACK_SHARE_MIN = 0.99
"""Less than this of a worker's memory coming back is an error."""

GIVEN_BACK_TIMEOUT_S = 5.0
"""How long the kernel and the driver have for that once the worker was reaped."""

UNKNOWN_SHARE_MAX = 0.1
"""Up to this of a worker's device memory, more or less of a whole GPU's is anybody's doing."""

_LOOK_S = 0.05


class Departure:
    """One worker that is about to go."""

    def __init__(self, driver: Driver, index: int, footprints: Footprints) -> None:
        self._driver = driver
        self._index = index
        self._seat = driver.core.worker(index).seat
        self._footprints = footprints
        self._processes: list[Process] = []
        self._before: Holding = holdings.NOTHING
        self._rest_size: int | None = None
        """Bytes that others have on its GPU, where NVML does not say what it has itself."""

    async def look(self) -> Holding:
        """What it holds, while it lives. To be called before it is told to go."""
        child = self._driver.supervisor.children.get((Role.WORKER, self._index))
        if child is not None:
            found = await asyncio.to_thread(_look, child.pid)
            if found[1].total:
                self._processes, self._before = found
            footprint = self._footprints.of(self._index)
            if footprint and not self._before.device_memory_size:
                used_size = await asyncio.to_thread(self._footprints.used_size, self._seat)
                if used_size is not None:
                    self._rest_size = used_size - footprint
                    self._before = self._before._replace(device_memory_size=footprint)
        return self._before

    def _left(self) -> Holding:
        """What its processes hold now; where NVML does not tell by process, the device memory that nobody else is known
        to have. Blocks.
        """
        held = holdings.hold(self._processes)
        if self._rest_size is None or (used_size := self._footprints.used_size(self._seat)) is None:
            return held
        others = [worker.index for worker in self._driver.core.workers if worker.seat == self._seat]
        whole_size = self._before.device_memory_size
        left_size = min(used_size - self._rest_size - sum(map(self._footprints.of, others)), whole_size)
        return held._replace(device_memory_size=left_size if left_size > UNKNOWN_SHARE_MAX * whole_size else 0)

    async def wait_gone(self) -> GivenBack:
        """Until it is gone, or stuck; then until its memory is back, or for GIVEN_BACK_TIMEOUT_S."""
        core = self._driver.core
        # What it finishes before it goes is no event of a child, so there is nothing to wait for but time.
        while any(worker.index == self._index and worker.state is not State.STUCK for worker in core.workers):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        begun = time.monotonic()
        while True:
            after = await asyncio.to_thread(self._left)
            found = GivenBack(self._index, self._before, after, time.monotonic() - begun)
            if found.share >= GIVEN_BACK_SHARE_MIN or found.seconds >= GIVEN_BACK_TIMEOUT_S:
                return found
            await asyncio.sleep(_LOOK_S)


class GivenBack(NamedTuple):
    """What became of one worker's memory; `seconds` after it was reaped."""

    worker: int
    before: Holding
    after: Holding
    seconds: float

    @property
    def share(self) -> float:
        """How much of it came back; all of nothing did."""
        return 1.0 - self.after.total / self.before.total if self.before.total else 1.0

    @property
    def holders(self) -> list[str]:
        """Who still holds some of it, for people."""
        named = [f"{who.name} (pid {who.pid}, {size} bytes)" for who, size in self.after.by_process.items()]
        rest_size = self.after.total - sum(self.after.by_process.values())
        return [*named, f"somebody on the GPU ({rest_size} bytes; NVML does not say who)"] if rest_size else named

    def document(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "worker": self.worker,
            "before": self.before.document(),
            "after": self.after.document(),
            "given_back_share": round(self.share, 4),
            "seconds": round(self.seconds, 3),
            "holders": self.holders,
        }


def _look(pid: int) -> tuple[list[Process], Holding]:
    processes = holdings.family(pid)
    return processes, holdings.hold(processes)
