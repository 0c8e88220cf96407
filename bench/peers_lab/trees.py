"""What a server's processes cost together: CPU time and proportional memory, over the whole tree.

Processes are found by a mark in their environment, which children inherit, and not by their parents: Ray's outlive and
leave theirs, and a double fork would hide a server's cost. One that has ended takes its CPU time with it: the account
is a lower bound for a peer that ends processes between two looks, and exact for one that keeps them, as all here do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from bench import rig

MARK = "PEER_MARK"
_END_TIMEOUT_S = 20.0
_POLL_S = 0.05


def marked(mark: str) -> list[int]:
    """Pids of all processes that were started with this mark."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return sorted(found)


def cpu_ns(mark: str) -> dict[int, int]:
    """CPU time that each of them has used so far, in ns, by pid."""
    found: dict[int, int] = {}
    for pid in marked(mark):
        with contextlib.suppress(OSError):
            found[pid] = rig.cpu_ns(pid)
    return found


def spent_ns(before: dict[int, int], after: dict[int, int]) -> int:
    """CPU time between two looks: of those that were there at both, and all of those that came since."""
    return sum(used - before.get(pid, 0) for pid, used in after.items())


def pss(mark: str) -> int:
    """Proportional set size of all of them together, in bytes: shared pages count once."""
    found = 0
    for pid in marked(mark):
        with contextlib.suppress(OSError):
            found += _pss(pid)
    return found


def end(mark: str) -> None:
    """End them all: asked first, then killed. They carry our mark, so they are ours to end."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        limit = time.monotonic() + _END_TIMEOUT_S
        while marked(mark) and time.monotonic() < limit:
            time.sleep(_POLL_S)


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
