"""A closed loop: so many connections, each of which sends its next request when the last one was answered.

A server that is slow is asked less, so what it does to those who would have come meanwhile is not seen: that is what
the open loop is for. Here the rate is the result. A request is due when its connection is free.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gateway.loadtest.answers import UnreadableAnswer, unchunked
from gateway.loadtest.connection import NONE, Connection
from gateway.loadtest.shots import BROKEN, TIMED_OUT, Shots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.loadtest.connection import Judge

SWEEP_S = 0.05
"""How often timeouts are looked for and progress is told."""

REDIAL_S = 0.1
"""Between two attempts to open a connection that was refused."""

COUNT_MAX = 5_000_000
"""Requests of one run: what is noted of each takes some 150 bytes."""


class Extent(NamedTuple):
    """When no more requests are begun: after `seconds` and `count_min` requests, both; never more than `count_max`."""

    seconds: float
    count_min: int = 0
    count_max: int = COUNT_MAX


async def circulate(
    host: str,
    port: int,
    requests: Sequence[bytes],
    connections: int,
    extent: Extent,
    *,
    timeout_s: float = 10.0,
    progress: Callable[[int, int], None] | None = None,
    judge: Judge | None = None,
) -> Shots:
    """Send `requests` in turn, over and over, on `connections` connections; wait for the last answers.

    `progress(sent, ended)` is called every SWEEP_S; `judge(status, body)` says what an answer counts as. Cancel it to
    stop.

    Raises: ValueError for an extent that is none, UnreadableAnswer, OSError when no connection can be opened at first.
    """
    if not len(requests) or connections < 1 or not 0 <= extent.seconds < math.inf or extent.count_max > COUNT_MAX:
        raise ValueError(
            f"one request and one connection are the least, {COUNT_MAX} requests and a finite time the most"
        )
    run = _Run(host, port, requests, extent, timeout_s, judge)
    try:
        await run.open(connections)
        run.start()
        while not run.ended.done():
            await asyncio.wait((run.ended,), timeout=SWEEP_S)
            run.sweep()
            if progress is not None:
                progress(*run.counts())
    finally:
        run.close()
    if run.failure is not None:
        raise run.failure
    return run.shots()


class _Run:
    """State of one run. Every request ends once, in `_end`."""

    def __init__(
        self, host: str, port: int, requests: Sequence[bytes], extent: Extent, timeout_s: float, judge: Judge | None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.failure: UnreadableAnswer | None = None
        self._address = host, port
        self._requests = list(requests)
        self._extent = extent
        self._timeout_s = timeout_s
        self._judge = judge
        self._began_s = 0.0
        self._sent: list[float] = []
        self._answered: list[float] = []
        self._status: list[int] = []
        self._ended_count = 0
        self._connections: set[Connection] = set()
        self._dials: set[asyncio.Task[None]] = set()

    async def open(self, count: int) -> None:
        """Open the connections. Raises OSError."""
        for _ in range(count):
            await self._connect()

    async def _connect(self) -> Connection:
        _, connection = await self._loop.create_connection(lambda: Connection(self), *self._address)
        self._connections.add(connection)
        return connection

    def start(self) -> None:
        """The run begins now."""
        self._began_s = time.monotonic()
        for connection in list(self._connections):
            self._send(connection)
        self._check_ended()

    def counts(self) -> tuple[int, int]:
        """(sent, ended) so far."""
        return len(self._sent), self._ended_count

    def close(self) -> None:
        """End every connection."""
        for dial in self._dials:
            dial.cancel()
        for connection in list(self._connections):
            self._discard(connection)

    def shots(self) -> Shots:
        """What came of it all."""
        sent = np.array(self._sent)
        return Shots(sent, sent, np.array(self._answered), np.array(self._status, np.int16), began_s=self._began_s)

    def sweep(self) -> None:
        """Give up what waited too long."""
        late_s = time.monotonic() - self._began_s - self._timeout_s
        for connection in list(self._connections):
            index = connection.index
            if index != NONE and self._sent[index] <= late_s:
                connection.index = NONE
                self._discard(connection)
                self._end(index, TIMED_OUT)
                self._redial()
        self._check_ended()

    # -- what connections say --------------------------------------------------------------------------------------

    def answered(
        self, connection: Connection, status: int, answer: bytes | bytearray, begin: int, *, stays: bool
    ) -> None:
        """A whole answer came; its body begins at `begin`."""
        index, connection.index = connection.index, NONE
        self._answered[index] = time.monotonic() - self._began_s
        if self._judge is not None:
            status = self._judge(status, unchunked(answer, begin))
        self._end(index, status)
        if stays and not connection.transport.is_closing():
            self._send(connection)
        else:
            self._discard(connection)
            self._redial()
        self._check_ended()

    def lost(self, connection: Connection) -> None:
        """The connection is gone, and with it the request that it carried."""
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        if connection.index != NONE:
            index, connection.index = connection.index, NONE
            self._end(index, BROKEN)
        self._redial()
        self._check_ended()

    def drop(self, connection: Connection) -> None:
        """The connection said what nobody asked."""
        self._discard(connection)
        self._redial()

    def fail(self, failure: UnreadableAnswer) -> None:
        """Nothing of this run can be counted."""
        self.failure = failure
        if not self.ended.done():
            self.ended.set_result(None)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        """Whether one more request is begun."""
        count = len(self._sent)
        if count >= self._extent.count_max or self.ended.done():
            return False
        return count < self._extent.count_min or time.monotonic() - self._began_s < self._extent.seconds

    def _send(self, connection: Connection) -> None:
        if not self._goes_on():
            return
        index = connection.index = len(self._sent)
        self._sent.append(time.monotonic() - self._began_s)
        self._answered.append(math.nan)
        self._status.append(0)
        connection.transport.write(self._requests[index % len(self._requests)])

    def _end(self, index: int, status: int) -> None:
        self._status[index] = status
        self._ended_count += 1

    def _check_ended(self) -> None:
        if self._ended_count == len(self._sent) and not self._goes_on() and not self.ended.done():
            self.ended.set_result(None)

    def _discard(self, connection: Connection) -> None:
        self._connections.discard(connection)
        connection.transport.abort()

    def _redial(self) -> None:
        """Put another connection in the place of one that is gone."""
        if self._goes_on():
            dial = self._loop.create_task(self._dial())
            self._dials.add(dial)
            dial.add_done_callback(self._dials.discard)

    async def _dial(self) -> None:
        """Open one connection and let it begin. One that is refused is a broken request, and is tried again."""
        while self._goes_on():
            try:
                connection = await self._connect()
            except OSError:
                self._sent.append(time.monotonic() - self._began_s)
                self._answered.append(math.nan)
                self._status.append(BROKEN)
                self._ended_count += 1
                await asyncio.sleep(REDIAL_S)
            else:
                self._send(connection)
                return
