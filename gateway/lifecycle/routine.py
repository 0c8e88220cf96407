"""What is asked for by nobody in particular: changes of the repository, and models that have been idle long enough."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from gateway import errors, logs
from gateway.errors import InvalidModel
from gateway.lifecycle.catalogue import name_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.driver import Driver
    from gateway.lifecycle.catalogue import Catalogue, Key
    from gateway.lifecycle.operations import Operation
    from gateway.lifecycle.turnover import Turnover
    from gateway.lifecycle.watcher import Look

    Work = Callable[[Operation], Awaitable[None]]

_log = logs.get("lifecycle")

USE_LOOK_S = 0.25
"""How often the use of lazy models is looked at."""

GPU_LOOK_S = 2.0
"""How often the memory and the power of GPUs are looked at."""

LOADS_MAX = 64
"""Attempts of one evaluation: each leaves out one model that could not be loaded."""


class Routine:
    """Looks again and again, and asks for what follows, once at a time. `ask` puts work into the queue."""

    def __init__(
        self, driver: Driver, catalogue: Catalogue, turnover: Turnover, *, ask: Callable[[str, str, Work], Operation]
    ) -> None:
        self._driver = driver
        self._catalogue = catalogue
        self._turnover = turnover
        self._ask = ask
        self._asked: dict[str, Operation] = {}
        self._faults: dict[tuple[str, int], str] = {}

    async def watch(self, interval_s: float, look: Callable[[], Awaitable[Look]]) -> None:
        """Follow the repository until cancelled. One that cannot be read changes nothing."""
        unreadable = ""
        while True:
            await asyncio.sleep(interval_s)
            try:
                found = await look()
            except InvalidModel as error:
                if str(error) != unreadable:
                    _log.error("repository_unreadable", detail=str(error))
                unreadable = str(error)
                continue
            unreadable = ""
            for key, fault in found.faults.items():
                if self._faults.get(key) != fault:
                    _log.warning("version_unreadable", model=name_of(key), detail=fault)
            self._faults = found.faults
            if found != self._catalogue.look:
                self._ask_once("evaluate", lambda operation, found=found: self.follow(operation, found))  # type: ignore[misc]

    async def follow(self, operation: Operation, look: Look) -> None:
        """Make what is served what the repository says. What cannot be loaded is left out, and the rest is done.

        Raises: LoadFailed, InsufficientMemory, with all that was left out.
        """
        self._catalogue.look = look
        refused: dict[str, errors.Refusal] = {}
        for _ in range(LOADS_MAX):
            failures = dict(self._catalogue.failures)
            try:
                await self._turnover.perform(operation, {})
                break
            except (errors.LoadFailed, errors.InsufficientMemory) as refusal:
                refused[refusal.detail] = refusal
                if self._catalogue.failures == failures:
                    break  # nobody is to blame, so that nothing would be left out the next time
        if refused:
            first = next(iter(refused.values()))
            raise type(first)("; ".join(refused))

    async def look_at_use(self) -> None:
        """Have idle models unloaded, until cancelled."""
        while True:
            await asyncio.sleep(USE_LOOK_S)
            now_ns = time.monotonic_ns()
            for resident in self._catalogue.residents.values():
                if resident.is_lazy:
                    counts = self._driver.metrics.models[resident.line.index]
                    live = 0 if self._driver.core.is_empty(resident.line) else now_ns
                    resident.used(sum(counts.requests.values()) + live, now_ns)
            if self._idle():
                self._ask_once("unload_idle", lambda operation: self._unload(operation, self._idle()))
            elif self._turnover.room.surplus():
                self._ask_once("evict", lambda operation: self._unload(operation, self._turnover.room.surplus()))

    async def look_at_gpus(self) -> None:
        """Keep what the metrics say of GPUs fresh, until cancelled."""
        while True:
            await self._turnover.room.sample()
            await asyncio.sleep(GPU_LOOK_S)

    def _idle(self) -> set[Key]:
        now_ns = time.monotonic_ns()
        return {resident.key for resident in self._catalogue.residents.values() if resident.is_idle(now_ns)}

    async def _unload(self, operation: Operation, keys: set[Key]) -> None:
        """Those that still have to go, now that it is this operation's turn."""
        await self._turnover.perform(operation, {}, gone=keys)

    def _ask_once(self, kind: str, work: Work) -> None:
        """Unless the last one of this kind has not ended, or too much is asked for already: then at the next look."""
        last = self._asked.get(kind)
        if last is None or last.is_ended:
            try:
                self._asked[kind] = self._ask(kind, "", work)
            except (errors.Overloaded, errors.Draining):
                _log.warning("operation_put_off", kind=kind)
