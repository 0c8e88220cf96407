"""A client of the admin front for the command line: HTTP over its Unix socket, or over TCP with a token."""

from __future__ import annotations

import http.client
import json
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from gateway.client import ServerSaysNo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT_S = 30.0
"""Longer than anything is waited for in one request here."""

LOOK_S = 0.5
"""How often an operation is looked at while it goes on."""

OPERATION_S_MAX = 24 * 3600.0
DRAIN_S_MAX = 4000.0
"""Longer than any drain that settings allow."""

ANSWER_SIZE_MAX = 64 << 20
TOKEN_SIZE_MAX = 4096

CLIENT_ERRORS = range(400, 500)


class Unreachable(ServerSaysNo):
    """Nobody answers there."""


class Refused(ServerSaysNo):
    """The server answered with an error."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(f"{problem.get('code', f'status {status}')}: {problem.get('detail', '')}")
        self.is_ours = status in CLIENT_ERRORS
        """Whether what was asked is at fault, and not what was done about it."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class AdminClient:
    """One admin front: `where` is the path of its socket, or its URL; `token` goes with a URL."""

    def __init__(self, where: str, token: str = "") -> None:
        self._where = where
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def ask(self, method: str, path: str, document: object = None) -> Any:
        """One request and its JSON. Raises Unreachable, Refused, ServerSaysNo."""
        body = None if document is None else json.dumps(document).encode()
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        connection = self._connection()
        try:
            connection.request(method, path, body, headers)
            with connection.getresponse() as answer:
                content = answer.read(ANSWER_SIZE_MAX)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unreachable(
                f"no admin front at {self._where} ({reason}); is `penstock serve` running there, by this user?"
            ) from None
        finally:
            connection.close()
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ServerSaysNo(f"what answers at {self._where} is not Penstock's admin front; is the address right?")
        if answer.status in CLIENT_ERRORS or answer.status >= CLIENT_ERRORS.stop:
            raise Refused(answer.status, found)
        return found

    def _connection(self) -> http.client.HTTPConnection:
        """A fresh connection. Raises ServerSaysNo when the address is none."""
        if "://" not in self._where:
            return _UnixConnection(self._where, TIMEOUT_S)
        try:
            parts = urlsplit(self._where)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise ServerSaysNo(f"{self._where} is not an address: {error}") from None
        if parts.scheme not in ("http", "https") or not host or parts.path.strip("/") or parts.query:
            raise ServerSaysNo(f"{self._where} is not an address; write http://HOST:PORT")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(host, port, timeout=TIMEOUT_S)

    def follow(self, operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The operation as it is, again and again until it ended. Raises ServerSaysNo."""
        end = time.monotonic() + OPERATION_S_MAX
        yield operation
        while operation.get("state") not in ("succeeded", "failed"):
            if time.monotonic() > end:
                raise ServerSaysNo("the operation takes longer than a day; see `penstock status`")
            operation = self.ask("GET", f"/admin/operations/{quote(str(operation.get('id')), safe='')}?wait={LOOK_S}")
            yield operation

    def drain(self) -> Iterator[dict[str, Any]]:
        """Have the gateway go down; its status, again and again until it is gone. Raises ServerSaysNo."""
        pid = self.ask("GET", "/admin/status").get("pid")
        self.ask("POST", "/admin/drain", {})
        end = time.monotonic() + DRAIN_S_MAX
        while time.monotonic() < end:
            try:
                status = self.ask("GET", "/admin/status")
            except Unreachable:
                return
            if status.get("pid") != pid:
                return  # Its successor answers here.
            yield status
            time.sleep(LOOK_S)
        raise ServerSaysNo("the gateway is still there; a second SIGTERM ends it at once")


def model_path(name: str) -> str:
    """The path of a model. Whether there can be such a one is for the server to say."""
    return f"/admin/models/{quote(name, safe='')}"


def read_token(file: Path) -> str:
    """The token in a file. Raises ServerSaysNo when it holds none, OSError."""
    with file.open("rb") as source:
        content = source.read(TOKEN_SIZE_MAX)
    token = content.strip()
    if not token or not all(0x21 <= byte < 0x7F for byte in token):  # noqa: PLR2004 - what ASCII shows
        raise ServerSaysNo(f"{file} holds no token; it is one line, as `penstock admin-token` showed it")
    return token.decode("ascii")
