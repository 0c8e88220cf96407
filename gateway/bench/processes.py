"""The processes of a server on this machine and their CPU time, from /proc. Whose they are is not asked: what cannot be
read is not there.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

COUNT_MAX = 512
_LISTENING = "0A"
"""State of a socket in /proc/net/tcp."""


class Process(NamedTuple):
    """`role`: gateway, decoder or worker of a Penstock server, else the program's name."""

    pid: int
    role: str


def is_local(host: str) -> bool:
    """Whether an address is this machine's: only on one's own can one listen."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(place)
    except OSError:
        return False
    return True


def find(port: int, pids: Iterable[int] = ()) -> list[Process]:
    """The processes that listen on a TCP port, or `pids`, and all their descendants; ourselves left out."""
    found: dict[int, Process] = {}
    waiting = sorted(pids) or _listeners(port)
    while waiting and len(found) < COUNT_MAX:
        pid = waiting.pop(0)
        # The server may be our parent: what it runs for itself is its own, what we do is not.
        role = _role(pid) if pid != os.getpid() else None
        if pid not in found and role is not None:
            found[pid] = Process(pid, role)
            waiting += _children(pid)
    return list(found.values())


def cpu_ns(pid: int) -> int | None:
    """CPU time of all its threads so far, None when it is gone or not ours to see."""
    total = 0
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return None
    for thread in threads:
        with contextlib.suppress(OSError):
            total += int((thread / "schedstat").read_text().split()[0])
    return total


def waited_ns() -> int:
    """How long our main thread was ready to run and had no core, so far."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/schedstat").read_text().split()[1])
    return 0


def _listeners(port: int) -> list[int]:
    """Pids that hold a listening socket of this port."""
    inodes: set[str] = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTENING and int(words[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{words[9]}]")
    found = []
    for folder in Path("/proc").iterdir():
        if inodes and folder.name.isdigit():
            with contextlib.suppress(OSError):
                if any(_points_at(link, inodes) for link in (folder / "fd").iterdir()):
                    found.append(int(folder.name))
    return sorted(found)


def _points_at(link: Path, inodes: set[str]) -> bool:
    try:
        return str(link.readlink()) in inodes
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (thread / "children").read_text().split())
    return found


def _role(pid: int) -> str | None:
    """None for a process that is gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return None
    if b"gateway.decoding" in words:
        return "decoder"
    if b"gpuworker" in words:
        return "worker"
    if b"serve" in words and (b"gateway" in words or any(word.endswith(b"/penstock") for word in words)):
        return "gateway"
    return name
