"""What workers hold on GPUs where NVML does not say by process: by how much a GPU's memory in use grew as they came up.

NVML knows the host's pids. In a container with pids of its own it finds no worker, or says nothing of what one holds;
then only the whole GPU's memory is known, before and after. Whatever others do there at the same time goes into it.
State: the figures of every seat before the change in hand, and every worker's footprint.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from gateway import gpus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_NOBODY: Mapping[int, int | None] = MappingProxyType({})


class Footprints:
    """`devices`: by seat, as workers are given them. Reads NVML, which may take a while: not for the event loop."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = devices
        self._before: dict[int, int] = {}
        self._sizes: dict[int, int] = {}

    def of(self, worker: int | None) -> int:
        """Bytes by which a worker's GPU filled as it came up; 0 when nobody knows, as on the CPU."""
        return 0 if worker is None else self._sizes.get(worker, 0)

    def used_size(self, seat: int) -> int | None:
        """Bytes in use on a seat's GPU, whoever has them; None when nobody can say."""
        found = gpus.memory(self._devices[seat])
        return None if found is None else found.used_size

    def mark(self, seats: Iterable[int]) -> None:
        """Workers are about to be started on these seats."""
        for seat in seats:
            used_size = self.used_size(seat)
            if used_size is not None:
                self._before[seat] = used_size

    def measure(self, workers: Mapping[int, int | None], gone: Mapping[int, int | None] = _NOBODY) -> None:
        """They are up: the worker on each marked seat. `gone`: who went before it was started, of those on the seats.

        What a worker left behind that had to go first counts as its successor's.
        """
        for seat, worker in workers.items():
            before_size, used_size = self._before.pop(seat, None), self.used_size(seat)
            if worker is not None and before_size is not None and used_size is not None:
                self._sizes[worker] = max(0, used_size - before_size + self.of(gone.get(seat)))

    def forget(self, alive: Iterable[int]) -> None:
        """Workers that are not among these are gone for good."""
        self._sizes = {worker: self._sizes[worker] for worker in alive if worker in self._sizes}
