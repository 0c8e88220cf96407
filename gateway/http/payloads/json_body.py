"""JSON bodies: {"image": base64} or {"images": [base64, ...]}, and parameters. Strings are found, never built.

Before the body is parsed, the brackets and quotes in it are counted, so what is parsed has a known depth and number of
strings. msgspec then checks the grammar and hands back raw tokens, which are views of the body; the distance of a
token's address from the body's is its offset. Whether the characters are base64 is for the decoder to find out.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType

from gateway.errors import BadRequest, PayloadTooLarge
from gateway.http.payloads.query import (
    PARAMETERS,
    TEXT_SIZE_MAX,
    Part,
    Query,
    check_count,
    nearest,
    parameters,
    quote,
)
from shm.wire import Encoding

BLOCK_SIZE = 64 * 1024
"""Bytes looked at in one step: scratch memory stays this small whatever the body's size."""

BRACKET_COUNT_MAX = 2
"""The object, and the list of images in it."""

PREFIX_SIZE_MAX = 96
"""Bytes of a data URL in front of its base64."""


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    """Every value stays a raw token: typed ones would be built, however large, before they could be refused."""

    image: Raw | UnsetType = UNSET
    images: Raw | UnsetType = UNSET
    top_k: Raw | UnsetType = UNSET
    deadline_ms: Raw | UnsetType = UNSET
    priority: Raw | UnsetType = UNSET


KEYS = _Body.__struct_fields__
_body = msgspec.json.Decoder(_Body)
_list = msgspec.json.Decoder(list[Raw])
_UNKNOWN_FIELD = re.compile(r"unknown field `([^`]*)")
_DATA_URL = re.compile(rb"data:image/[a-z0-9.+-]{1,64};base64,", re.IGNORECASE)
_ESCAPES = (
    # What encoders write for characters that base64 has: PHP escapes the slash, .NET the plus sign. Order matters:
    # line breaks go last, so that removing one cannot join two halves to a new escape.
    *((f"\\u00{code}".encode(), bytes.fromhex(code)) for code in ("2b", "2B", "2f", "2F", "3d", "3D")),
    (b"\\r", b""),
    (b"\\n", b""),
)
_ESCAPE_SIZE_MAX = 6

OTHER_ESCAPES_SHARE, OTHER_ESCAPES_SLACK = 16, 16
"""One character in so many may be escaped, and so many more: undoing them is slow, and base64 of images has one in 64.

Escaped slashes are not counted, because undoing them is fast and plain white is nothing but slashes.
"""


class _Marks(NamedTuple):
    """How often structure occurs in a body."""

    quotes: int
    brackets: int
    escapes: int


def read_json(body: memoryview, images_max: int) -> Query:
    """Read a JSON body; escapes inside its images are undone in place, so `body` must be writable.

    Raises:
        BadRequest: not JSON, not the keys above, or a value of the wrong kind.
        PayloadTooLarge: more images than `images_max`.
    """
    marks = _count(body, images_max)
    fields = _decode(body)
    given = {name: value for name in KEYS if (value := getattr(fields, name)) is not UNSET}
    if ("image" in given) == ("images" in given):
        raise BadRequest('Send one of "image" (a base64 string) and "images" (a list of them).')
    many = "images" in given
    items = _items(given["images"], images_max) if many else [given["image"]]
    start = _address(body)
    offsets = [_address(item) - start for item in items]
    if any(body[offset] != ord('"') for offset in offsets):
        raise BadRequest("An image in a JSON body must be a string of base64.")
    found = parameters({name: _value(given[name]) for name in PARAMETERS if name in given})
    # Each key and each string has two quotes. More are a repeated key, whose first value the parser forgot, or an
    # escaped quote, which no base64 has.
    strings = len(given) + len(items) + (found.priority is not None)
    if marks.quotes != 2 * strings:
        raise BadRequest("A key stands twice in the JSON body, or a string holds a quote; send each key once.")
    escaped = marks.escapes > 0
    parts = [
        _part(body, offset + 1, len(memoryview(item)) - 2, escaped=escaped)
        for offset, item in zip(offsets, items, strict=True)
    ]
    return Query(parts, None, many, *found)


def _count(body: memoryview, images_max: int) -> _Marks:
    """Count structure in one pass that ends at the first block over a bound. Raises BadRequest, PayloadTooLarge."""
    octets = np.frombuffer(body, np.uint8) if body else np.empty(0, np.uint8)
    quotes_max = 2 * (images_max + len(KEYS) + 1)
    commas_max = 2 * images_max + len(KEYS)  # one more per image than lists have, for data URLs
    quotes = commas = brackets = escapes = 0
    for begin in range(0, len(octets), BLOCK_SIZE):
        block = octets[begin : begin + BLOCK_SIZE]
        quotes += int(np.count_nonzero(block == ord('"')))
        commas += int(np.count_nonzero(block == ord(",")))
        # "[" and "{" differ in one bit.
        brackets += int(np.count_nonzero((block | 0x20) == ord("{")))
        escapes += int(np.count_nonzero(block == ord("\\")))
        if brackets > BRACKET_COUNT_MAX:
            raise BadRequest('The JSON body is nested too deeply; send {"image": "<base64>"} or {"images": [...]}.')
        if quotes > quotes_max or commas > commas_max:
            raise PayloadTooLarge(f"The JSON body holds more values than {images_max} images and parameters have.")
    return _Marks(quotes, brackets, escapes)


def _decode(body: memoryview) -> _Body:
    """Check the grammar of the whole body. Raises BadRequest."""
    try:
        return _body.decode(body)
    except msgspec.ValidationError as error:
        unknown = _UNKNOWN_FIELD.search(str(error)[:128])
        if unknown is None:
            raise BadRequest('The JSON body must be an object, e.g. {"image": "<base64>"}.') from None
        raise BadRequest(f"Unknown key {quote(unknown[1])} in the JSON body; {nearest(unknown[1], KEYS)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRequest("The body is not valid JSON in UTF-8; check its end, its quotes and its commas.") from None


def _items(images: Raw, images_max: int) -> list[Raw]:
    """The tokens of the list. Raises BadRequest, PayloadTooLarge."""
    if memoryview(images)[0] != ord("["):
        raise BadRequest('"images" must be a list of base64 strings.')
    items = _list.decode(images)
    check_count(len(items), images_max)
    return items


def _value(token: Raw) -> object:
    """A parameter as a JSON value. One that is too long to be a parameter becomes a value that is refused later."""
    if len(memoryview(token)) > TEXT_SIZE_MAX:
        return ()
    try:
        value: object = msgspec.json.decode(token)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ()
    return value


def _part(body: memoryview, offset: int, size: int, *, escaped: bool) -> Part:
    """The base64 of a string's `size` characters at `offset`, between its quotes. Raises BadRequest."""
    if escaped:
        size = _unescape(body[offset : offset + size])
    head = bytes(body[offset : offset + min(size, PREFIX_SIZE_MAX)])
    if head[:5].lower() == b"data:":
        prefix = _DATA_URL.match(head)
        if prefix is None:
            raise BadRequest("A data URL must start with data:image/<kind>;base64, before its base64.")
        offset, size = offset + prefix.end(), size - prefix.end()
    return Part(offset, size, Encoding.BASE64)


def _unescape(text: memoryview) -> int:
    """Undo JSON escapes in place and return the new size, which is never larger. Raises BadRequest.

    Blocks are copied out, changed and written back at or before where they were read, so nothing unread is overwritten.
    """
    read = written = 0
    while read < len(text):
        block = bytes(text[read : read + BLOCK_SIZE])
        if read + len(block) < len(text):
            # An escape must not be cut: leave one that starts in the last bytes to the next block.
            cut = block.rfind(b"\\", len(block) - _ESCAPE_SIZE_MAX + 1)
            block = block[:cut] if cut > 0 else block
        read += len(block)
        if b"\\" in block:
            block = _unescape_block(block)
        text[written : written + len(block)] = block
        written += len(block)
    return written


def _unescape_block(block: bytes) -> bytes:
    """One block without its escapes. Raises BadRequest for those that stand for nothing in base64."""
    slashes, others = _escapes(block)
    if others and others <= len(block) // OTHER_ESCAPES_SHARE + OTHER_ESCAPES_SLACK and b"\\\\" not in block:
        for escape, meaning in _ESCAPES:
            block = block.replace(escape, meaning)
        slashes, others = _escapes(block)
    if others:
        raise BadRequest("An image in the JSON body holds escapes that no base64 needs; send plain base64.")
    # Every backslash left stands before a slash, and such an escape is undone by dropping the backslash.
    return block.translate(None, b"\\") if slashes else block


def _escapes(block: bytes) -> tuple[int, int]:
    """How many backslashes stand before a slash, and how many do not."""
    octets = np.frombuffer(block, np.uint8)
    backslash = octets == ord("\\")
    slashes = int(np.count_nonzero(backslash[:-1] & (octets[1:] == ord("/"))))
    return slashes, int(np.count_nonzero(backslash)) - slashes


def _address(buffer: memoryview | Raw) -> int:
    """Where a buffer begins in this process's memory."""
    return np.frombuffer(buffer, np.uint8).ctypes.data
