"""The HTTP front: routes, request ids, the error edge, connection limits. aiohttp's low-level server, no framework.

A route is a method, a path of one to three segments and a handler; that is a dict look-up, not a router.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import re
import secrets
import termios
import time
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gateway import errors, logs
from gateway.http import responses
from gateway.http.bodies import BodyReader
from gateway.http.identity import Identity
from gateway.http.listener import Listener
from gateway.http.predict import Predict
from gateway.http.status import Status
from gateway.scheduling.limiter import Limiter, Rule

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator

    from gateway.config import Settings
    from gateway.driver import Driver
    from gateway.http.identity import Origin
    from gateway.http.responses import Reply

    Refuse = Callable[[errors.Refusal, str], Reply]
    """Count a refusal and put it into words, for a request id."""
    from gateway.metrics import Sample

_log = logs.get("http")

_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}", re.ASCII)

LINGER_S = 2.0
"""How long the rest of a refused body is read and dropped before its connection is closed."""

FRESH_GRACE_S = 2.0
"""How long a drain waits for the first word on a connection: a lost packet is sent again within this time."""

QUIET_S = 0.5
"""How long nothing must have come before a drain closes the connections that are kept alive."""

DRAIN_POLL_S = 0.02
"""How often a drain looks who is there."""

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
        unread = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
        if not any(unread):
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
        assert isinstance(server, _Server)
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


class _Server(web.Server):
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
        self.accepted.discard(cast("Connection", handler))
        super().connection_lost(handler, exc)

    def protocol(self) -> asyncio.Protocol:
        """The factory for accepted connections. Many come in one tick, so each counts from here on."""
        if len(self.accepted) >= self._connections_max:
            return _Full(self.refuse)
        connection = Connection(self, loop=self._loop, **self._options)
        self.accepted.add(connection)
        return connection


class Front:
    """The public listener. `start` opens it, `drain` closes it and serves who is there, `close` ends what is left."""

    def __init__(self, driver: Driver, settings: Settings) -> None:
        self._driver = driver
        self._status = status = Status(driver, lambda: self.predict.routes)
        self._header_timeout_s = settings.header_timeout_s
        self._pages = {
            "livez": status.livez,
            "readyz": status.readyz,
            "metrics": status.metrics,
            "models": status.models,
            "openapi.json": status.openapi,
        }
        self._limiter = _limiter(settings)
        self.predict = Predict(
            driver,
            BodyReader(driver.core, driver.memory.bodies_view, settings),
            limiter=self._limiter,
            identity=Identity(settings, self._limiter),
            refuse=self._refuse,
            lazy_wait_s=settings.lazy_wait_s,
        )
        self._id_prefix = secrets.token_hex(4)
        self._ids = itertools.count(1)
        self._server = _Server(
            self._handle,
            handler_cancellation=True,
            connections_max=settings.connections_max,
            refuse=self._refuse,
            options={
                "keepalive_timeout": settings.header_timeout_s,
                "lingering_time": LINGER_S,
                "auto_decompress": False,
                "max_line_size": settings.header_line_size_max,
                "max_field_size": settings.header_line_size_max,
                "max_headers": settings.header_count_max,
                "access_log": None,
            },
        )
        self._listener: Listener | None = None
        driver.metrics.probes.append(self._samples)

    def _samples(self) -> Iterator[Sample]:
        yield "penstock_connections", (), len(self._server.accepted)
        yield "penstock_clients", (), self._limiter.client_count
        for name, tally in self._limiter.tallies():
            yield "penstock_client_images", (name, "accepted"), tally.accepted
            yield "penstock_client_images", (name, "refused"), tally.refused

    async def start(self, bound: socket.socket) -> None:
        """Accept on a bound socket."""
        self._listener = Listener(asyncio.get_running_loop(), bound, self._server.protocol)

    def announce_drain(self) -> None:
        """Not ready any more, and every answer ends its connection; all the same everybody is served."""
        self._status.draining = True
        self.predict.stop_copying()

    def stop_accepting(self) -> None:
        """Close the listener, which others have copies of; connections that exist stay."""
        if self._listener is not None:
            self._listener.close()

    async def drain(self, end: float) -> bool:
        """Accept whoever has connected already, close the listener, and serve until nobody has anything to say.

        A connection is over when its last answer was written. One on which nothing was asked yet gets a grace; silent
        ones are closed last, when everything else is done and nothing has come for a while. Whether all that was done
        by `end` (the loop's time).
        """
        self.announce_drain()
        if self._listener is not None:
            await self._listener.drain(end)
        loop = asyncio.get_running_loop()
        now = loop.time()
        fresh_until = now + min(self._header_timeout_s, FRESH_GRACE_S)
        quiet_since, asked = now, self._server.requests_count
        while (accepted := self._server.accepted) and now < end:
            silent = [connection for connection in accepted if connection.is_silent]
            fresh = [connection for connection in silent if connection.is_fresh]
            if now >= fresh_until:
                close_silent(fresh)
            if len(silent) < len(accepted) or fresh or self._server.requests_count != asked:
                quiet_since, asked = now, self._server.requests_count
            elif now - quiet_since >= QUIET_S:
                close_silent(silent)
            await asyncio.sleep(DRAIN_POLL_S)
            now = loop.time()
        return not accepted

    async def close(self, timeout_s: float) -> None:
        """Finish the requests that are being handled, then close every connection."""
        self.stop_accepting()
        self._server.pre_shutdown()
        await self._server.shutdown(timeout_s)

    # -- requests ------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        request_id = self._request_id(request)
        try:
            response = await self._route(request, request_id)
        except errors.Refusal as refusal:
            response = self._refuse(refusal, request_id)
        except Exception:  # noqa: BLE001 - the edge: whatever nobody foresaw is logged and answered with 500
            _log.exception("request_failed", request_id=request_id)
            response = self._refuse(
                errors.Refusal("something went wrong here; the log has it under this request id"), request_id
            )
        if self._status.draining and cast("Connection", request.protocol).is_last:
            # The client is not to send its next request here: the connection ends with the drain.
            response.force_close()
        return response

    def _refuse(self, refusal: errors.Refusal, request_id: str, more: str = "") -> Reply:
        counts = self._driver.metrics.refusals
        counts[refusal.code] = counts.get(refusal.code, 0) + 1
        return responses.problem(refusal, request_id, more)

    def _request_id(self, request: web.BaseRequest) -> str:
        """The client's own id when it is sane, else a new one."""
        given = request.headers.get("X-Request-Id")
        if given is not None and _SANE_ID.fullmatch(given):
            return given
        return f"{self._id_prefix}-{next(self._ids):x}"

    async def _route(self, request: web.BaseRequest, request_id: str) -> Reply:
        """Find the handler by path, then check the method."""
        received_ns = cast("Connection", request.protocol).take_received_ns()
        if request.version not in ((1, 1), (1, 0)):
            raise errors.VersionNotSupported("speak HTTP/1.1 or HTTP/1.0")
        path = request.raw_path.partition("?")[0]
        if not path.startswith("/"):
            # Absolute-form, as proxies send it; every server must take it (RFC 9112, 3.2.2).
            path = "/" + path.partition("://")[2].partition("/")[2]
        segments = path.split("/")[1:]
        match segments:
            case ["predictions", name] if name:
                _allow(request, "POST")
                return await self.predict.answer(request, name, "", request_id, received_ns)
            case ["predictions", name, version] if name and version:
                _allow(request, "POST")
                return await self.predict.answer(request, name, version, request_id, received_ns)
            case ["models", name] if name:
                _allow(request, "GET")
                return self._status.model(name, request_id)
            case [page] if page in self._pages:
                _allow(request, "GET")
                return self._pages[page](request_id)
        raise errors.NotFound("there is nothing here; /openapi.json lists what there is")


def close_silent(connections: Iterable[Connection]) -> None:
    """Close those of them on which nothing comes."""
    for connection in connections:
        connection.close_silent()


def _limiter(settings: Settings) -> Limiter:
    """The limits that the settings ask for."""
    return Limiter(
        anonymous=Rule(
            settings.client_rate,
            settings.client_burst,
            settings.client_batch_rate,
            settings.client_batch_burst,
            settings.client_in_flight_max,
        ),
        keyed={
            client.name: Rule(client.rate, client.burst, client.batch_rate, client.batch_burst, client.in_flight_max)
            for client in settings.clients
        },
        clients_max=settings.clients_max,
        rate_max=settings.rate_max,
        rate_burst_max=settings.rate_burst_max,
    )


def _allow(request: web.BaseRequest, method: str) -> None:
    if request.method != method and not (method == "GET" and request.method == "HEAD"):
        raise errors.MethodNotAllowed(f"use {method} here", allow="GET, HEAD" if method == "GET" else method)
