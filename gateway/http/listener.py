"""Owns the listening socket: accepts connections and gives each to the loop. Knows nothing of what they carry.

The loop's own server (libuv) takes one connection per tick. A gateway whose connections all have something to say has
ticks of 50 ms and more, so new clients would wait for seconds, until the old ones fall silent. Measured with 1,000
connections that come under twice the requests that can be refused: their first answers took 2.9 s (median), now 0.5 s.

A connection is the client's as soon as the kernel says so, long before it is accepted here; closing a listener resets
those that wait. So a listener that is nobody else's is shut in three steps (`drain`): the kernel takes no new ones,
those that wait are accepted, and then it is closed. One that others have copies of is just closed: they accept them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import socket
import struct
from typing import TYPE_CHECKING

from gateway import logs

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logs.get("http")

BACKLOG = 1024
"""Connections that wait in the kernel to be accepted."""

ACCEPTS_PER_TICK = 64
"""Connections accepted before those that exist get their turn."""

RETRY_S = 0.1
"""Pause after the process or the system ran out of what a connection takes."""

SETTLE_S = 0.1
"""How long handshakes that have begun get to finish before the listener closes: a round trip and more."""

_POLL_S = 0.01

_SO_ATTACH_FILTER = 26
_NO_SYN = (
    (0x30, 0, 0, 13),  # the flags of the TCP header
    (0x54, 0, 0, 0x12),  # of these SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone, the first packet of a connection:
    (0x06, 0, 0, 0),  # is dropped; the client repeats it after a second, to whoever listens then
    (0x06, 0, 0, 0xFFFFFFFF),  # everything else passes
)
"""A program for the kernel's packet filter. Source: socket(7), SO_ATTACH_FILTER; linux/filter.h."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """Accepts on a bound socket from its making until `close`. `protocol` makes a connection's protocol."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, bound: socket.socket, protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        self._loop = loop
        self._bound = bound
        self._protocol = protocol
        self._opening: set[asyncio.Task[None]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._pauses = 0
        bound.setblocking(False)
        bound.listen(BACKLOG)
        self._resume()

    async def drain(self, end: float) -> None:
        """Accept everybody who has connected, and nobody new; then close. By `end` (the loop's time) at the latest."""
        if self._bound.fileno() < 0:
            return
        _drop_new(self._bound)
        settled = self._loop.time() + SETTLE_S
        while (now := self._loop.time()) < end and (now < settled or self._pauses):
            await asyncio.sleep(_POLL_S)
            if self._retry is None:
                self._accept_some()
        while self._accept_some():
            pass
        self.close()

    def close(self) -> None:
        """Close the socket, and with it what waits in the kernel if nobody else has a copy; accepted ones stay."""
        if self._bound.fileno() < 0:
            return
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._bound)
        self._bound.close()

    def _resume(self) -> None:
        self._retry = None
        self._loop.add_reader(self._bound, self._accept)

    def _accept(self) -> None:
        """Take what waits. A connection is in the loop a tick later."""
        self._accept_some()

    def _accept_some(self) -> bool:
        """Accept ACCEPTS_PER_TICK of those that wait; whether there may be more."""
        for _ in range(ACCEPTS_PER_TICK):
            try:
                connection, _ = self._bound.accept()
            except BlockingIOError:
                self._pauses = 0
                return False
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause(error)
                    return False
                continue  # This client is gone already, says the kernel; the next one is not.
            if self._pauses:
                _log.info("accept_resumed", pauses=self._pauses)
                self._pauses = 0
            opening = self._loop.create_task(self._open(connection, self._protocol()))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)
        return True

    def _pause(self, error: OSError) -> None:
        """Leave those who wait in the kernel for a while: trying at once would spin, and find nothing."""
        if not self._pauses:
            _log.error("accept_failed", error=repr(error), retry_s=RETRY_S)
        self._pauses += 1
        self._loop.remove_reader(self._bound)
        if self._retry is not None:
            self._retry.cancel()
        self._retry = self._loop.call_later(RETRY_S, self._resume)

    async def _open(self, connection: socket.socket, protocol: asyncio.Protocol) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError as error:
            connection.close()
            protocol.connection_lost(error)


def _drop_new(listening: socket.socket) -> None:
    """Have the kernel take no new connections; those that have begun are finished. Where it cannot, nothing changes."""
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _NO_SYN))
    with contextlib.suppress(OSError):
        where = struct.pack("HP", len(_NO_SYN), ctypes.addressof(program))
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, where)
