"""Every answer that leaves the gateway, and the only table that turns an error into a status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import orjson
from aiohttp import web

from gateway import errors
from gateway.driver import Classes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.driver import Outcome
    from gateway.errors import Refusal

STATUS: dict[type[Refusal], int] = {
    errors.BadRequest: 400,
    errors.Unauthorized: 401,
    errors.NotFound: 404,
    errors.UnknownModel: 404,
    errors.MethodNotAllowed: 405,
    errors.BodyTimeout: 408,
    errors.PayloadTooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.UndecodableImage: 422,
    errors.RateLimited: 429,
    errors.InferenceFailed: 500,
    errors.Refusal: 500,
    errors.WorkerLost: 502,
    errors.Overloaded: 503,
    errors.Draining: 503,
    errors.ModelNotReady: 503,
    errors.DeadlineExceeded: 504,
    errors.VersionNotSupported: 505,
}
"""Refusal → status; a subclass that is not listed answers as its nearest listed parent."""

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


def reply(body: bytes, content_type: str, request_id: str, status: int = 200) -> web.Response:
    """One whole answer."""
    return web.Response(body=body, status=status, headers={"Content-Type": content_type, "X-Request-Id": request_id})


def problem(
    refusal: Refusal, request_id: str, *, extra: Mapping[str, Any] | None = None, status: int | None = None
) -> web.Response:
    """A refusal as application/problem+json (RFC 9457), with `Retry-After` and `Allow` where they apply."""
    status = status or status_of(refusal)
    body = orjson.dumps(
        {
            "type": "about:blank",
            "title": refusal.code.replace("_", " "),
            "status": status,
            "code": refusal.code,
            "detail": refusal.detail,
            "request_id": request_id,
            **(extra or {}),
        }
    )
    response = reply(body, PROBLEM, request_id, status)
    if refusal.retry_after_s is not None:
        response.headers["Retry-After"] = str(refusal.retry_after_s)
    if isinstance(refusal, errors.MethodNotAllowed):
        response.headers["Allow"] = refusal.allow
    return response


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
        names: list[str] = (
            [labels[index] for index in outcome.indices] if labels else [str(index) for index in outcome.indices]
        )
        return {
            "prediction": [
                {"class": name, "index": index, "probability": probability}
                for name, index, probability in zip(names, outcome.indices, outcome.probabilities, strict=True)
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
