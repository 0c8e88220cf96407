"""Reads request bodies into the bodies segment: byte limit, deadline, minimum rate, one budget for all."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from aiohttp.client_exceptions import ClientPayloadError
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from gateway import errors

if TYPE_CHECKING:
    from aiohttp.streams import StreamReader
    from aiohttp.web import BaseRequest

    from gateway.config import Settings
    from gateway.scheduling.scheduler import Scheduler
    from gateway.scheduling.ticket import Body

FIRST_SIZE = 1 << 20
"""Bytes taken at first for a body that is still to come, at most; doubled as it grows. Sixteen clients that announce
16 MiB each and send nothing would otherwise hold the whole default budget.
"""

_MALFORMED = (RequestPayloadError, ClientPayloadError, HttpProcessingError)
"""What the parser says of a body that is no HTTP."""

LOOK_S = 0.5
"""How often a slow body's rate is looked at."""


class BodyReader:
    """What every body is read under; one for the whole front. `view` is the gateway's view of the bodies segment."""

    def __init__(self, core: Scheduler, view: memoryview, settings: Settings) -> None:
        self._core = core
        self._view = view
        self._size_max = settings.body_size_max
        self._timeout_s = settings.body_timeout_s
        self._rate_min = settings.body_rate_min
        self._grace_s = settings.body_rate_grace_s

    def announced_size(self, request: BaseRequest) -> int:
        """Bytes that the body will have; 0 when they are not told, or more than are read."""
        size = request.content_length or 0
        return size if size <= self._size_max else 0

    def read_nowait(self, request: BaseRequest) -> Body | None:
        """The whole body if it came with its headers, as small ones do; else None, and `read` waits for it.

        Raises: PayloadTooLarge, UnsupportedMediaType, Overloaded.
        """
        content = request.content
        size = request.content_length
        if not size or not content.is_eof():
            return None
        _check_encoding(request)
        if size > self._size_max:
            raise self._too_large()
        piece = content.read_nowait(-1)
        body = self._core.allocate_body(len(piece))
        start = body.region.offset
        self._view[start : start + len(piece)] = piece
        return body

    async def read(self, request: BaseRequest, deadline_ns: int) -> Body:
        """The whole body; its region's size is the body's. The caller owns one hold.

        Raises: PayloadTooLarge, UnsupportedMediaType, BadRequest, BodyTimeout, DeadlineExceeded, Draining, Overloaded.
        """
        _check_encoding(request)
        size = request.content_length
        if size is None and request.content.is_eof() and "Transfer-Encoding" not in request.headers:
            raise errors.BadRequest("the request has no body; send an image")
        if size is not None and size > self._size_max:
            raise self._too_large()
        if size == 0:
            raise errors.BadRequest("the body is empty; send an image")
        body = self._core.allocate_body(min(size or FIRST_SIZE, FIRST_SIZE, self._size_max))
        filled = 0
        begun_ns = time.monotonic_ns()
        try:
            _continue(request)
            while piece := await self._next(request.content, begun_ns, deadline_ns, filled):
                needed = filled + len(piece)
                if needed > self._size_max:
                    raise self._too_large()
                if needed > body.region.size:
                    body = self._grow(body, filled, needed, size or self._size_max)
                start = body.region.offset + filled
                self._view[start : start + len(piece)] = piece
                filled = needed
            if not filled:
                raise errors.BadRequest("the body is empty; send an image")
            body.shrink(filled)
        except BaseException:
            body.release()
            raise
        return body

    def _grow(self, body: Body, filled: int, needed: int, most: int) -> Body:
        """A region twice as large with the same beginning: what is only announced takes no memory from others."""
        larger = self._core.allocate_body(min(max(2 * body.region.size, needed), max(most, needed)))
        old, new = body.region.offset, larger.region.offset
        self._view[new : new + filled] = self._view[old : old + filled]
        body.release()
        return larger

    async def _next(self, content: StreamReader, begun_ns: int, deadline_ns: int, filled: int) -> bytes:
        """The next piece as it comes; b"" at the end. Waits only as long as the body keeps its deadline and rate."""
        try:
            if content.is_eof():
                return content.read_nowait(-1)
            while True:
                now_ns = time.monotonic_ns()
                elapsed = (now_ns - begun_ns) / 1e9
                if now_ns >= deadline_ns:
                    raise errors.DeadlineExceeded("the body was not here before the request's deadline; send it faster")
                if elapsed > self._timeout_s:
                    raise errors.BodyTimeout(f"the body took longer than {self._timeout_s:g} s; send it faster")
                if filled < (elapsed - self._grace_s) * self._rate_min:
                    raise errors.BodyTimeout(f"the body came slower than {self._rate_min} bytes/s; send it faster")
                if self._core.draining:
                    raise errors.Draining("the server is going down; send this to another one", retry_after_s=5)
                try:
                    async with asyncio.timeout(min(LOOK_S, (deadline_ns - now_ns) / 1e9 + 0.001)):
                        return await content.readany()
                except TimeoutError:
                    continue
        except _MALFORMED:
            raise errors.BadRequest("the body is not well-formed HTTP") from None

    def _too_large(self) -> errors.PayloadTooLarge:
        return errors.PayloadTooLarge(f"the body is over {self._size_max} bytes; send a smaller one, or fewer images")


async def read_small(request: BaseRequest, size_max: int, timeout_s: float) -> bytes:
    """A whole body that is no image, on the heap; b"" when there is none.

    Raises: PayloadTooLarge, UnsupportedMediaType, BadRequest, BodyTimeout.
    """
    _check_encoding(request)
    too_large = errors.PayloadTooLarge(f"the body is over {size_max} bytes; send a smaller one")
    if (request.content_length or 0) > size_max:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            _continue(request)
            while piece := await request.content.readany():
                content += piece
                if len(content) > size_max:
                    raise too_large
    except TimeoutError:
        raise errors.BodyTimeout(f"the body took longer than {timeout_s:g} s; send it faster") from None
    except _MALFORMED:
        raise errors.BadRequest("the body is not well-formed HTTP") from None
    return bytes(content)


def _check_encoding(request: BaseRequest) -> None:
    encoding = request.headers.get("Content-Encoding")
    if encoding is not None and encoding.lower() != "identity":
        raise errors.UnsupportedMediaType("bodies are never decompressed here; send this one as it is")


def _continue(request: BaseRequest) -> None:
    """Tell a client that waits for leave (curl, from 1 MiB) to go on; by now its headers were accepted."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
