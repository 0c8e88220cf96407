"""What a worker and its descendants hold: private memory by the kernel's word, device memory by NVML's. Only reads.

Read before a kill and after it, so that "unloaded" can be proved. A gateway without NVML knows nothing of device
memory, and says nothing of it; where NVML names other pids than ours, `footprints` has what can be known.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gateway import gpus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROCESS_COUNT_MAX = 1024
"""Processes of one worker that are looked at."""

_PRIVATE = frozenset({"Private_Clean", "Private_Dirty", "Private_Hugetlb", "Swap"})
_STAT_GROUP, _STAT_START = 2, 19
"""Fields of /proc/PID/stat behind the name: the process group, and when it was started. Source: proc(5)."""


class Process(NamedTuple):
    """One process, for good: a pid alone is given to somebody else later. `name`: for people."""

    pid: int
    start: str
    name: str


class Holding(NamedTuple):
    """What some processes hold, in bytes."""

    memory_size: int
    device_memory_size: int
    by_process: dict[Process, int]
    """Both together, of those that hold any."""

    @property
    def total(self) -> int:
        """Host and device memory together."""
        return self.memory_size + self.device_memory_size

    def document(self) -> dict[str, int]:
        """As plain data."""
        return {"memory_size": self.memory_size, "device_memory_size": self.device_memory_size}


NOTHING = Holding(0, 0, {})


def find_process(pid: int) -> Process | None:
    """Who has this pid now; None when nobody does, or only a dead body."""
    found = _stat(pid)
    return None if found is None else Process(pid, found[1][_STAT_START], found[0])


def family(pid: int) -> list[Process]:
    """A worker, its descendants, and whoever else is in its process group."""
    pids: dict[int, None] = {pid: None}
    waiting = [pid]
    while waiting and len(pids) < PROCESS_COUNT_MAX:
        for child in _children(waiting.pop()):
            if child not in pids:
                pids[child] = None
                waiting.append(child)
    for other in _everybody():
        found = _stat(other)
        if found is not None and found[1][_STAT_GROUP] == str(pid):
            pids[other] = None
    return [found for found in map(find_process, pids) if found is not None]


def hold(processes: Iterable[Process]) -> Holding:
    """What those of `processes` that still live hold."""
    device_sizes = gpus.held_sizes()
    memory_size = device_memory_size = 0
    by_process = {}
    for process in processes:
        # NVML may know a process that the kernel has begun to bury; its memory is not back yet.
        on_device = device_sizes.get(process.pid, 0)
        private = private_size(process.pid) if find_process(process.pid) == process else 0
        memory_size += private
        device_memory_size += on_device
        if private or on_device:
            by_process[process] = private + on_device
    return Holding(memory_size, device_memory_size, by_process)


def private_size(pid: int) -> int:
    """Bytes that would come back if this process ended, swapped ones too; 0 when it is not there."""
    try:
        lines = [line.partition(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
        return sum(int(rest.split()[0]) * 1024 for key, _, rest in lines if key in _PRIVATE)
    except PermissionError:
        return _unshared_size(pid)  # A kernel that shows no more of one process to another, of whatever user.
    except (OSError, ValueError):
        return 0


def _unshared_size(pid: int) -> int:
    """About the same, by what everybody may read: resident pages less those of files and segments."""
    with contextlib.suppress(OSError, ValueError):
        resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    return 0


def available_size() -> int | None:
    """Bytes of host memory that could be used without swapping, within this container's limit; None if nobody says."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):
        root = Path("/sys/fs/cgroup")
        limit = (root / "memory.max").read_text().strip()
        if limit != "max":
            stat = dict(line.split() for line in (root / "memory.stat").read_text().splitlines())
            used = int((root / "memory.current").read_text()) - int(stat["inactive_file"])
            found.append(max(0, int(limit) - used))
    return min(found, default=None)


def free_size(device: str) -> int | None:
    """Bytes that are free on 'cpu', or on a GPU or slice as `gateway.gpus.resolve` gives it; None: nobody can say."""
    if device == "cpu":
        return available_size()
    found = gpus.memory(device)
    return None if found is None else found.free_size


# -- /proc ---------------------------------------------------------------------------------------------------------


def _stat(pid: int) -> tuple[str, list[str]] | None:
    """(name, fields behind it) of a process that is alive."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name is in parentheses and may hold any; the last one closes it.
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return None if not fields or fields[0] in "ZX" else (name, fields)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def _everybody() -> Iterator[int]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            yield int(folder.name)
