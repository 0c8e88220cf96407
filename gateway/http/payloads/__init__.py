"""Payload codecs: one request body, already whole in shared memory, to ranges inside it. Sans-IO, and nothing is built.

An image never becomes a Python object here: a reader answers with offsets into the body, and a decoder process reads
the bytes from there. Bounds on depth, length and count hold before anything is made of what a client sent. A reader
raises `gateway.errors.Refusal` and nothing else. There is no state.

==========================================  ============  =========================================================
media type                                  reader        body
==========================================  ============  =========================================================
image/…, application/octet-stream, none,    raw           the bytes of one image
  curl's default of x-www-form-urlencoded
application/json                            json_body     {"image": base64} or {"images": [base64, ...]}
application/msgpack, x-msgpack, vnd.msgpack msgpack_body  {"image": bin}, {"images": [bin, ...]} or {"tensor": {...}}
multipart/form-data                         multipart     one part per image, any names
==========================================  ============  =========================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import UnsupportedMediaType
from gateway.http.payloads.json_body import read_json
from gateway.http.payloads.msgpack_body import read_msgpack
from gateway.http.payloads.multipart_body import boundary_of, read_multipart, read_parts
from gateway.http.payloads.query import (
    Parameters,
    Part,
    Priority,
    Query,
    TensorPart,
    check_tensor,
    read_parameters,
)
from gateway.http.payloads.raw import read_raw

if TYPE_CHECKING:
    from collections.abc import Callable

    Reader = Callable[[memoryview, int], Query]
    """Takes a whole body and the most images it may hold. Raises Refusal, nothing else."""

__all__ = [
    "MEDIA_TYPES",
    "Parameters",
    "Part",
    "Priority",
    "Query",
    "TensorPart",
    "check_tensor",
    "choose",
    "read_json",
    "read_msgpack",
    "read_multipart",
    "read_one",
    "read_parameters",
    "read_raw",
]

MEDIA_TYPES = (
    "image/*",
    "application/octet-stream",
    "application/json",
    "application/msgpack",
    "application/x-msgpack",
    "application/vnd.msgpack",
    "multipart/form-data",
)
"""What is read, as clients name it."""


_RAW_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")
"""Besides image/*. The last is what plain `curl --data-binary @photo.jpg` says; there are no such forms here."""


def choose(content_type: str) -> Reader:
    """The reader for a Content-Type header ("" when there is none); the body is not needed yet.

    Raises:
        UnsupportedMediaType: nothing reads that type; the answer lists what is read.
        BadRequest: multipart without a boundary to go by.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type.startswith("image/") or media_type in _RAW_TYPES:
        return read_one
    if media_type == "application/json":
        return read_json
    if media_type in ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack"):
        return read_msgpack
    if media_type == "multipart/form-data":
        boundary = boundary_of(content_type)
        return lambda body, images_max: read_parts(body, boundary, images_max)
    raise UnsupportedMediaType(f"Bodies of this type are not read. Send one of {', '.join(MEDIA_TYPES)}.")


def read_one(body: memoryview, images_max: int) -> Query:
    """A raw body is one image, and every model takes at least one."""
    assert images_max > 0
    return read_raw(body)
