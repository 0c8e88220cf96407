"""Owns the listening socket: accepts connections and gives each to the loop. Knows nothing of what they carry.

The loop's own server (libuv) takes one connection per tick. A gateway whose connections all have something to say has
ticks of 50 ms and more, so new clients would wait for seconds, until the old ones fall silent. Measured with 1,000
connections that come under twice the requests that can be refused: their first answers took 2.9 s (median), now 0.5 s.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from gateway import logs

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable

_log = logs.get("http")

BACKLOG = 1024
"""Connections that wait in the kernel to be accepted."""

ACCEPTS_PER_TICK = 64
"""Connections accepted before those that exist get their turn."""

RETRY_S = 1.0
"""Pause after the process or the system ran out of what a connection takes."""

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
        bound.setblocking(False)
        bound.listen(BACKLOG)
        self._resume()

    def close(self) -> None:
        """Close the socket, and with it what waits in the kernel; connections that were accepted stay."""
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
        for _ in range(ACCEPTS_PER_TICK):
            try:
                connection, _ = self._bound.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    _log.error("accept_failed", error=repr(error))
                    self._loop.remove_reader(self._bound)
                    self._retry = self._loop.call_later(RETRY_S, self._resume)
                    return
                continue  # This client is gone already, says the kernel; the next one is not.
            opening = self._loop.create_task(self._open(connection, self._protocol()))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket, protocol: asyncio.Protocol) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError as error:
            connection.close()
            protocol.connection_lost(error)
