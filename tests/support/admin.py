"""An admin front in a thread of its own, in front of changes that are only remembered, and sockets that speak to it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from typing import TYPE_CHECKING, Any

import msgspec

from gateway import errors
from gateway.admin.front import AdminFront
from gateway.admin.routes import ROUTES
from gateway.clients import digest_of
from gateway.config import Settings
from gateway.lifecycle.desired import Want
from gateway.lifecycle.operations import Operations
from tests.support.gateways import SEEN, WAIT_S, Answer, Connection

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.lifecycle.operations import Operation

TOKEN = "psa_the-token-of-the-tests"

HOST = ("Host", "localhost")
GOOD = ("Authorization", f"Bearer {TOKEN}")
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")

PLACES = {"{name}": "m", "{index}": "0", "{id}": "0123456789abcdef"}
PATHS = sorted({re.sub(r"\{\w+\}", lambda found: PLACES[found[0]], route.path) for route in ROUTES})
ODD_PATHS = (
    "/", "/admin", "/admin/", "/admin/nothing", "//admin/models", "/admin//models", "/./admin/models", "/admin/models/",
    "/admin/%6dodels", "/admin%2fmodels", "/ADMIN/models", "/predictions/m", "/models", "/metrics", "*",
    "http://localhost/admin/models", "/admin/models?wait=1", "/admin/models#x", "/admin/models/..%2f..%2fetc%2fpasswd",
)  # fmt: skip


class Remembered:
    """`Changes` and `Facts` in memory: `calls` says what was asked for; operations end by `end`, or at once.

    Model `m` is known, with versions 1 and 3; worker 0 exists. `outcome`: None while operations are left under way.
    """

    def __init__(self) -> None:
        self.operations = Operations()
        self.calls: list[tuple[Any, ...]] = []
        self.wants: dict[str, Want] = {"m": Want()}
        self.served = {1, 3}
        self.outcome: errors.Refusal | str | None = "succeeded"
        self.refusal: errors.Refusal | None = None
        self.draining = False

    def _begin(self, kind: str, name: str = "", *more: Any) -> Operation:
        if kind not in ("evaluate", "restart"):
            self.model(name)
        if self.refusal is not None:
            raise self.refusal
        operation = self.operations.begin(kind, name)
        self.calls.append((kind, *((name,) if name else ()), *more))
        operation.start()
        operation.progress("loading", 0.5)
        if self.outcome is not None:
            self.end(operation)
        return operation

    def end(self, operation: Operation) -> None:
        if isinstance(self.outcome, errors.Refusal):
            operation.fail(self.outcome)
        else:
            operation.result = {"seconds": 0.5}
            operation.succeed()

    def load(self, name: str, versions: tuple[int, ...] | None = None, *, default: int | None = None) -> Operation:
        return self._begin("load", name, versions, *(() if default is None else (default,)))

    def unload(self, name: str, version: int | None = None) -> Operation:
        return self._begin("unload", name, version)

    def reload(self, name: str, version: int | None = None) -> Operation:
        return self._begin("reload", name, version)

    def configure(self, name: str, want: Want) -> Operation:
        operation = self._begin("configure", name, want)
        self.wants[name] = want
        return operation

    def evaluate(self) -> Operation:
        return self._begin("evaluate")

    def restart(self, worker: int) -> Operation:
        if worker:
            raise errors.NotFound("there is no such worker; see /admin/workers")
        return self._begin("restart", "", worker)

    def models(self) -> list[dict[str, Any]]:
        return [self.model(name) for name in self.wants]

    def model(self, name: str) -> dict[str, Any]:
        if name not in self.wants:
            raise errors.UnknownModel("there is no such model; see /admin/models")
        versions = [
            {"version": version, "state": "ready", "wanted": True, "line": version, "memory_size": 7 << 20}
            if version in self.served
            else {"version": version, "state": "unloaded", "wanted": False}
            for version in (1, 2, 3)
        ]
        want = msgspec.to_builtins(self.wants[name], str_keys=True)
        return {"name": name, "want": want, "default_version": 3, "reports": ["it is a test"], "versions": versions}

    def workers(self) -> list[dict[str, Any]]:
        return [
            {
                "index": 0,
                "seat": 0,
                "device": "cpu",
                "pid": 4711,
                "state": "ready",
                "models": ["m/1", "m/3"],
                "memory_size": 300 << 20,
                "restarts": 2,
                "retiring": False,
                "obituary": None,
            }
        ]

    def status(self) -> dict[str, Any]:
        """What `Facts` has to say."""
        return {"version": "0", "pid": 4710, "status": "draining" if self.draining else "ready", "in_flight": 0}

    def drain(self) -> None:
        self.draining = True


class AdminConnection(Connection):
    """A connection to an admin front, by its path or its port."""

    def __init__(self, where: Path | int) -> None:
        self._rest = b""
        if isinstance(where, int):
            self.socket = socket.create_connection(("127.0.0.1", where), timeout=WAIT_S)
        else:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.settimeout(WAIT_S)
            self.socket.connect(str(where))

    def read_answer(self, *, with_body: bool = True) -> Answer:
        """The next whole answer. An operator may know pids; a refusal names none."""
        answer = super().read_answer(with_body=with_body)
        if answer.status < 400:
            SEEN.pop()
        return answer

    def ask(self, method: str, path: str, body: bytes = b"", *fields: tuple[str, str]) -> Answer:
        """Send a request; `fields` are its headers, a Host among them unless it is to have none."""
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body)
        return self.read_answer(with_body=method != "HEAD")


class AdminServer:
    """A front that listens in a thread: `path` and `port` say where, `changes` what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "admin.sock"
        self.changes = Remembered()
        self.refusals: dict[str, int] = {}
        self.settings = Settings(
            admin_port=1, admin_token_sha256=digest_of(TOKEN), header_timeout_s=WAIT_S, body_timeout_s=0.5,
            body_rate_grace_s=0.1,
        )  # fmt: skip
        self._loop = asyncio.new_event_loop()
        self._asked = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        assert self._ready.wait(WAIT_S)

    async def _serve(self) -> None:
        front = AdminFront(self.settings, self.changes, self.changes, self.refusals)
        private = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        private.bind(str(self.path))
        public = socket.create_server(("127.0.0.1", 0))
        self.port = public.getsockname()[1]
        await front.start(private, public)
        self._ready.set()
        await self._asked.wait()
        await front.close(1.0)

    def call(self, function, *arguments) -> Any:
        """Call a function in the front's loop, and wait for what it returns."""
        done: list[Any] = []
        called = threading.Event()

        def run() -> None:
            done.append(function(*arguments))
            called.set()

        self._loop.call_soon_threadsafe(run)
        assert called.wait(WAIT_S)
        return done[0]

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._asked.set)
        self._thread.join(WAIT_S)
        self._loop.close()

    # -- asking

    def ask(self, method: str, path: str, document: Any = None, *fields: tuple[str, str]) -> Answer:
        """Ask over the Unix socket as the command line does; `fields`: further headers."""
        body = b"" if document is None else document if isinstance(document, bytes) else msgspec.json.encode(document)
        more = (("Host", "localhost"), *fields)
        if body and not any(name == "Content-Type" for name, _ in fields):
            more += (("Content-Type", "application/json"),)
        with AdminConnection(self.path) as connection:
            return connection.ask(method, path, body, *more)

    def ask_port(self, method: str, path: str, *fields: tuple[str, str]) -> Answer:
        """Ask over TCP with these headers and no others."""
        with AdminConnection(self.port) as connection:
            return connection.ask(method, path, b"", *fields)


@contextlib.contextmanager
def admin_server(folder: Path) -> Iterator[AdminServer]:
    server = AdminServer(folder)
    try:
        yield server
    finally:
        server.close()
