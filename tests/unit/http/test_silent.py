"""What a drain knows of a connection: whether its client has asked, has begun to ask, or is silent."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gateway.http.connections import Server
from gateway.http.edge import close_silent
from gateway.http.responses import Reply

REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\n"


class Wire(asyncio.Transport):
    """What a connection writes to, over a real socket whose other end is `client`."""

    def __init__(self) -> None:
        super().__init__()
        self.ours, self.client = socket.socketpair()
        self.closed = False
        self.answers = 0

    def get_extra_info(self, name, default=None):
        return self.ours if name == "socket" else default

    def write(self, _data) -> None:
        self.answers += 1

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0


def with_connection(story):
    """Run `story(connection, wire, hold)`; a request is answered while `hold` is set."""

    async def main() -> None:
        hold = asyncio.Event()
        hold.set()

        async def handle(request):
            request.protocol.take_received_ns()
            await request.content.read()
            await hold.wait()
            response = Reply(b"", "text/plain", "id")
            if request.protocol.is_last:
                last.append(request.protocol)
            return response

        last = []
        server = Server(handle, connections_max=1, options={}, refuse=lambda *_: None)
        connection = server.protocol()
        assert server.accepted == {connection}
        assert not connection.is_silent, "the loop has not taken it on yet"
        wire = Wire()
        connection.connection_made(wire)
        for _ in range(3):
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(10):
                await story(connection, wire, hold, last)
        finally:
            connection.connection_lost(None)
            assert not server.accepted
            await server.shutdown(0)
            wire.ours.close()
            wire.client.close()

    asyncio.run(main())


async def until(condition) -> None:
    while not condition():  # noqa: ASYNC110 - it is for the loop to make it true
        await asyncio.sleep(0)


def test_before_and_between_requests_it_is_silent():
    async def story(connection, wire, hold, last):
        assert (connection.is_silent, connection.is_fresh) == (True, True)
        hold.clear()
        connection.data_received(REQUEST)
        assert not connection.is_silent
        await asyncio.sleep(0)
        assert not connection.is_silent
        hold.set()
        await until(lambda: wire.answers)
        await until(lambda: connection.is_silent)
        assert not connection.is_fresh
        assert last == [connection]

    with_connection(story)


@pytest.mark.parametrize("cut", [1, 10, len(REQUEST) - 1])
@pytest.mark.parametrize("requests_before", [0, 2])
def test_with_a_part_of_a_head_it_is_not(cut, requests_before):
    async def story(connection, wire, _hold, _last):
        for number in range(requests_before):
            connection.data_received(REQUEST)
            await until(lambda number=number: wire.answers > number)
            await until(lambda: connection.is_silent)
        connection.data_received(REQUEST[:cut])
        for _ in range(5):
            await asyncio.sleep(0)
            assert not connection.is_silent
        connection.data_received(REQUEST[cut:])
        await until(lambda: wire.answers > requests_before)
        await until(lambda: connection.is_silent)

    with_connection(story)


def test_with_a_part_of_a_body_it_is_not_and_it_is_the_last_all_the_same():
    async def story(connection, wire, _hold, last):
        for piece in (POST, b"bo", b"dy"):
            connection.data_received(piece)
            await asyncio.sleep(0)
            assert not connection.is_silent
        await until(lambda: wire.answers)
        await until(lambda: connection.is_silent)
        assert last == [connection]

    with_connection(story)


@pytest.mark.parametrize("pieces", [[REQUEST * 2], [REQUEST, REQUEST[:9], REQUEST[9:]], [REQUEST, REQUEST]], ids=len)
def test_what_comes_behind_a_request_makes_it_not_the_last(pieces):
    async def story(connection, wire, hold, last):
        hold.clear()
        for piece in pieces:
            connection.data_received(piece)
            for _ in range(3):
                await asyncio.sleep(0)
        hold.set()
        await until(lambda: wire.answers == 2)
        assert last == [connection], "the second one is"
        await until(lambda: connection.is_silent)

    with_connection(story)


def test_a_part_behind_the_last_of_several_is_not_forgotten():
    async def story(connection, wire, hold, last):
        hold.clear()
        for piece in (REQUEST, REQUEST, REQUEST[:9]):
            connection.data_received(piece)
            for _ in range(3):
                await asyncio.sleep(0)
        hold.set()
        await until(lambda: wire.answers == 2)
        for _ in range(5):
            await asyncio.sleep(0)
            assert not connection.is_silent
        assert not last
        connection.data_received(REQUEST[9:])
        await until(lambda: wire.answers == 3)
        assert last == [connection]

    with_connection(story)


def test_it_is_not_closed_over_words_that_the_loop_has_not_read():
    async def story(connection, wire, _hold, _last):
        wire.client.send(b"G")
        close_silent([connection])
        assert not wire.closed
        wire.ours.recv(1)
        close_silent([connection])
        assert wire.client.recv(1, socket.MSG_DONTWAIT) == b"", "the client knows at once"
        assert wire.closed
        assert connection.transport is None
        close_silent([connection])  # Twice does no harm.

    with_connection(story)
