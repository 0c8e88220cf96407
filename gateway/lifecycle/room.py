"""How much memory each seat has for its models: measured needs against what is there. Decides by `budget`; reads.

A need is known once a model was loaded. What was never loaded is assumed to fit: it is found out by loading it.
"""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import TYPE_CHECKING

from gateway import errors, gpus, logs
from gateway.lifecycle import holdings
from gateway.lifecycle.budget import Candidate, Needs, evict, fits, identity
from gateway.lifecycle.catalogue import is_placed, key_of, name_of
from gateway.lifecycle.footprints import Footprints
from gateway.scheduling.ticket import Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from gateway.config import Settings
    from gateway.driver import Driver
    from gateway.lifecycle.catalogue import Catalogue, Key, Resident
    from gateway.lifecycle.watcher import Found

_log = logs.get("lifecycle")


class Unplaceable(Exception):
    """`found` can be on no device, or on none with the others that are wanted there; `refusal` says why."""

    def __init__(self, found: Found, refusal: errors.Refusal) -> None:
        super().__init__(refusal.detail)
        self.found = found
        self.refusal = refusal


class Room:
    """The memory of every seat. `seats`, everywhere: the worker on each, by index; None: it is empty."""

    def __init__(self, driver: Driver, settings: Settings, catalogue: Catalogue) -> None:
        self.memory_sizes: dict[int, int] = {}
        """Private memory of each seat's worker, host and device together, when last looked at."""
        self._needs = Needs()
        self._driver = driver
        self._devices = settings.devices
        self._given = driver.children.given_devices
        self.footprints = Footprints(self._given)
        self.gpu_seats = [seat for seat, device in enumerate(self._given) if device != "cpu"]
        self.gpus: dict[int, gpus.Look] = {}
        """By seat, when last looked at."""
        self._size_max = settings.device_memory_size_max
        self._may_overlap = settings.overlap == "auto"
        self._catalogue = catalogue

    def need_of(self, resident: Resident) -> int | None:
        """Bytes that a model needs on the kind of device that it was last loaded on; None: nobody knows."""
        found = [self._needs.of(resident.files, kind) for kind in dict.fromkeys(map(_kind, self._devices))]
        return max((need for need in found if need is not None), default=None)

    def check_placed(self, found: Found) -> None:
        """Raises Unplaceable when no device is to have this model."""
        if not any(is_placed(found, device) for device in self._devices):
            wanted = ", ".join(found.model.contract.residency.devices)
            detail = (
                f"{name_of(key_of(found))} is for {wanted}, and this gateway has {', '.join(self._devices)}; "
                "change residency.devices or the settings"
            )
            raise Unplaceable(found, errors.LoadFailed(detail))

    async def make(
        self,
        target: dict[Key, Found],
        fresh: Collection[Key],
        seats: Mapping[int, int | None],
    ) -> tuple[list[Found], list[Resident]]:
        """(what is to be loaded, what is to go), after lazy models were taken out of `target` where that makes room.

        Raises: Unplaceable, of those that are new the one with the largest need.
        """
        new, _ = self._catalogue.difference(target, fresh)
        for seat, worker in seats.items() if new else ():
            placed = [found for found in target.values() if is_placed(found, self._devices[seat])]
            if not any(found in new for found in placed):
                continue
            kind = _kind(self._devices[seat])
            need = self._needs.total(map(_files, placed), kind)
            capacity = await self._capacity(seat, worker)
            if capacity is None or fits(need, capacity):
                continue
            kept = [self._catalogue.residents[key_of(found)] for found in placed if found not in new]
            candidates = [
                Candidate(resident.key, self._needs.of(resident.files, kind) or 0, resident.used_ns, resident.is_lazy)
                for resident in kept
            ]
            evicted = evict(candidates, need - capacity)
            if evicted is None:
                largest = max(
                    (found for found in placed if found in new),
                    key=lambda found: self._needs.of(_files(found), kind) or 0,
                )
                detail = (
                    f"{', '.join(name_of(key_of(found)) for found in placed)} need {need} bytes together on "
                    f"{self._devices[seat]}, which has {capacity}; unload others, or see device_memory_size_max"
                )
                raise Unplaceable(largest, errors.InsufficientMemory(detail))
            for key in evicted:
                _log.info("model_evicted", model=name_of(key), seat=seat)
                del target[key]
        return self._catalogue.difference(target, fresh)

    def surplus(self) -> set[Key]:
        """Lazy models that have to go, since together they turned out to need more than `device_memory_size_max`."""
        found: set[Key] = set()
        for device in self._devices if self._size_max else ():
            kind = _kind(device)
            placed = [each for each in self._catalogue.residents.values() if each.is_placed(device)]
            need = self._needs.total((each.files for each in placed), kind)
            candidates = [
                Candidate(each.key, self._needs.of(each.files, kind) or 0, each.used_ns, each.is_lazy)
                for each in placed
            ]
            # The one that was used last stays: it was asked for, and would come back at once.
            candidates = sorted(candidates, key=lambda each: each.used)[:-1]
            found |= set(evict(candidates, need - self._size_max) or ())
        return found

    async def fits_beside(self, seat: int, worker: int, files: Iterable[str]) -> bool:
        """Whether a worker with these models may be started while the one on its seat lives."""
        if not self._may_overlap:
            return False
        need = self._needs.total(files, _kind(self._devices[seat]))
        if self._size_max:
            return fits(need + await self._held(seat, worker), self._size_max)
        return fits(need, await asyncio.to_thread(holdings.free_size, self._given[seat]))

    async def mark(self, seats: Iterable[int]) -> None:
        """Workers are about to be started on these seats."""
        await asyncio.to_thread(self.footprints.mark, self._gpus_of(seats))

    async def came_up(
        self, seats: Mapping[int, int | None], gone: Mapping[int, int | None] = MappingProxyType({})
    ) -> None:
        """They are up, and whoever was there before still is, but for those who had to go first."""
        workers = {seat: seats[seat] for seat in self._gpus_of(seats)}
        await asyncio.to_thread(self.footprints.measure, workers, gone)
        self.footprints.forget([worker.index for worker in self._driver.core.workers])

    async def sample(self) -> None:
        """Look at the GPUs, for the metrics."""
        self.gpus = await asyncio.to_thread(lambda: {seat: gpus.look(self._given[seat]) for seat in self.gpu_seats})

    def _gpus_of(self, seats: Iterable[int]) -> list[int]:
        return [seat for seat in seats if seat in self.gpu_seats]

    async def measure(self, seats: Mapping[int, int | None]) -> None:
        """Learn from what is loaded now."""
        states, core = self._driver.children.states, self._driver.core
        self.memory_sizes = {}
        for seat, worker in seats.items():
            if worker is None or not core.worker(worker).ready:
                continue
            held = self.memory_sizes[seat] = await self._held(seat, worker)
            loaded = {
                resident.files: states[resident.line.index].loaded[worker].memory_size
                for resident in self._catalogue.residents.values()
                if worker in states[resident.line.index].loaded
            }
            if _kind(self._devices[seat]) == "cpu":
                self._learn("cpu", loaded)
                self._needs.base_measured("cpu", max(0, held - sum(loaded.values())))
            elif held:
                self._learn(_kind(self._devices[seat]), self._shared_out(held, loaded, _kind(self._devices[seat])))

    def _learn(self, kind: str, loaded: Mapping[str, int]) -> None:
        for files, size in loaded.items():
            self._needs.measured(files, kind, size)

    def _shared_out(self, held: int, loaded: Iterable[str], kind: str) -> dict[str, int]:
        """Of device memory only the whole process' is known: what is beyond known needs is the new models', alike."""
        known = {files: need for files in loaded if (need := self._needs.of(files, kind)) is not None}
        new = [files for files in loaded if files not in known]
        return dict.fromkeys(new, max(0, held - sum(known.values())) // max(1, len(new)))

    async def _capacity(self, seat: int, worker: int | None) -> int | None:
        """Bytes that one worker may take on a seat, once its present one is gone; None: nobody knows."""
        if self._size_max:
            return self._size_max
        free = await asyncio.to_thread(holdings.free_size, self._given[seat])
        return None if free is None else free + await self._held(seat, worker)

    async def _held(self, seat: int, worker: int | None) -> int:
        """Bytes that a worker holds of what its seat's device has: host memory, or the device's own."""
        child = None if worker is None else self._driver.supervisor.children.get((Role.WORKER, worker))
        if child is None:
            return 0
        held = await asyncio.to_thread(lambda: holdings.hold(holdings.family(child.pid)))
        if _kind(self._devices[seat]) == "cpu":
            return held.memory_size
        return held.device_memory_size or self.footprints.of(worker)


def _files(found: Found) -> str:
    return identity(found.signature)


def _kind(device: str) -> str:
    return device.partition(":")[0]
