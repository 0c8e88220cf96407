"""Spawns, watches, kills and reaps children. No policy: when to do any of it is the core's decision.

A child is a fresh interpreter that inherits one list. Its death is seen through a pidfd, its last words are read, and
only then is it reported: whoever hears of it may take back everything that it held.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import logs
from gateway.link import Link, socket_pair
from shm import failpoints, layout
from shm.recorder import Recorder
from shm.segment import Segment

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from gateway.scheduling.ticket import Role
    from shm.heritage import Heritage

_log = logs.get("supervisor")

_CRASH_SIGNALS = frozenset(
    {
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGPROF,
        signal.SIGSEGV,
        signal.SIGSYS,
        signal.SIGXCPU,
    }
)
"""Deaths that a child brings on itself by what it is working on. SIGKILL is somebody else's doing."""


class Obituary:
    """What is known about a dead child: `blamed` is what its recorder named last, `guilty` whether a signal that it
    brought on itself killed it, `crashed` whether that or an exit of its own did.
    """

    __slots__ = ("blamed", "cause", "crashed", "guilty")

    def __init__(self, return_code: int, blamed: int) -> None:
        self.blamed = blamed
        self.guilty = -return_code in _CRASH_SIGNALS
        self.crashed = self.guilty or return_code > 0
        if return_code >= 0:
            self.cause = f"exit {return_code}"
        elif -return_code == signal.SIGPROF:
            self.cause = "SIGPROF (cpu budget)"
        else:
            self.cause = _signal_name(-return_code)


def _is_stopped(pid: int) -> bool:
    """Whether a process of ours, not reaped yet, is in the state T."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].lstrip().startswith(b"T")


def _signal_name(number: int) -> str:
    """Of any signal; real-time ones have no names."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Child:
    """One life of one child."""

    __slots__ = (
        "_pidfd",
        "_process",
        "_recorder",
        "_stopped",
        "incarnation",
        "index",
        "link",
        "role",
        "seat",
        "started_ns",
        "wanted",
    )

    def __init__(
        self,
        role: Role,
        index: int,
        seat: int,
        incarnation: int,
        process: subprocess.Popen[bytes],
        pidfd: int,
        link: Link,
        recorder: Segment,
    ) -> None:
        self.role = role
        self.index = index
        self.wanted = False
        """Whether it was killed because its time was over, rather than for a fault."""
        self.seat = seat
        """Of a worker the device's place in the settings, of a decoder its index."""
        self.incarnation = incarnation
        """Of those that lived on this seat."""
        self.link = link
        self.started_ns = time.monotonic_ns()
        self._process = process
        self._recorder = recorder
        self._pidfd = pidfd
        self._stopped = False

    @property
    def pid(self) -> int:
        """For logs and tests; signals go through `kill`."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, to it and to whatever it started: its process group."""
        self.send_signal(signal.SIGKILL)
        # It leads its group, and was not reaped: nobody else can have its number.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal by pidfd: never to somebody else who got its number."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def stays_stopped(self) -> bool:
        """Whether it is stopped (SIGSTOP), and was when this was asked last: it will not go on by itself."""
        before, self._stopped = self._stopped, _is_stopped(self.pid)
        return before and self._stopped

    def raise_address_space(self, size: int) -> None:
        """Let it map `size` bytes more; negative: fewer. Raises OSError."""
        soft, hard = resource.prlimit(self.pid, resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            resource.prlimit(self.pid, resource.RLIMIT_AS, (max(0, soft + size), hard))

    def watch(self, loop: asyncio.AbstractEventLoop, on_death: Callable[[Child, Obituary], None]) -> None:
        """Call `on_death` once, after the child was reaped and its last frames were read."""

        def reap() -> None:
            # Its end was seen and it is not reaped yet, so that its group is still its own: nobody of it lives on.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            return_code = self._process.poll()
            if return_code is None:
                return
            loop.remove_reader(self._pidfd)
            try:
                self.link.drain()
            except Exception:  # noqa: BLE001 - whatever its last words do, it is buried
                _log.exception("last_words_failed", role=self.role.value, index=self.index)
            self.link.close()
            os.close(self._pidfd)
            obituary = Obituary(return_code, Recorder(self._recorder).last())
            self._recorder.close()
            failpoints.hit("gateway.after_reap")
            on_death(self, obituary)

        loop.add_reader(self._pidfd, reap)


class Supervisor:
    """The children that are alive."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._incarnations: dict[tuple[Role, int], int] = {}
        self.children: dict[tuple[Role, int], Child] = {}
        self.stopping = False
        """Whether children are meant to die now."""

    def spawn(
        self,
        role: Role,
        index: int,
        *,
        seat: int,
        module: str,
        heritage: Callable[[int, Segment], Heritage],
        on_frame: Callable[[Child, memoryview], None],
        on_eof: Callable[[Child], None],
        on_death: Callable[[Child, Obituary], None],
    ) -> Child:
        """Start `python -m module` with what `heritage(socket fd, recorder)` lists. Raises OSError when it cannot.

        `on_eof` is called when it closes its socket, which a dead one does first; `on_death` once it was reaped.
        """
        with contextlib.ExitStack() as undo:
            failpoints.hit("gateway.before_spawn")
            ours, theirs = socket_pair()
            undo.callback(ours.close)
            with theirs:
                recorder = Segment.create(f"recorder-{role.value}-{index}", layout.RECORDER_SIZE)
                undo.callback(recorder.close)
                process = _start(module, heritage(theirs.fileno(), recorder))
            undo.callback(process.wait)
            undo.callback(process.kill)
            failpoints.hit("gateway.after_spawn")
            pidfd = os.pidfd_open(process.pid)
            undo.pop_all()
        key = (role, index)
        life = (role, seat)
        self._incarnations[life] = self._incarnations.get(life, 0) + 1

        def read(frame: memoryview) -> None:
            on_frame(child, frame)

        def closed() -> None:
            on_eof(child)
            child.kill()

        link = Link(self._loop, ours, read, closed)
        child = Child(role, index, seat, self._incarnations[life], process, pidfd, link, recorder)
        self.children[key] = child

        def buried(dead: Child, obituary: Obituary) -> None:
            del self.children[key]
            wanted = self.stopping or dead.wanted
            report = _log.info if wanted else _log.warning
            report(
                "child_ended" if wanted else "child_died",
                role=role.value,
                index=index,
                seat=seat,
                pid=dead.pid,
                incarnation=dead.incarnation,
                cause=obituary.cause,
                lived_s=round((time.monotonic_ns() - dead.started_ns) / 1e9, 3),
            )
            on_death(dead, obituary)

        child.watch(self._loop, buried)
        _log.info("child_started", role=role.value, index=index, pid=child.pid, incarnation=child.incarnation)
        return child

    def kill(self, role: Role, index: int, reason: str, *, wanted: bool = False) -> None:
        """SIGKILL a child, if it lives; its death is reported as any other, unless it is `wanted`."""
        child = self.children.get((role, index))
        if child is not None:
            child.wanted = wanted
            report = _log.info if wanted else _log.warning
            report("child_killed", role=role.value, index=index, pid=child.pid, reason=reason)
            child.kill()


def _start(module: str, heritage: Heritage) -> subprocess.Popen[bytes]:
    """A fresh interpreter that runs `module` with that heritage. Raises OSError."""
    list_fd = heritage.bequeath()
    try:
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-P", "-m", module, str(list_fd)],
            pass_fds=(list_fd, *heritage.fds()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C at a terminal is the gateway's to handle, not the children's
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    finally:
        os.close(list_fd)
