"""Connections of our HTTP listeners: aiohttp's, with our words for what it refuses, counted, and known to a drain."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import socket
import termios
import time
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gateway import errors, logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.http.identity import Origin
    from gateway.http.responses import Reply

    Refuse = Callable[[errors.Refusal, str], Reply]
    """Count a refusal and put it into words, for a request id."""

_log = logs.get("http")

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%b"
)


class Connection(RequestHandler):
    """One connection. Says in our words what aiohttp itself refuses (malformed HTTP), and what nobody caught.

    It also notes when headers come. The handler runs later in the same turn of the loop, after everything else that
    came: under overload that is milliseconds of the request's deadline. And it knows what a drain has to: whether the
    client has something to be answered, or is silent.
    """

    __slots__ = ("_behind", "_received_ns", "origin")

    origin: Origin
    """Where it comes from; gateway.http.identity makes it out when it is first asked for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._received_ns = 0
        self._behind = False  # Whether a part of the next request came behind the one at hand.
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes came: headers, as long as no request is being handled, else a part of its body or the next one."""
        count = self._request_count
        if self._waiter is not None or not count:
            self._received_ns = time.monotonic_ns()
            super().data_received(data)
            return
        request = self._current_request
        in_body = request is not None and not request.content.is_eof()
        super().data_received(data)
        if data and not in_body:
            self._behind = self._request_count == count

    def take_received_ns(self) -> int:
        """When the headers of the request at hand came; of one that came behind another, when its turn came: now."""
        received_ns, self._received_ns = self._received_ns, 0
        if not received_ns:
            return time.monotonic_ns()
        self._behind = False
        return received_ns

    @property
    def is_last(self) -> bool:
        """Whether nothing came behind the request at hand."""
        return not self._messages and not self._behind

    @property
    def is_silent(self) -> bool:
        """Whether no request, and no part of one, is here: the next word is the client's."""
        waiter = self._waiter
        return waiter is not None and not waiter.done() and not self._received_ns and not self._behind

    @property
    def is_fresh(self) -> bool:
        """Whether it has never asked anything."""
        return not self._request_count

    def close_silent(self) -> None:
        """Close it, unless something came that the loop has not read yet."""
        transport = self.transport
        if transport is None:
            return
        fd = transport.get_extra_info("socket").fileno()
        if any(fcntl.ioctl(fd, termios.FIONREAD, bytes(4))):
            return
        # The loop would tell the client a turn later, and until then it might ask.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as ours:
            ours.shutdown(socket.SHUT_WR)
        self.force_close()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to a request that never reached, or broke, a handler."""
        del request, message
        request_id = secrets.token_hex(8)
        if status < 500:  # noqa: PLR2004 - the client's fault
            refusal: errors.Refusal = errors.BadRequest("this is not well-formed HTTP, or a header is too long")
        else:
            _log.error("request_failed", request_id=request_id, error=repr(exc))
            refusal = errors.Refusal("something went wrong here; the log has it under this request id")
        server = self._manager
        assert isinstance(server, Server)
        response = server.refuse(refusal, request_id)
        response.force_close()
        return response


class _Full(asyncio.Protocol):
    """A connection over the limit: told so, and closed, before it can send anything."""

    def __init__(self, refuse: Refuse) -> None:
        self._refuse = refuse

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        refusal = errors.Overloaded("too many connections; try again shortly", retry_after_s=1)
        body = self._refuse(refusal, secrets.token_hex(8)).body
        stream = cast("asyncio.Transport", transport)  # uvloop's is none by type
        stream.write(_FULL % (len(body), body))
        stream.close()


class Server(web.Server):
    """aiohttp's server with our connections, counted."""

    def __init__(
        self, *args: Any, connections_max: int, options: dict[str, Any], refuse: Refuse, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.refuse = refuse
        self._connections_max = connections_max
        self._options = options
        self.accepted: set[Connection] = set()
        """Connections from their acceptance to their end; aiohttp counts them from when it reads them."""

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """A connection is over."""
        self.accepted.discard(cast("Connection", handler))
        super().connection_lost(handler, exc)

    def protocol(self) -> asyncio.Protocol:
        """The factory for accepted connections. Many come in one tick, so each counts from here on."""
        if len(self.accepted) >= self._connections_max:
            return _Full(self.refuse)
        connection = Connection(self, loop=self._loop, **self._options)
        self.accepted.add(connection)
        return connection
