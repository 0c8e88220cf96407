"""Every answer that leaves the gateway, and the only table that turns an error into a status."""

from __future__ import annotations

import asyncio
import email.utils
import functools
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import orjson
from aiohttp import web

from gateway import errors
from gateway.calls import Classes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.calls import Outcome
    from gateway.errors import Refusal

STATUS: dict[type[Refusal], int] = {
    errors.BadRequest: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.UnknownModel: 404,
    errors.MethodNotAllowed: 405,
    errors.BodyTimeout: 408,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.LoadFailed: 422,
    errors.UndecodableImage: 422,
    errors.RateLimited: 429,
    errors.InferenceFailed: 500,
    errors.Poisoned: 500,
    errors.MemoryNotGivenBack: 500,
    errors.OperationFailed: 500,
    errors.Refusal: 500,
    errors.WorkerLost: 502,
    errors.Overloaded: 503,
    errors.Draining: 503,
    errors.ModelNotReady: 503,
    errors.DeadlineExceeded: 504,
    errors.VersionNotSupported: 505,
    errors.InsufficientMemory: 507,
}
"""Refusal → status; a subclass that is not listed answers as its nearest listed parent."""

TAKE_TIMEOUT_S = 10.0
"""How long a client may leave its answer unread before its connection is cut."""

CHALLENGE = 'WWW-Authenticate: Bearer realm="penstock"\r\n'
"""How to authenticate. Source: RFC 6750, 3."""

JSON = "application/json"
MSGPACK = "application/msgpack"
PROBLEM = "application/problem+json"


def status_of(refusal: Refusal) -> int:
    """The status of a refusal."""
    for kind in type(refusal).__mro__:
        status = STATUS.get(kind)
        if status is not None:
            return status
    return 500


class Reply(web.StreamResponse):
    """A whole answer, sent with one write. `more`: further headers, a line each.

    aiohttp's own response assembles its headers in a dict of a dozen steps; ours are five, known, and the same each
    time.
    """

    def __init__(self, body: bytes, content_type: str, request_id: str, status: int = 200, more: str = "") -> None:
        # Not super().__init__(): nothing of what it sets up is used, but for what is set here.
        self.body = body
        self._status = status
        self._head = (
            f"{_STATUS_LINES[status]}Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
            f"X-Request-Id: {request_id}\r\n{more}"
        )
        self._keep_alive: bool | None = None

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write the answer. Raises ConnectionResetError when the client is gone."""
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        if not self._keep_alive:
            connection = "Connection: close\r\n"
        else:
            connection = "" if request.version >= (1, 1) else "Connection: keep-alive\r\n"
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        head = f"{self._head}{connection}Date: {_date()}\r\n\r\n".encode("ascii")
        transport.write(head if request.method == "HEAD" else head + self.body)
        if transport.get_write_buffer_size():
            await _wait_taken(request, transport)

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""
        assert not data


async def _wait_taken(request: web.BaseRequest, transport: asyncio.Transport) -> None:
    """Until the client took enough of its answer for the next one. Raises ConnectionResetError when it does not."""
    try:
        async with asyncio.timeout(TAKE_TIMEOUT_S):
            await request.writer.drain()
    except TimeoutError:
        transport.abort()
        raise ConnectionResetError("the client does not read its answer") from None


_SERVER = "Server: penstock\r\n"
"""Without one, the library would tell its version and Python's to whoever looks for a hole in them."""

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n{_SERVER}" for status in HTTPStatus}


def _date() -> str:
    """The Date header's value, made once a second."""
    return _date_at(int(time.time()))


@functools.lru_cache(maxsize=1)
def _date_at(second: int) -> str:
    return email.utils.formatdate(second, usegmt=True)


def problem(refusal: Refusal, request_id: str, more: str = "") -> Reply:
    """A refusal as application/problem+json (RFC 9457), with the headers that belong to it, and `more` of them."""
    status = status_of(refusal)
    body = orjson.dumps(
        {
            "type": "about:blank",
            "title": refusal.code.replace("_", " "),
            "status": status,
            "code": refusal.code,
            "detail": refusal.detail,
            "request_id": request_id,
            **refusal.extra,
        }
    )
    if refusal.retry_after_s is not None:
        more += f"Retry-After: {refusal.retry_after_s}\r\n"
    if isinstance(refusal, errors.MethodNotAllowed):
        more += f"Allow: {refusal.allow}\r\n"
    elif isinstance(refusal, errors.Unauthorized):
        more += CHALLENGE
    return Reply(body, PROBLEM, request_id, status, more)


def choose_type(accept: str | None, content_type: str) -> str:
    """JSON or MSGPACK for the answer: msgpack in, msgpack out, unless `Accept` names the other one."""
    if accept:
        wants_json, wants_msgpack = accept.find("json"), accept.find("msgpack")
        if wants_json >= 0 and (wants_msgpack < 0 or wants_json < wants_msgpack):
            return JSON
        if wants_msgpack >= 0:
            return MSGPACK
    return MSGPACK if "msgpack" in content_type else JSON


def encode(document: Mapping[str, Any], content_type: str) -> bytes:
    """A document in the type that `choose_type` chose."""
    if content_type == MSGPACK:
        packed: bytes = msgpack.packb(document)
        return packed
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def answer(outcome: Outcome, labels: Sequence[str], content_type: str) -> dict[str, Any]:
    """One image's part of an answer: its prediction, its outputs, or its error."""
    if type(outcome) is Classes:
        return {
            "prediction": [
                {"class": labels[index] if labels else str(index), "index": index, "probability": probability}
                for index, probability in zip(outcome.indices, outcome.probabilities, strict=True)
            ]
        }
    if isinstance(outcome, errors.Refusal):
        return {"error": {"code": outcome.code, "detail": outcome.detail}}
    assert isinstance(outcome, dict)
    return {"outputs": {name: _tensor(array, content_type) for name, array in outcome.items()}}


def _tensor(array: np.ndarray[Any, Any], content_type: str) -> dict[str, Any]:
    """An array as {"shape", "dtype", "data"}: bytes (C-order, little-endian) in msgpack, flat lists in JSON."""
    data: Any
    if content_type == MSGPACK:
        data = array.tobytes()
    elif array.dtype == np.float16:
        data = array.astype(np.float32).ravel()  # orjson has no float16; the values are the same
    else:
        data = np.ascontiguousarray(array).ravel()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "data": data}
