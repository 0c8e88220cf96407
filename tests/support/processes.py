"""Processes seen from outside: whose children they are, when they are gone, and what they use."""

from __future__ import annotations

import os
import select
import time

from tests.support.gateways import all_children


def descendants(pid: int) -> list[int]:
    """Pids of the children of a process, of theirs, and so on."""
    found = all_children(pid)
    return found + [below for child in found for below in descendants(child)]


def watch(pids: list[int]) -> dict[int, int]:
    """pid → pidfd."""
    return {pid: os.pidfd_open(pid) for pid in pids}


def assert_gone_within(fds: dict[int, int], seconds: float) -> None:
    end = time.monotonic() + seconds
    for pid, fd in fds.items():
        ready, _, _ = select.select([fd], [], [], max(0.0, end - time.monotonic()))
        os.close(fd)
        assert ready, f"child {pid} outlived the gateway"
