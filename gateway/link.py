"""One control socket to one child: frames out, frames in. No policy, no meaning.

A frame that the socket cannot take now waits in order; how many can is bounded by what the core lets a child hold.
"""

from __future__ import annotations

import array
import collections
import contextlib
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from shm import wire

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_SEND_BUFFER_SIZE = 1 << 20
"""Bytes asked of the kernel for frames on their way to a child."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """(ours, the child's): SOCK_SEQPACKET, so that a frame arrives whole or not at all."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_SIZE)
    return ours, theirs


class _Waiting(NamedTuple):
    """A frame that the socket has not taken yet, and the descriptor that goes with it, our own copy; -1 for none."""

    frame: bytes
    fd: int = -1


class Link:
    """The gateway's end of one child's socket.

    `on_frame` gets a view that is valid during the call only; `on_eof` is called once, when the child closed its end.
    """

    __slots__ = ("_backlog", "_buffer", "_eof", "_loop", "_on_eof", "_on_frame", "_socket", "_view")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ours: socket.socket,
        on_frame: Callable[[memoryview], None],
        on_eof: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._socket = ours
        self._on_frame = on_frame
        self._on_eof = on_eof
        self._buffer = bytearray(wire.FRAME_SIZE_MAX)
        self._view = memoryview(self._buffer)
        self._backlog: collections.deque[_Waiting] = collections.deque()
        self._eof = False
        loop.add_reader(ours.fileno(), self._readable)

    @property
    def backlog_count(self) -> int:
        """Frames that the socket has not taken yet."""
        return len(self._backlog)

    def send(self, frame: bytes) -> None:
        """Send one frame, now or as soon as the socket takes it. A dead peer is not an error here: its death is news
        that comes by another way. Raises OSError when the kernel refuses the frame for another reason.
        """
        if self._backlog:
            self._backlog.append(_Waiting(frame))
            return
        if self._socket.fileno() < 0:
            return
        try:
            self._socket.send(frame)
        except (BlockingIOError, InterruptedError):
            self._wait(_Waiting(frame))
        except ConnectionError:
            return

    def send_with_fd(self, frame: bytes, fd: int) -> None:
        """Send one frame with a descriptor, in its place among the others. `fd` stays the caller's, who may close it at
        once. Raises OSError when it cannot be kept until the socket takes it, or the kernel refuses the frame.
        """
        if self._socket.fileno() < 0:
            return
        if self._backlog:
            self._backlog.append(_Waiting(frame, os.dup(fd)))
            return
        try:
            self._send_now(_Waiting(frame, fd))
        except (BlockingIOError, InterruptedError):
            self._wait(_Waiting(frame, os.dup(fd)))
        except ConnectionError:
            return

    def _send_now(self, waiting: _Waiting) -> None:
        """Give one frame to the socket. Raises BlockingIOError, and OSError."""
        if waiting.fd < 0:
            self._socket.send(waiting.frame)
        else:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [waiting.fd]))
            self._socket.sendmsg([waiting.frame], [rights])

    def _wait(self, waiting: _Waiting) -> None:
        """Keep the first frame that the socket does not take."""
        self._backlog.append(waiting)
        self._loop.add_writer(self._socket.fileno(), self._writable)

    def _forget_backlog(self) -> None:
        """Give up what waits, with its descriptors."""
        for waiting in self._backlog:
            if waiting.fd >= 0:
                os.close(waiting.fd)
        self._backlog.clear()

    def drain(self) -> None:
        """Read every frame that is already there: a child's last words, before it is buried."""
        while self._socket.fileno() >= 0 and not self._eof and self._read_one():
            pass

    def close(self) -> None:
        """Stop reading and writing, and close the socket."""
        if self._socket.fileno() < 0:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._forget_backlog()
        self._socket.close()

    def _readable(self) -> None:
        # One frame: the loop calls again while there are more, and a read that finds nothing costs an exception.
        self._read_one()

    def _read_one(self) -> bool:
        """Read one frame; False when there is none."""
        try:
            size = self._socket.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionResetError:
            # The peer died with frames of ours unread. The kernel says so once, before the last words, not instead.
            return True
        except OSError:
            size = 0
        if size == 0:
            self._eof = True
            self._loop.remove_reader(self._socket.fileno())
            self._on_eof()
            return False
        self._on_frame(self._view[:size])
        return True

    def _writable(self) -> None:
        while self._backlog:
            try:
                self._send_now(self._backlog[0])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._forget_backlog()
                break
            fd = self._backlog.popleft().fd
            if fd >= 0:
                os.close(fd)
        with contextlib.suppress(ValueError):
            self._loop.remove_writer(self._socket.fileno())
