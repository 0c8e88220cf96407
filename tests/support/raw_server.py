"""A raw HTTP server in the load generator's own loop, which does what a test tells it to."""

from __future__ import annotations

import asyncio

from gateway.loadtest.openloop import fire, post

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Served(asyncio.Protocol):
    """A server's end of one connection. Each whole request is given to the server's `on_request`."""

    def __init__(self, server) -> None:
        self.server = server
        self.buffer = b""
        self.open_requests = 0

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.server.connections.append(self)

    def data_received(self, data) -> None:
        self.buffer += data
        size = self.server.size
        while len(self.buffer) >= size:
            request, self.buffer = self.buffer[:size], self.buffer[size:]
            self.open_requests += 1
            self.server.most_at_once = max(self.server.most_at_once, self.open_requests)
            self.server.requests.append(request)
            self.server.on_request(self)

    def answer(self, data=ANSWER) -> None:
        self.open_requests -= 1
        self.transport.write(data)


class Server:
    """What a server saw. `size`: bytes of every request."""

    def __init__(self, size, on_request) -> None:
        self.size = size
        self.on_request = on_request
        self.requests: list[bytes] = []
        self.connections: list[Served] = []
        self.most_at_once = 0


BODY = post("127.0.0.1", 1, "/p", b"image", "image/jpeg")


def paths(*names) -> list[bytes]:
    """A request for each name; names of one length make requests of one size."""
    return [post("127.0.0.1", 1, f"/{name}", b"image", "image/jpeg") for name in names]


def shoot(due, on_request=Served.answer, *, requests=(BODY,), run=asyncio.run, **options):
    """(shots, server) of one run against a server in the same loop."""

    async def story():
        server = Server(len(requests[0]), on_request)
        listener = await asyncio.get_running_loop().create_server(lambda: Served(server), "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        try:
            async with asyncio.timeout(20):
                return await fire("127.0.0.1", port, requests, due, **options), server
        finally:
            listener.close()
            for served in server.connections:
                served.transport.abort()
            await asyncio.sleep(0)

    return run(story())


def shoot_dialling(dial, due, answer_after=0.0):
    """A run whose connections are opened by `dial(create_connection, ...)`."""

    async def run():
        loop = asyncio.get_running_loop()

        def later(served) -> None:
            loop.call_later(answer_after, served.answer)

        server = Server(len(BODY), later)
        listener = await loop.create_server(lambda: Served(server), "127.0.0.1", 0)
        create = loop.create_connection
        loop.create_connection = lambda *arguments: dial(create, *arguments)
        try:
            async with asyncio.timeout(20):
                return await fire("127.0.0.1", listener.sockets[0].getsockname()[1], [BODY], due)
        finally:
            listener.close()
            for served in server.connections:
                served.transport.abort()
            await asyncio.sleep(0)

    return asyncio.run(run())
