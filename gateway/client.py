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
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

TIMEOUT_S = 70.0
"""Longer than any deadline that a model allows by default."""

_STRANGER = "{} is not a Penstock server; is the address right?"


FILES_PER_REQUEST = 16
SIZE_PER_REQUEST = 8 << 20
"""Files, and bytes, that are sent together at most: half of what a server takes by default. One is always sent."""


def chunks(files: Sequence[Path]) -> Iterator[list[tuple[Path, bytes]]]:
    """Files with their bytes, in groups that fit one request, read as they are needed. Raises OSError."""
    chunk: list[tuple[Path, bytes]] = []
    size = 0
    for file in files:
        image = file.read_bytes()
        if chunk and (len(chunk) == FILES_PER_REQUEST or size + len(image) > SIZE_PER_REQUEST):
            yield chunk
            chunk, size = [], 0
        chunk.append((file, image))
        size += len(image)
    if chunk:
        yield chunk


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
    headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    try:
        document = _call(url, path, msgpack.unpackb, data=msgpack.packb(body), headers=headers)
    except _Refused as refused:
        if "predictions" not in refused.problem:
            raise
        document = refused.problem
    return _list(document, "predictions")


def models(url: str) -> list[dict[str, Any]]:
    """`GET /models`. Raises ServerSaysNo."""
    return _list(_call(url, "/models", orjson.loads), "models")


class _Refused(ServerSaysNo):
    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(f"{problem.get('code', 'error')}: {problem.get('detail', '')}")
        self.problem = problem


def _call(url: str, path: str, read: Callable[[bytes], Any], **request: Any) -> Any:
    """Send one request and read its answer. Raises ServerSaysNo."""
    if not url.startswith(("http://", "https://")):
        raise ServerSaysNo(f"{url} is not an http:// or https:// address")
    try:
        asked = urllib.request.Request(url.rstrip("/") + path, **request)  # noqa: S310 - checked above
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as response:  # noqa: S310 - checked above
            body: bytes = response.read()
    except urllib.error.HTTPError as error:
        try:
            problem = orjson.loads(error.read())
        except (ValueError, OSError):
            problem = None
        if not isinstance(problem, dict):
            problem = {"code": f"status {error.code}", "detail": "this is not a Penstock server's answer"}
        raise _Refused(problem) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ServerSaysNo(f"no answer from {url}: {reason}; is `penstock serve` running there?") from None
    except ValueError as error:
        raise ServerSaysNo(f"{url} is not an address: {error}") from None
    try:
        return read(body)
    except ValueError:
        raise ServerSaysNo(_STRANGER.format(url)) from None


def _list(document: Any, key: str) -> list[dict[str, Any]]:
    """The list under `key` of an answer. Raises ServerSaysNo when there is none."""
    found = document.get(key) if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise ServerSaysNo(_STRANGER.format("what answers there"))
    return found
