"""Fires requests when they are due, whatever the server does, and notes what came of each. Owns the connections.

Nothing waits for an answer: a request finds an idle connection, or opens one, or, at the bound, is counted as unsent.
Latency counts from when a request was due, so a server that stalls cannot hide it behind those it kept from coming
(coordinated omission). One request is on a connection at a time. Runs on any event loop; cheapest on uvloop.
"""

from __future__ import annotations

import asyncio
import collections
import math
import time
from typing import TYPE_CHECKING

import numpy as np

from gateway.loadtest.alarm import Alarm
from gateway.loadtest.answers import unchunked
from gateway.loadtest.connection import NONE, Connection
from gateway.loadtest.shots import BROKEN, TIMED_OUT, UNSENT, Shots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.loadtest.answers import UnreadableAnswer
    from gateway.loadtest.connection import Judge

TICK_S = 0.0002
"""Shortest time between two looks at the schedule: at high rates a few requests go out together."""

SENDS_PER_TICK = 32
"""Requests sent before answers are read again, when the generator is behind."""

SWEEP_S = 0.05
"""How often timeouts are looked for and progress is told."""

_PENDING = 0


def post(host: str, port: int, path: str, body: bytes, content_type: str, *headers: str) -> bytes:
    """A whole request as it goes over the wire; `headers` are further lines such as "Accept: application/json"."""
    name = f"[{host}]" if ":" in host else host
    lines = [f"POST {path} HTTP/1.1", f"Host: {name}:{port}", f"Content-Type: {content_type}", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode("ascii") + body


async def fire(
    host: str,
    port: int,
    requests: Sequence[bytes],
    due_s: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]],
    *,
    connections_max: int = 512,
    connections_warm: int = 0,
    timeout_s: float = 10.0,
    sample_every: int = 0,
    progress: Callable[[int, int], None] | None = None,
    judge: Judge | None = None,
) -> Shots:
    """Send `requests` in turn, over and over, one at each of `due_s` (ascending, seconds from the begin of the run).

    `connections_warm` of `connections_max` connections are opened beforehand. A request without an answer `timeout_s`
    after it was due is given up. The answer's body is kept of every `sample_every`-th request (0: of none).
    `progress(sent, ended)` is called every SWEEP_S; `judge(status, body)` says what each answer counts as. Cancel it to
    stop.

    Raises: ValueError for a schedule that is not one, UnreadableAnswer, OSError when a warm connection is refused.
    """
    due = np.asarray(due_s, np.float64)
    if not len(requests) or connections_max < 1 or connections_warm > connections_max:
        raise ValueError("one request and one connection are the least, and connections_warm is within the bound")
    if len(due) and (not np.isfinite(due).all() or (np.diff(due) < 0).any() or due[0] < 0):
        raise ValueError("due_s must ascend from 0 or more")
    run = _Run(host, port, requests, due, connections_max, timeout_s, sample_every, progress, judge)
    try:
        await run.warm(connections_warm)
        async with asyncio.TaskGroup() as dials:
            run.start(dials)
            try:
                await run.ended
            finally:
                run.stop_dialling()
    finally:
        run.close()
    if run.failure is not None:
        raise run.failure
    return run.shots()


class _Run:
    """State of one run. Every request ends exactly once, in `_end`."""

    def __init__(
        self,
        host: str,
        port: int,
        requests: Sequence[bytes],
        due: np.ndarray[tuple[int], np.dtype[np.float64]],
        connections_max: int,
        timeout_s: float,
        sample_every: int,
        progress: Callable[[int, int], None] | None,
        judge: Judge | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.failure: UnreadableAnswer | None = None
        self._address = host, port
        self._requests = list(requests)
        self._connections_max = connections_max
        self._timeout_s = timeout_s
        self._sample_every = sample_every
        self._progress = progress
        self._judge = judge
        self._alarm: Alarm | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._dials: asyncio.TaskGroup | None = None
        self._dialling: set[asyncio.Task[None]] = set()
        self._dialling_count = 0
        self._began_s = 0.0
        # Lists: an item of an array costs five times as much to set.
        self._due: list[float] = due.tolist()
        self._sent = [math.nan] * len(due)
        self._answered = [math.nan] * len(due)
        self._status = [_PENDING] * len(due)
        self._bodies: dict[int, bytes] = {}
        self._next = 0
        self._ended_count = 0
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._waiting: collections.deque[int] = collections.deque()
        """Requests for which a connection is being opened; the first one that is free takes the first of them."""
        self._oldest = 0
        """Every request before it has ended."""

    async def warm(self, count: int) -> None:
        """Open connections beforehand. Raises OSError."""
        for _ in range(count):
            _, connection = await self._loop.create_connection(lambda: Connection(self), *self._address)
            self._connections.add(connection)
            self._idle.append(connection)

    def start(self, dials: asyncio.TaskGroup) -> None:
        """The schedule begins now. `dials` owns the connections that are being opened."""
        self._dials = dials
        self._alarm = Alarm(self._loop, self._send_due)
        self._began_s = time.monotonic()
        self._sweep()
        self._send_due()

    def close(self) -> None:
        """End every connection and timer."""
        if self._alarm is not None:
            self._alarm.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._connections):
            self.drop(connection)

    def stop_dialling(self) -> None:
        """Give up on connections that are being opened."""
        for dial in self._dialling:
            dial.cancel()

    def shots(self) -> Shots:
        """What came of it all."""
        return Shots(
            np.array(self._due),
            np.array(self._sent),
            np.array(self._answered),
            np.array(self._status, np.int16),
            bodies=self._bodies,
            began_s=self._began_s,
        )

    # -- sending -------------------------------------------------------------------------------------------------

    def _send_due(self) -> None:
        """Send what is due, and have the alarm ring for the next."""
        assert self._alarm is not None
        due, count = self._due, len(self._due)
        now = time.monotonic() - self._began_s
        last = min(self._next + SENDS_PER_TICK, count)
        while self._next < last and due[self._next] <= now:
            index = self._next
            self._next += 1
            if self._idle:
                self._send(self._idle.pop(), index)
            elif len(self._connections) + self._dialling_count < self._connections_max:
                self._waiting.append(index)
                self._dial()
            else:
                self._end(index, UNSENT)
        if self._next < count:
            self._alarm.set(self._began_s + max(due[self._next], now + TICK_S if self._next < last else 0.0))
        elif not count and not self.ended.done():
            self.ended.set_result(None)

    def _send(self, connection: Connection, index: int) -> None:
        connection.index = index
        self._sent[index] = time.monotonic() - self._began_s
        connection.transport.write(self._requests[index % len(self._requests)])

    def _dial(self) -> None:
        assert self._dials is not None
        self._dialling_count += 1
        dial = self._dials.create_task(self._open())
        self._dialling.add(dial)
        dial.add_done_callback(self._dialling.discard)

    async def _open(self) -> None:
        """Open one connection for whoever waits first; when that fails, it has failed for them."""
        try:
            _, connection = await self._loop.create_connection(lambda: Connection(self), *self._address)
        except OSError:
            if self._waiting:
                self._end(self._waiting.popleft(), BROKEN)
            return
        finally:
            self._dialling_count -= 1
        self._connections.add(connection)
        self._free(connection)

    def _free(self, connection: Connection) -> None:
        """A connection has nothing to carry."""
        if connection.transport.is_closing():
            self.drop(connection)
        elif self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self._idle.append(connection)

    # -- endings -------------------------------------------------------------------------------------------------

    def answered(
        self, connection: Connection, status: int, answer: bytes | bytearray, begin: int, *, stays: bool
    ) -> None:
        """A whole answer came; its body begins at `begin`."""
        index = connection.index
        connection.index = NONE
        self._answered[index] = time.monotonic() - self._began_s
        if self._sample_every and index % self._sample_every == 0:
            self._bodies[index] = unchunked(answer, begin)
        if self._judge is not None:
            status = self._judge(status, unchunked(answer, begin))
        if stays:
            self._free(connection)
        else:
            self.drop(connection)
        self._end(index, status)

    def lost(self, connection: Connection) -> None:
        """The connection is gone, and with it the request that it carried."""
        self.drop(connection)
        if connection.index != NONE:
            index, connection.index = connection.index, NONE
            self._end(index, BROKEN)

    def drop(self, connection: Connection) -> None:
        """Use a connection no more; somebody who waits for one gets another dialled."""
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        connection.transport.abort()
        if len(self._waiting) > self._dialling_count and not self.ended.done():
            self._dial()

    def fail(self, failure: UnreadableAnswer) -> None:
        """Nothing of this run can be counted."""
        self.failure = failure
        if not self.ended.done():
            self.ended.set_result(None)

    def _end(self, index: int, status: int) -> None:
        self._status[index] = status
        self._ended_count += 1
        if self._ended_count == len(self._due) and not self.ended.done():
            self.ended.set_result(None)

    def _sweep(self) -> None:
        """Give up what waited too long, and tell how far it is."""
        late_s = time.monotonic() - self._began_s - self._timeout_s
        while self._oldest < self._next and (self._status[self._oldest] or self._due[self._oldest] <= late_s):
            if not self._status[self._oldest]:
                self._give_up(self._oldest)
            self._oldest += 1
        if self._progress is not None:
            self._progress(self._next, self._ended_count)
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)

    def _give_up(self, index: int) -> None:
        if index in self._waiting:
            self._waiting.remove(index)
        else:
            connection = next(connection for connection in self._connections if connection.index == index)
            connection.index = NONE
            self.drop(connection)
        self._end(index, TIMED_OUT)
