"""The admin front: its own listeners, never the public port. One way for all: guard, bound, route, body, answer.

A Unix socket that only its user can open and, where the settings ask for it, a TCP port that asks for a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import errors, logs
from gateway.admin import documents, routes
from gateway.admin.answers import Answers, Asked
from gateway.admin.guard import Guard
from gateway.http.bodies import read_small
from gateway.http.edge import Edge, allow

if TYPE_CHECKING:
    import socket

    from aiohttp import web

    from gateway.admin.protocols import Changes, Facts
    from gateway.config import Settings
    from gateway.http.responses import Reply

_log = logs.get("admin")

REQUESTS_MAX = 16
"""Requests that are being answered at once, on all listeners together; those that wait for an operation are some."""

CONNECTIONS_MAX = 64
"""Open connections of one listener."""


class AdminFront:
    """Every listener of the admin front, each of which may be absent. `refusals`: what refusals are counted in."""

    def __init__(self, settings: Settings, changes: Changes, facts: Facts, refusals: dict[str, int]) -> None:
        self._settings = settings
        self._refusals = refusals
        self._admin = _Admin(Answers(changes, facts), settings.body_timeout_s)
        self._doors: list[_Door] = []

    async def start(self, private: socket.socket | None, public: socket.socket | None) -> None:
        """Accept on a Unix socket that is our user's alone, and on a TCP socket. Both are bound; they become ours."""
        if private is not None:
            await self._open(private, Guard(""), "socket")
            _log.info("admin_listening", path=private.getsockname())
        if public is not None:
            await self._open(public, Guard(self._settings.admin_token_sha256, [self._settings.admin_host]), "port")
            _log.info("admin_listening", address=public.getsockname()[:2])

    async def _open(self, bound: socket.socket, guard: Guard, name: str) -> None:
        door = _Door(self._settings, self._admin, guard, name, self._refusals)
        self._doors.append(door)
        await door.start(bound)

    def stop_accepting(self) -> None:
        """Close the listeners; who is connected is still answered."""
        for door in self._doors:
            door.stop_accepting()

    async def close(self, timeout_s: float) -> None:
        """Stop listening, finish what is being answered, close every connection."""
        for door in self._doors:
            await door.close(timeout_s)


class _Admin:
    """What all listeners share: the bound on requests, and the way of one."""

    def __init__(self, answers: Answers, body_timeout_s: float) -> None:
        self._answers = answers
        self._body_timeout_s = body_timeout_s
        self._request_count = 0

    async def answer(self, request: web.BaseRequest, request_id: str) -> Reply:
        """Answer a request that may ask. Raises Refusal."""
        if self._request_count >= REQUESTS_MAX:
            raise errors.RateLimited(f"{REQUESTS_MAX} admin requests are being answered; try again", retry_after_s=1)
        self._request_count += 1
        try:
            path, _, query = request.raw_path.partition("?")
            found, parameters = routes.find(path)
            allow(request, *found)
            route = found["GET" if request.method == "HEAD" else request.method]
            documents.check_parameters(parameters)
            asked_query = documents.read_query(query, route.query)
            body = None
            if route.body is not None:
                content = await read_small(request, documents.BODY_SIZE_MAX, self._body_timeout_s)
                body = documents.read_body(content, request.headers.get("Content-Type", ""), route.body)
            elif request.body_exists:
                # A DELETE whose body names a version would otherwise take the whole model away.
                raise errors.BadRequest(f"{route.method} takes no body here; see /admin/openapi.json")
            answer = getattr(self._answers, route.name)
            reply: Reply = await answer(Asked(parameters, asked_query, body, request_id))
            return reply
        finally:
            self._request_count -= 1


class _Door(Edge):
    """One listener."""

    def __init__(self, settings: Settings, admin: _Admin, guard: Guard, name: str, refusals: dict[str, int]) -> None:
        super().__init__(settings, connections_max=CONNECTIONS_MAX, refusals=refusals)
        self._admin = admin
        self._guard = guard
        self._name = name

    async def answer(self, request: web.BaseRequest, request_id: str, received_ns: int) -> Reply:
        """Look who asks, answer, and log what changed something, or tried to. Raises Refusal."""
        del received_ns
        code = "internal"
        try:
            self._guard.check(request)
            reply = await self._admin.answer(request, request_id)
            code = "ok"
        except errors.Refusal as refusal:
            code = refusal.code
            raise
        else:
            return reply
        finally:
            if request.method not in {"GET", "HEAD"} or code in {"unauthorized", "forbidden"}:
                path = request.raw_path.partition("?")[0]
                _log.info(
                    "admin_request",
                    method=request.method,
                    path=path,
                    code=code,
                    listener=self._name,
                    request_id=request_id,
                )
