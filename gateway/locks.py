"""Who holds what only one gateway may have: a device, a unix socket's path. By flock on files that are never removed.

A lock belongs to the open file, not to the process: it ends when its last copy is closed, so SIGKILL ends it too, and a
successor that was sent a copy holds it from then on. The file's content, the holder's pid, is only for people.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from typing import TYPE_CHECKING

from gateway.errors import InvalidSettings

if TYPE_CHECKING:
    from pathlib import Path

_PID_SIZE_MAX = 20


class Lock:
    """One held lock, by its file's descriptor."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def sign(self) -> None:
        """Name this process as the holder. A full disk is no reason not to hold it."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, b"%d\n" % os.getpid(), 0)

    def close(self) -> None:
        """Let go of this copy."""
        os.close(self.fd)


def take(path: Path, what: str, advice: str) -> Lock:
    """Hold the lock in this file. Raises InvalidSettings when another gateway holds it, OSError when there is no file.

    `what` and `advice` are the refusal's words: what is taken, and what to do.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, _PID_SIZE_MAX, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise InvalidSettings(f"{what} is in use by another gateway (pid {holder}); {advice}") from None
    except BaseException:
        os.close(fd)
        raise
    lock = Lock(fd)
    lock.sign()
    return lock


def bind_unix(path: Path, what: str, advice: str, kind: int = socket.SOCK_STREAM) -> tuple[socket.socket, Lock]:
    """A unix socket bound to this path, of mode 0600 from its first moment, and the lock that says it is ours.

    What a dead gateway left at the path is removed: nobody alive has the lock.

    Raises: InvalidSettings when another gateway has it, or something else is there; OSError.
    """
    lock = take(path.with_name(path.name + ".lock"), what, advice)
    bound = socket.socket(socket.AF_UNIX, kind)
    try:
        if path.is_socket():
            path.unlink()
        before = os.umask(0o177)
        try:
            bound.bind(os.fspath(path))
        finally:
            os.umask(before)
    except OSError as error:
        bound.close()
        lock.close()
        if error.errno == errno.EADDRINUSE:
            raise InvalidSettings(f"{path} is there and is no socket; remove it, or {advice}") from None
        raise
    return bound, lock
