"""The load of bench/growth.py: so many connections that ask, so many that are silent, and a count of requests."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import resource
import time
from typing import TYPE_CHECKING

import numpy as np

from bench import load

if TYPE_CHECKING:
    from collections.abc import Sequence

TOGETHER = 128
"""Connections that are opened at a time."""

PATIENCE_S = 120.0
"""A request that is not answered by then ends the measurement."""


def raise_fd_limit() -> int:
    """As many descriptors as this user may have; how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Crowd:
    """Connections to one server. `open` as many as are to ask; `keep_idle` those that asked once, and are silent."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._active: list[load.Connection] = []
        self._idle: list[load.Connection] = []
        self._messages: Sequence[bytes] = ()
        self._left = 0
        self._running = 0
        self._at = 0
        self._done: asyncio.Future[None] | None = None
        self.latencies: list[float] = []
        self.statuses: collections.Counter[int] = collections.Counter()

    @property
    def idle_count(self) -> int:
        """Silent connections that are open."""
        return sum(
            connection.transport is not None and not connection.transport.is_closing() for connection in self._idle
        )

    async def _dial(self, count: int) -> list[load.Connection]:
        loop = asyncio.get_running_loop()
        made: list[load.Connection] = []
        while len(made) < count:
            some = min(TOGETHER, count - len(made))
            made += [
                connection
                for _, connection in await asyncio.gather(
                    *(
                        loop.create_connection(lambda: load.Connection(self._answered), self._host, self._port)
                        for _ in range(some)
                    )
                )
            ]
        return made

    async def keep_idle(self, count: int) -> None:
        """Have so many more connections that asked for a page once, and from then on are silent."""
        page = f"GET /livez HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n\r\n".encode()
        more = await self._dial(count)
        await self._ask(more, [page], len(more))
        self._idle += more

    async def ask(self, messages: Sequence[bytes], *, connections: int, count: int) -> float:
        """Send `count` requests, `messages` in turn, each connection its next one when the last was answered.

        Returns the seconds that it took. `latencies` (s) and `statuses` are those of these requests.
        Raises: TimeoutError.
        """
        self._active += await self._dial(connections - len(self._active))
        for connection in self._active[connections:]:
            _close(connection)
        del self._active[connections:]
        self.latencies, self.statuses = [], collections.Counter()
        begin = time.perf_counter()
        await self._ask(self._active, messages, count)
        return time.perf_counter() - begin

    async def _ask(self, those: Sequence[load.Connection], messages: Sequence[bytes], count: int) -> None:
        if not count:
            return
        self._messages, self._left = messages, count
        self._done = asyncio.get_running_loop().create_future()
        self._running = min(len(those), count)
        for connection in those[:count]:
            self._send(connection)
        await asyncio.wait_for(self._done, PATIENCE_S + count / 100)

    def _send(self, connection: load.Connection) -> None:
        self._left -= 1
        self._at += 1
        connection.send(self._messages[self._at % len(self._messages)], time.perf_counter())

    def _answered(self, connection: load.Connection, status: int) -> None:
        self.latencies.append(time.perf_counter() - connection.meant)
        self.statuses[status] += 1
        if self._left > 0 and status:
            self._send(connection)
            return
        self._running -= 1
        if not self._running and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def check(self) -> np.ndarray:
        """The latencies (s) of the last `ask`, all of which must have been answered with 200. Raises SystemExit."""
        if set(self.statuses) - {200} or not self.statuses:
            raise SystemExit(f"the gateway answered {dict(self.statuses)}")
        return np.array(self.latencies, np.float32)

    async def close(self) -> None:
        """End every connection."""
        for connection in (*self._active, *self._idle):
            _close(connection)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)


def _close(connection: load.Connection) -> None:
    if connection.transport is not None:
        connection.transport.close()
