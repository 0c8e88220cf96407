"""One HTTP/1.1 connection of a load test: one request at a time, and where its answer ends. Decides nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, cast

from gateway.loadtest.answers import UnreadableAnswer, read_head

if TYPE_CHECKING:
    from collections.abc import Callable

    Judge = Callable[[int, bytes], int]
    """(status, body of an answer) → what it counts as: the status, or `shots.WRONG`."""

NONE = -1
"""The index of a connection that carries nothing."""


class Carrier(Protocol):
    """Whose connections they are."""

    def answered(
        self, connection: Connection, status: int, answer: bytes | bytearray, begin: int, *, stays: bool
    ) -> None:
        """A whole answer came; its body begins at `begin`. Without `stays` the connection is of no more use."""

    def lost(self, connection: Connection) -> None:
        """The connection is gone, and with it the request that it carried."""

    def drop(self, connection: Connection) -> None:
        """The connection said what nobody asked."""

    def fail(self, failure: UnreadableAnswer) -> None:
        """Nothing of this run can be counted."""


class Connection(asyncio.Protocol):
    """Its end here. `index`: the request that it carries, or NONE."""

    __slots__ = ("_body_begin", "_closes", "_end", "_rest", "_run", "_status", "index", "transport")

    def __init__(self, run: Carrier) -> None:
        self._run = run
        self._rest = bytearray()
        self._end = 0
        self.index = NONE
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by type

    def data_received(self, data: bytes) -> None:
        """A piece of an answer, or more than one."""
        answer: bytes | bytearray = data
        if self._rest:
            self._rest += data
            if len(self._rest) < self._end:
                return
            answer = self._rest
        if self.index == NONE:
            self._run.drop(self)  # Words of farewell: nobody asked.
            return
        try:
            head = read_head(answer)
            while head is not None and head[0] < 200:  # noqa: PLR2004 - interim answers are passed over
                answer = answer[head[1] :]
                self._rest.clear()
                head = read_head(answer) if answer else None
        except UnreadableAnswer as error:
            self._run.fail(error)
            return
        if head is None or len(answer) < head[2]:
            self._end = head[2] if head is not None else 0
            if answer is not self._rest:
                self._rest = bytearray(answer)
            return
        status, begin, end, stays = head
        self._end = 0
        if self._rest:
            answer, self._rest = bytes(self._rest), bytearray()
        # More than one answer to one request: whatever the rest is, it is not the next one's.
        self._run.answered(self, status, answer, begin, stays=stays and len(answer) == end)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed, whoever did that."""
        del exc
        self._run.lost(self)
