"""Sends requests when they are due, whatever comes of the others, and writes each outcome into the ledger.

Open loop: arrivals are drawn beforehand from a seed (Poisson) and nothing waits for an answer. No request is ever sent
twice and no connection is believed: bytes after an answer are a second answer, an end before one is a lost request.
A share of the requests comes on connections of its own, the others on kept ones, each of which carries one at a time.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import time
from typing import TYPE_CHECKING, cast

import orjson

from bench.faults_lab.ledger import Outcome, Row
from bench.faults_lab.pictures import CLASS_COUNT, PLAIN, picture
from gateway.loadtest.alarm import Alarm
from gateway.loadtest.answers import UnreadableAnswer, read_head

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bench.faults_lab.ledger import Ledger
    from bench.faults_lab.pictures import Pixel

PATIENCE_S = 5.0
"""After its deadline an answer is waited for so long; then there is none."""

SWEEP_S = 0.1

FRESH_SHARE = 0.1
"""Requests that come on a connection of their own."""

PLAIN_KIND = "plain"

_RETRY = re.compile(rb"\r\nretry-after: (\d+)\r\n", re.IGNORECASE)


class _Connection(asyncio.Protocol):
    """One connection. `row`: the request that it carries; `last`: the one before, to whom further bytes belong."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._content = b""
        self.row: Row | None = None
        self.last: Row | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by type

    def data_received(self, data: bytes) -> None:
        self._content += data
        while self._content:
            if self.row is None:
                if self.last is not None:
                    self.last.more += 1
                return self.transport.abort()
            try:
                head = read_head(self._content)
            except UnreadableAnswer:
                return self._generator.unreadable(self)
            if head is None or len(self._content) < head[2]:
                return None
            status, begin, end, stays = head
            answer, self._content = self._content[:end], self._content[end:]
            if status >= 200:
                self._generator.answered(self, status, answer, begin, stays=stays)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._generator.lost(self)


class Generator:
    """A client of one model. `path` is asked at `port`; a rate of 0 sends only what it is told to.

    `class_counts`: by version, where they differ, so that an answer tells who gave it; CLASS_COUNT of the others.
    """

    def __init__(
        self,
        ledger: Ledger,
        port: int,
        *,
        rate: float,
        seed: int,
        path: str = "/predictions/m",
        prefix: str = "r",
        kind: str = PLAIN_KIND,
        deadline_ms: float = 10_000.0,
        fresh_share: float = FRESH_SHARE,
        patience_s: float = PATIENCE_S,
        class_counts: Mapping[int, int] | None = None,
    ) -> None:
        self._ledger = ledger
        self._address = ("127.0.0.1", port)
        self._rate = rate
        self._seed = seed
        self._draw = random.Random(f"{seed}/{prefix}")
        self._path = path
        self._prefix = prefix
        self._kind = kind
        self._deadline_s = deadline_ms / 1e3
        self._target = f"{path}?deadline_ms={deadline_ms:g}"
        self._fresh_share = fresh_share
        self._patience_s = patience_s
        self._class_counts = class_counts or {}
        self._number = 0
        self._due_s = 0.0
        self._alarm: Alarm | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._connections: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._pending: dict[str, tuple[Row, _Connection | None]] = {}
        self._waiters: dict[str, asyncio.Future[Row]] = {}
        self._dials: set[asyncio.Task[None]] = set()
        self.on_end: Callable[[Row], None] | None = None
        """Told of every request that ended."""

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """From now on requests are due."""
        loop = asyncio.get_running_loop()
        self._sweeper = loop.create_task(self._sweep())
        if self._rate:
            self._due_s = time.monotonic()
            self._alarm = Alarm(loop, self._send_due)
            self._send_due()

    def pause(self) -> None:
        """Send nothing more of one's own accord."""
        if self._alarm is not None:
            self._alarm.close()
            self._alarm = None

    async def finish(self) -> None:
        """Send nothing more, and wait until every request has ended."""
        self.pause()
        while self._pending:
            await asyncio.sleep(0.01)
        self.close()

    def close(self) -> None:
        """End every connection and timer, also with requests on them."""
        self.pause()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for dial in self._dials:
            dial.cancel()
        for connection in list(self._connections):
            connection.transport.abort()

    @property
    def pending_count(self) -> int:
        """Requests without an outcome."""
        return len(self._pending)

    # -- sending -------------------------------------------------------------------------------------------------

    def send(self, *, kind: str = PLAIN_KIND, first: Pixel = PLAIN, number: int | None = None, lines: str = "") -> Row:
        """Send one request now. `number`: the same picture as before; `lines`: further headers, each with CRLF."""
        self._number += 1
        image = picture(self._seed, self._number if number is None else number, first)
        now = time.monotonic()
        identity = f"{self._prefix}-{self._number}"
        row = self._ledger.open(Row(identity, kind, image.input, image.crc, now, now + self._deadline_s))
        fresh = self._draw.random() < self._fresh_share
        head = (
            f"POST {self._target} HTTP/1.1\r\nHost: faults\r\nContent-Type: image/png\r\nX-Request-Id: {identity}\r\n"
            f"{lines or self._whose()}{'Connection: close' if fresh else 'Accept: application/json'}\r\n"
            f"Content-Length: {len(image.file)}\r\n\r\n"
        )
        message = head.encode("ascii") + image.file
        self._pending[identity] = (row, None)
        while self._idle and not fresh:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                self._write(connection, row, message)
                return row
        dial = asyncio.get_running_loop().create_task(self._dial(row, message))
        self._dials.add(dial)
        dial.add_done_callback(self._dials.discard)
        return row

    async def ask(
        self, *, kind: str = PLAIN_KIND, first: Pixel = PLAIN, number: int | None = None, lines: str = ""
    ) -> Row:
        """Send one request, and wait for its end."""
        row = self.send(kind=kind, first=first, number=number, lines=lines)
        return await self.ended(row)

    async def ended(self, row: Row) -> Row:
        """Wait for the end of a request."""
        if row.outcome is Outcome.PENDING:
            await self._waiters.setdefault(row.id, asyncio.get_running_loop().create_future())
        return row

    def leave(self, row: Row, *, reset: bool) -> None:
        """Go away without waiting for the answer: by FIN, or by RST."""
        _, connection = self._pending.get(row.id, (row, None))
        if row.outcome is not Outcome.PENDING:
            return
        if connection is not None:
            connection.row = None
            if reset:
                linger = struct.pack("ii", 1, 0)
                connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.transport.abort()
        self._end(row, Outcome.LEFT)

    def _whose(self) -> str:
        """Each request comes from an address of its own, so that nobody pays for his neighbour's images."""
        number = self._number
        return f"X-Forwarded-For: 10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}\r\n"

    def _send_due(self) -> None:
        now = time.monotonic()
        for _ in range(32):
            if self._due_s > now:
                break
            self.send(kind=self._kind)
            self._due_s += self._draw.expovariate(self._rate)
        if self._alarm is not None:
            self._alarm.set(self._due_s)

    async def _dial(self, row: Row, message: bytes) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), *self._address
            )
        except OSError:
            self._end(row, Outcome.REFUSED)
            return
        self._connections.add(connection)
        if row.outcome is Outcome.PENDING:
            self._write(connection, row, message)
        else:
            connection.transport.abort()

    def _write(self, connection: _Connection, row: Row, message: bytes) -> None:
        connection.row = row
        self._pending[row.id] = (row, connection)
        # The gateway's clock for it starts at the first byte.
        now = time.monotonic()
        row.deadline_s += now - row.sent_s
        row.sent_s = now
        connection.transport.write(message)

    # -- endings -------------------------------------------------------------------------------------------------

    def answered(self, connection: _Connection, status: int, answer: bytes, begin: int, *, stays: bool) -> None:
        """A whole answer came; its body begins at `begin`."""
        row = connection.row
        assert row is not None
        connection.row, connection.last = None, row
        row.status = status
        row.answered_s = time.monotonic()
        _read(row, answer[:begin], answer[begin:])
        row.answer = row.crc % self._class_counts.get(row.version, CLASS_COUNT)
        self._end(row, Outcome.ANSWERED)
        # One that does not stay is the server's to close: until then a second answer would be seen.
        if stays and not connection.transport.is_closing():
            self._idle.append(connection)

    def unreadable(self, connection: _Connection) -> None:
        """What came is no answer."""
        row, connection.row = connection.row, None
        assert row is not None
        self._end(row, Outcome.UNREADABLE)
        connection.transport.abort()

    def lost(self, connection: _Connection) -> None:
        """A connection ended, and with it what it carried."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.row is not None:
            row, connection.row = connection.row, None
            self._end(row, Outcome.RESET)

    def _end(self, row: Row, outcome: Outcome) -> None:
        """Each request comes here once."""
        del self._pending[row.id]
        row.outcome = outcome
        if outcome is not Outcome.ANSWERED:
            row.answered_s = time.monotonic()
        waiter = self._waiters.pop(row.id, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(row)
        if self.on_end is not None:
            self.on_end(row)

    async def _sweep(self) -> None:
        """Give up what was waited for long enough."""
        while True:
            await asyncio.sleep(SWEEP_S)
            late_s = time.monotonic() - self._patience_s
            for row, connection in list(self._pending.values()):
                if row.deadline_s < late_s:
                    if connection is not None:
                        connection.row = None
                        connection.transport.abort()
                    self._end(row, Outcome.NOTHING)


def _read(row: Row, head: bytes, body: bytes) -> None:
    """Note what an answer says. One that cannot be read says nothing, which is wrong."""
    try:
        document = orjson.loads(body)
        row.request_id = str(document["request_id"])
        if row.status == 200:
            row.got = document["prediction"][0]["index"]
            row.version = document["version"]
            row.total_ms = document["timing_ms"]["total"]
        else:
            row.code, row.detail = str(document["code"]), str(document["detail"])
            retry = _RETRY.search(head)
            row.retry_s = int(retry[1]) if retry else -1
    except (ValueError, LookupError, TypeError):
        row.request_id = ""
