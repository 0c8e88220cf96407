"""A small client of our own front, for the command line: files in, answers out. msgpack over plain HTTP."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import msgpack
import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT_S = 70.0
"""Longer than any deadline that a model allows by default."""


class ServerSaysNo(Exception):
    """The server cannot be reached, or refused; the text is for a person."""


def predict(url: str, model: str, images: Sequence[bytes], top_k: int | None) -> list[dict[str, Any]]:
    """Send images in one request; one `{"prediction": ...}`, `{"outputs": ...}` or `{"error": ...}` for each, in order.

    Raises: ServerSaysNo.
    """
    body: dict[str, Any] = {"images": list(images)}
    if top_k is not None:
        body["top_k"] = top_k
    path = "/predictions/" + "/".join(urllib.parse.quote(part, safe="") for part in model.split("/"))
    request = urllib.request.Request(  # noqa: S310 - the user names the server, and it is checked in _call
        url.rstrip("/") + path,
        data=msgpack.packb(body),
        headers={"Content-Type": "application/msgpack", "Accept": "application/msgpack"},
    )
    try:
        document = msgpack.unpackb(_call(request))
    except _Refused as refused:
        if "predictions" in refused.problem:
            predictions: list[dict[str, Any]] = refused.problem["predictions"]
            return predictions
        raise
    answers: list[dict[str, Any]] = document["predictions"]
    return answers


def models(url: str) -> list[dict[str, Any]]:
    """`GET /models`. Raises ServerSaysNo."""
    request = urllib.request.Request(url.rstrip("/") + "/models")  # noqa: S310 - as above
    listed: list[dict[str, Any]] = orjson.loads(_call(request))["models"]
    return listed


class _Refused(ServerSaysNo):
    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(f"{problem.get('code', 'error')}: {problem.get('detail', '')}")
        self.problem = problem


def _call(request: urllib.request.Request) -> bytes:
    if not request.full_url.startswith(("http://", "https://")):
        raise ServerSaysNo(f"{request.full_url} is not an http:// or https:// address")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - checked above
            body: bytes = response.read()
            return body
    except urllib.error.HTTPError as error:
        try:
            problem = orjson.loads(error.read())
        except (orjson.JSONDecodeError, OSError):
            problem = {"code": f"status {error.code}", "detail": "this is not a Penstock server's answer"}
        raise _Refused(problem) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ServerSaysNo(f"no answer from {request.host}: {reason}; is `penstock serve` running there?") from None
