"""Wakes an event loop at an absolute time, to some 50 µs; the loops' own timers count whole milliseconds."""

from __future__ import annotations

import ctypes
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_ABSOLUTE = 1
"""TFD_TIMER_ABSTIME."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Times(ctypes.Structure):
    """`struct itimerspec`: interval, then first expiry, each in seconds and nanoseconds."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    )


class Alarm:
    """A timerfd in a loop. It rings once for each time that is set; `ring` is called from the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        # Python 3.13 has this in `os`; the numbers of its flags are those of open(2).
        self._fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._times = _Times()
        self._loop = loop
        self._ring = ring
        loop.add_reader(self._fd, self._read)

    def set(self, at_s: float) -> None:
        """Ring at a time of `time.monotonic()`; one that has passed rings at once. Replaces the time set before."""
        at_ns = max(1, int(at_s * 1e9))  # 0 would disarm it
        self._times.first_s, self._times.first_ns = divmod(at_ns, 1_000_000_000)
        _libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(self._times), None)

    def close(self) -> None:
        """Give the fd back."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _read(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # Set anew between its ringing and now.
        self._ring()
