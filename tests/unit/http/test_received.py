"""A request counts from when its headers came, however long the loop takes to turn to it."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.http.connections import Connection, Server
from gateway.http.responses import Reply

REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\n"
BLOCKED_S = 0.005


class Wire(asyncio.Transport):
    """What a connection writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self.written: list[bytes] = []

    def write(self, data) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0


def with_connection(story):
    """Run `story(connection, wire, seen)`; `seen` gets when each request was received, as its handler finds it."""

    async def main() -> None:
        seen: list[int] = []

        async def handle(request):
            seen.append(request.protocol.take_received_ns())
            await request.content.read()
            return Reply(b"", "text/plain", "id")

        server = Server(handle, connections_max=1, options={}, refuse=lambda *_: None)
        connection = server.protocol()
        assert isinstance(connection, Connection)
        wire = Wire()
        connection.connection_made(wire)
        try:
            async with asyncio.timeout(10):
                await story(connection, wire, seen)
        finally:
            connection.connection_lost(None)
            await server.shutdown(0)

    asyncio.run(main())


async def until(condition) -> None:
    while not condition():  # noqa: ASYNC110 - it is for the loop to make it true
        await asyncio.sleep(0)


@pytest.mark.parametrize("turns_before", [0, 5])
def test_the_time_in_the_loop_counts(turns_before):
    async def story(connection, _wire, seen):
        for _ in range(turns_before):
            await asyncio.sleep(0)
        connection.data_received(REQUEST)
        came_ns = time.monotonic_ns()
        time.sleep(BLOCKED_S)  # noqa: ASYNC251 - others are served first
        await until(lambda: seen)
        assert seen[0] <= came_ns

    with_connection(story)


def test_headers_in_pieces_count_from_the_last():
    async def story(connection, _wire, seen):
        await asyncio.sleep(0)
        connection.data_received(REQUEST[:10])
        first_ns = time.monotonic_ns()
        connection.data_received(REQUEST[10:])
        await until(lambda: seen)
        assert seen[0] >= first_ns

    with_connection(story)


def test_a_body_that_comes_later_changes_nothing_for_the_next_request():
    async def story(connection, wire, seen):
        await asyncio.sleep(0)
        connection.data_received(POST)
        await until(lambda: seen)
        connection.data_received(b"body" + REQUEST)
        came_ns = time.monotonic_ns()
        await until(lambda: len(wire.written) == 2)
        assert seen[1] >= came_ns, "its turn came after the first one's answer"

    with_connection(story)


def test_requests_behind_another_count_from_their_turn():
    async def story(connection, wire, seen):
        connection.data_received(REQUEST + REQUEST)
        came_ns = time.monotonic_ns()
        await until(lambda: len(wire.written) == 2)
        assert seen[0] <= came_ns <= seen[1]

    with_connection(story)


def test_the_next_request_on_an_idle_connection_counts_from_its_own_headers():
    async def story(connection, wire, seen):
        connection.data_received(REQUEST)
        await until(lambda: wire.written)
        await asyncio.sleep(0)
        begun_ns = time.monotonic_ns()
        connection.data_received(REQUEST)
        came_ns = time.monotonic_ns()
        await until(lambda: len(wire.written) == 2)
        assert begun_ns <= seen[1] <= came_ns

    with_connection(story)
