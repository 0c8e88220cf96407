"""multipart/form-data bodies: each file is an image, whatever its field's name; three fields are parameters.

The boundary decides alone: wherever CRLF, two dashes and the boundary stand together, a part ends, as RFC 2046 has it
(a sender has to choose a boundary that is not in its data). So no candidate is ever looked at twice, and the search is
linear on any bytes. It runs over small copied windows, because bytes have a fast search and memoryviews have none.

Source: RFC 2046 section 5.1.1, RFC 7578.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from gateway.errors import BadRequest, PayloadTooLarge
from gateway.http.payloads.query import (
    PARAMETERS,
    TEXT_SIZE_MAX,
    Part,
    Query,
    check_count,
    nearest,
    parameter_from_text,
    parameters,
    quote,
)
from shm.wire import Encoding

BOUNDARY_SIZE_MAX = 70
"""Characters, by RFC 2046."""

EXTRA_PARTS_MAX = 8
"""Parts beside the images: parameters, and the empty file fields that browsers send."""

HEADERS_SIZE_MAX = 4096
"""Bytes of one part's headers."""

HEADER_COUNT_MAX = 16
"""Headers of one part."""

PADDING_SIZE_MAX = 64
"""Bytes of blanks between a boundary and the end of its line."""

WINDOW_SIZE = 64 * 1024
"""Bytes searched, and copied to be searched, in one step."""

_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf';[ \t]*({_NAME})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^;"\s]*))[ \t]*', re.DOTALL)
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_LINE_END = re.compile(rb"[ \t]*\r\n")
_PLAIN_ENCODINGS = ("", "binary", "8bit", "7bit")


class _Headers(NamedTuple):
    """What matters of a part's headers. `filename` is None when the part is no file; it is never used as a path."""

    name: str
    filename: str | None
    media_type: str

    @property
    def is_image(self) -> bool:
        return (
            self.filename is not None
            or self.media_type.startswith("image/")
            or self.media_type == "application/octet-stream"
        )


class _Finder:
    """Finds byte strings in a body. Keeps the last window, so that many parts in one place are copied once."""

    __slots__ = ("_body", "_start", "_window")

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self._start = 0
        self._window = b""

    def find(self, needle: bytes, start: int, end: int) -> int:
        """Offset of the first `needle` that lies whole in body[start:end], or -1."""
        while start + len(needle) <= end:
            if not self._start <= start <= self._start + len(self._window) - len(needle):
                self._start, self._window = start, bytes(self._body[start : start + WINDOW_SIZE])
            found = self._window.find(needle, start - self._start, end - self._start)
            if found >= 0:
                return self._start + found
            # The next window starts where this one's last bytes could still begin a match.
            start = self._start + len(self._window) - len(needle) + 1
        return -1


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type header names. Raises BadRequest."""
    boundary = _words(content_type).get("boundary", "")
    if _BOUNDARY.fullmatch(boundary):
        return boundary.encode("ascii")
    raise BadRequest(f"multipart/form-data needs a boundary of 1 to {BOUNDARY_SIZE_MAX} characters in Content-Type.")


def read_multipart(body: memoryview, content_type: str, images_max: int) -> Query:
    """Read a multipart body by its Content-Type header. Raises BadRequest, PayloadTooLarge."""
    return read_parts(body, boundary_of(content_type), images_max)


def read_parts(body: memoryview, boundary: bytes, images_max: int) -> Query:
    """Read the parts between `boundary`.

    Raises:
        BadRequest: a part without an end, headers that are too long or not understood, or a field nobody knows.
        PayloadTooLarge: more images than `images_max`, or more parts than `images_max` + EXTRA_PARTS_MAX.
    """
    finder = _Finder(body)
    images: list[Part] = []
    found: dict[str, object] = {}
    offset = _first_part(body, finder, boundary)
    for _ in range(images_max + EXTRA_PARTS_MAX):
        if offset < 0:
            break
        headers, start = _headers(body, finder, offset)
        # The line end before a boundary belongs to it; an empty part may share it with the end of its headers.
        end = finder.find(b"\r\n--" + boundary, start - 2, len(body))
        if end < 0:
            raise BadRequest("The multipart body ends before its last boundary.")
        offset = _after_boundary(body, end + len(boundary) + 4)
        size = max(0, end - start)
        if not headers.is_image:
            _take_field(headers.name, bytes(body[start : start + min(size, TEXT_SIZE_MAX + 1)]), found)
        elif size or headers.filename:
            images.append(Part(start, size, Encoding.BINARY))
    if offset >= 0:
        raise PayloadTooLarge(f"More than {images_max + EXTRA_PARTS_MAX} parts in one request; send several requests.")
    check_count(len(images), images_max)
    return Query(images, None, len(images) > 1, *parameters(found))


def _first_part(body: memoryview, finder: _Finder, boundary: bytes) -> int:
    """Offset behind the first boundary, or -1 when it is the last one too. Raises BadRequest."""
    if bytes(body[: len(boundary) + 2]) == b"--" + boundary:
        return _after_boundary(body, len(boundary) + 2)
    preamble_end = finder.find(b"\r\n--" + boundary, 0, len(body))
    if preamble_end < 0:
        raise BadRequest("The multipart body does not hold the boundary that its Content-Type names.")
    return _after_boundary(body, preamble_end + len(boundary) + 4)


def _after_boundary(body: memoryview, offset: int) -> int:
    """Offset of the part that follows a boundary, or -1 when it closes the body. Raises BadRequest."""
    line = bytes(body[offset : offset + PADDING_SIZE_MAX])
    if line.startswith(b"--"):
        return -1
    end = _LINE_END.match(line)
    if end is None:
        raise BadRequest("A boundary in the multipart body is not at the end of its line; is it in an image's bytes?")
    return offset + end.end()


def _headers(body: memoryview, finder: _Finder, offset: int) -> tuple[_Headers, int]:
    """A part's headers and the offset of its content. Raises BadRequest."""
    if bytes(body[offset : offset + 2]) == b"\r\n":
        raise BadRequest("A part of the multipart body has no headers; it needs Content-Disposition.")
    end = finder.find(b"\r\n\r\n", offset, min(len(body), offset + HEADERS_SIZE_MAX))
    if end < 0:
        raise BadRequest(f"A part's headers are not ended within {HEADERS_SIZE_MAX} bytes.")
    lines = bytes(body[offset:end]).decode("utf-8", "replace").split("\r\n", HEADER_COUNT_MAX)
    if len(lines) > HEADER_COUNT_MAX:
        raise BadRequest(f"A part of the multipart body has more than {HEADER_COUNT_MAX} headers.")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    disposition = fields.get("content-disposition", "")
    if disposition.partition(";")[0].strip().lower() != "form-data":
        raise BadRequest("A part of the multipart body has no Content-Disposition: form-data.")
    words = _words(disposition)
    media_type = fields.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith("multipart/"):
        raise BadRequest("A part of the multipart body is itself multipart; send each file as a part of its own.")
    if fields.get("content-transfer-encoding", "").lower() not in _PLAIN_ENCODINGS:
        raise BadRequest("A part has a Content-Transfer-Encoding; send the bytes of the image as they are.")
    filename = words.get("filename", words.get("filename*"))
    return _Headers(words.get("name", ""), filename, media_type), end + 4


def _words(header: str) -> dict[str, str]:
    """The parameters of a header, by lower-case name, up to the first that is not understood.

    Each match starts where the last one ended: searching on behind an open quote would be quadratic.
    """
    words: dict[str, str] = {}
    offset = len(header.partition(";")[0])
    while match := _PARAMETER.match(header, offset):
        name, quoted, plain = match.groups()
        words[name.lower()] = plain if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted)
        offset = match.end()
    return words


def _take_field(name: str, content: bytes, found: dict[str, object]) -> None:
    """Add one form field to `found`. Raises BadRequest when it is no parameter, or stands twice."""
    if name not in PARAMETERS:
        raise BadRequest(
            f"Unknown form field {quote(name)}; {nearest(name, PARAMETERS)} Images need a filename (curl: -F x=@file)."
        )
    if name in found:
        raise BadRequest(f"The form field '{name}' stands twice; send it once.")
    found[name] = parameter_from_text(name, content.decode("utf-8", "replace"))
