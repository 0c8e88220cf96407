"""What every HTTP front is made of: its listener and connections, request ids, the error edge, the drain. No framework.

A front is an `Edge` that answers; it knows what it serves. The edge knows none of it, and no policy.
"""

from __future__ import annotations

import abc
import asyncio
import itertools
import re
import secrets
from typing import TYPE_CHECKING, cast

from gateway import errors, logs
from gateway.http import responses
from gateway.http.connections import Server
from gateway.http.listener import Listener

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from aiohttp import web

    from gateway.config import Settings
    from gateway.http.connections import Connection
    from gateway.http.responses import Reply

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


class Edge(abc.ABC):
    """One listener with its connections; a subclass answers. `refusals`: what refusals are counted in, by code.

    `start` opens it, `drain` closes it and serves who is there, `close` ends what is left.
    """

    def __init__(self, settings: Settings, *, connections_max: int, refusals: dict[str, int]) -> None:
        self.draining = False
        self._refusals = refusals
        self._header_timeout_s = settings.header_timeout_s
        self._id_prefix = secrets.token_hex(4)
        self._ids = itertools.count(1)
        self._server = Server(
            self._handle,
            handler_cancellation=True,
            connections_max=connections_max,
            refuse=self.refuse,
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

    @property
    def connection_count(self) -> int:
        """Open connections."""
        return len(self._server.accepted)

    @abc.abstractmethod
    async def answer(self, request: web.BaseRequest, request_id: str, received_ns: int) -> Reply:
        """The answer to one request, whose headers came at `received_ns`. Raises Refusal."""

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self, bound: socket.socket) -> None:
        """Accept on a bound socket."""
        self._listener = Listener(asyncio.get_running_loop(), bound, self._server.protocol)

    def announce_drain(self) -> None:
        """From now on every answer ends its connection; all the same everybody is served."""
        self.draining = True

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
            received_ns = cast("Connection", request.protocol).take_received_ns()
            if request.version not in ((1, 1), (1, 0)):
                raise errors.VersionNotSupported("speak HTTP/1.1 or HTTP/1.0")
            response = await self.answer(request, request_id, received_ns)
        except errors.Refusal as refusal:
            response = self.refuse(refusal, request_id)
        except Exception:  # noqa: BLE001 - the edge: whatever nobody foresaw is logged and answered with 500
            _log.exception("request_failed", request_id=request_id)
            response = self.refuse(
                errors.Refusal("something went wrong here; the log has it under this request id"), request_id
            )
        if self.draining and cast("Connection", request.protocol).is_last:
            # The client is not to send its next request here: the connection ends with the drain.
            response.force_close()
        return response

    def refuse(self, refusal: errors.Refusal, request_id: str, more: str = "") -> Reply:
        """Count a refusal and put it into words; `more`: further headers, a line each."""
        self._refusals[refusal.code] = self._refusals.get(refusal.code, 0) + 1
        return responses.problem(refusal, request_id, more)

    def _request_id(self, request: web.BaseRequest) -> str:
        """The client's own id when it is sane, else a new one."""
        given = request.headers.get("X-Request-Id")
        if given is not None and _SANE_ID.fullmatch(given):
            return given
        return f"{self._id_prefix}-{next(self._ids):x}"


def close_silent(connections: Iterable[Connection]) -> None:
    """Close those of them on which nothing comes."""
    for connection in connections:
        connection.close_silent()


def allow(request: web.BaseRequest, *methods: str) -> None:
    """Raises MethodNotAllowed unless the request's method is one of `methods`; who allows GET allows HEAD."""
    if request.method not in methods and not (request.method == "HEAD" and "GET" in methods):
        allowed = ", ".join("GET, HEAD" if method == "GET" else method for method in methods)
        raise errors.MethodNotAllowed(f"use {' or '.join(methods)} here", allow=allowed)
