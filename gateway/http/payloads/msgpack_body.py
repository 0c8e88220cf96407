"""msgpack bodies: {"image": bin}, {"images": [bin, ...]} or {"tensor": {...}}, and parameters.

A reader of our own, because the library's copies what it reads. It knows the few types that may stand at each place
and looks at one header at a time, so nothing nested, no extension and no long collection is ever walked: the first
byte that does not fit ends the reading. A bin's header says where its bytes lie; they are stepped over.

Source: the msgpack specification (github.com/msgpack/msgpack/blob/master/spec.md).
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from gateway.errors import BadRequest
from gateway.http.payloads.query import (
    PARAMETERS,
    TEXT_SIZE_MAX,
    Part,
    Query,
    TensorPart,
    check_count,
    nearest,
    parameters,
    quote,
)
from shm.wire import Encoding

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS = ("image", "images", "tensor", *PARAMETERS)
TENSOR_KEYS = ("shape", "dtype", "data")

RANKS = (3, 4)
"""Axes of a tensor: one image, or a batch of them."""

_U8, _U16, _U32, _U64 = struct.Struct(">B"), struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")
_BIN = {0xC4: _U8, 0xC5: _U16, 0xC6: _U32}
_STR = {0xD9: _U8, 0xDA: _U16, 0xDB: _U32}
_ARRAY = {0xDC: _U16, 0xDD: _U32}
_MAP = {0xDE: _U16, 0xDF: _U32}
_NUMBER = {
    0xCA: struct.Struct(">f"),
    0xCB: struct.Struct(">d"),
    0xCC: _U8,
    0xCD: _U16,
    0xCE: _U32,
    0xCF: _U64,
    0xD0: struct.Struct(">b"),
    0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"),
    0xD3: struct.Struct(">q"),
}
_NIL = 0xC0

# Headers that hold their own value: these bits say what it is, the rest of the byte how much.
_FIX_MAP, _FIX_ARRAY, _FIX_STR = 0x80, 0x90, 0xA0
_POSITIVE_MAX, _NEGATIVE_MIN = 0x7F, 0xE0


class _Cursor:
    """A place in the body, and the headers that may stand there. Every method raises BadRequest and only moves on."""

    __slots__ = ("body", "offset")

    def __init__(self, body: memoryview) -> None:
        self.body = body
        self.offset = 0

    def keys(self, what: str, known: tuple[str, ...]) -> Iterator[str]:
        """The keys of a map, one at a time: the caller reads the value before it asks for the next key."""
        seen: set[str] = set()
        for _ in range(self._length(f"{what} must be a map", _FIX_MAP, 0x0F, _MAP)):
            key = self.text(f"The keys of {what} must be strings")
            if key not in known:
                raise BadRequest(f"Unknown key {quote(key)} in {what}; {nearest(key, known)}")
            if key in seen:
                raise BadRequest(f"The key '{key}' stands twice in {what}; send it once.")
            seen.add(key)
            yield key

    def array(self, wanted: str) -> int:
        """Items of an array; `wanted` says in the refusal what should stand here."""
        return self._length(wanted, _FIX_ARRAY, 0x0F, _ARRAY)

    def text(self, wanted: str) -> str:
        """A short string; a long one is cut, for it is no word that anyone here knows."""
        size = self._length(wanted, _FIX_STR, 0x1F, _STR)
        start = self._step(size)
        return bytes(self.body[start : start + min(size, TEXT_SIZE_MAX)]).decode("utf-8", "replace")

    def binary(self, wanted: str) -> tuple[int, int]:
        """Offset and size of a bin's bytes."""
        size = self._length(wanted, 0, 0, _BIN)
        return self._step(size), size

    def scalar(self) -> object:
        """A number, a short string or nil; anything else becomes a value that is refused with its bound."""
        kind = self._peek()
        if kind <= _POSITIVE_MAX or kind >= _NEGATIVE_MIN:
            self.offset += 1
            return kind if kind <= _POSITIVE_MAX else kind - 0x100
        if kind == _NIL:
            self.offset += 1
            return None
        if kind in _NUMBER:
            return self._unpack(_NUMBER[kind])
        if kind & ~0x1F == _FIX_STR or kind in _STR:
            return self.text("")
        raise BadRequest("A parameter in the msgpack body must be a number or a string.")

    def _length(self, wanted: str, fix: int, fix_bits: int, wide: dict[int, struct.Struct]) -> int:
        """The count or size in a header: in its low bits when the rest is `fix`, else in the bytes after it."""
        kind = self._peek()
        if fix and kind & ~fix_bits == fix:
            self.offset += 1
            return kind & fix_bits
        if kind not in wide:
            raise BadRequest(f"{wanted}.")
        return int(self._unpack(wide[kind]))

    def _peek(self) -> int:
        if self.offset >= len(self.body):
            raise BadRequest("The msgpack body ends too early.")
        return self.body[self.offset]

    def _unpack(self, number: struct.Struct) -> float:
        """The number behind a type byte."""
        self.offset += 1
        value: float = number.unpack_from(self.body, self._step(number.size))[0]
        return value

    def _step(self, size: int) -> int:
        """Move over `size` bytes and return where they start."""
        start, self.offset = self.offset, self.offset + size
        if self.offset > len(self.body):
            raise BadRequest("The msgpack body ends too early.")
        return start


def read_msgpack(body: memoryview, images_max: int) -> Query:
    """Read a msgpack body.

    Raises:
        BadRequest: not msgpack, not the keys above, a value of the wrong kind, or bytes behind the map.
        PayloadTooLarge: more images than `images_max`.
    """
    cursor = _Cursor(body)
    images: list[Part] = []
    tensor: TensorPart | None = None
    sources: list[str] = []
    found: dict[str, object] = {}
    for key in cursor.keys("the msgpack body", KEYS):
        if key in PARAMETERS:
            found[key] = cursor.scalar()
            continue
        sources.append(key)
        if key == "image":
            images.append(_image(cursor))
        elif key == "images":
            count = cursor.array('"images" must be an array of bin')
            check_count(count, images_max)
            images = [_image(cursor) for _ in range(count)]
        else:
            tensor = _tensor(cursor)
    if cursor.offset != len(body):
        raise BadRequest("Bytes follow the msgpack map; send one map and nothing else.")
    if len(sources) != 1:
        raise BadRequest('Send one of "image" (bin), "images" (an array of bin) and "tensor" (a map).')
    many = sources == ["images"] or (tensor is not None and len(tensor.shape) == RANKS[-1])
    if tensor is not None and many:
        check_count(tensor.shape[0], images_max)
    return Query(images, tensor, many, *parameters(found))


def _image(cursor: _Cursor) -> Part:
    """One image. Raises BadRequest, also for base64 in a string: whoever has msgpack has bin."""
    offset, size = cursor.binary("An image in a msgpack body must be bin, the bytes themselves (not str, not base64)")
    return Part(offset, size, Encoding.BINARY)


def _tensor(cursor: _Cursor) -> TensorPart:
    """A whole tensor, checked against itself. Raises BadRequest."""
    shape: tuple[int, ...] | None = None
    where: tuple[int, int] | None = None
    dtype = ""
    for key in cursor.keys('"tensor"', TENSOR_KEYS):
        if key == "shape":
            shape = _shape(cursor)
        elif key == "dtype":
            dtype = cursor.text('"dtype" must be a string')
        else:
            where = cursor.binary('"data" must be bin, the tensor\'s bytes')
    if shape is None or where is None or not dtype:
        raise BadRequest('"tensor" must be {"shape": [...], "dtype": "uint8", "data": bin}.')
    if dtype != "uint8":
        raise BadRequest(f"The tensor's dtype is {quote(dtype)}; it must be 'uint8', pixels as they are.")
    offset, size = where
    if math.prod(shape) != size:
        raise BadRequest(f"The tensor's shape {list(shape)} needs {math.prod(shape)} bytes; its data has {size}.")
    return TensorPart(offset, size, shape)


def _shape(cursor: _Cursor) -> tuple[int, ...]:
    """Three or four positive axes. Raises BadRequest."""
    wanted = '"shape" must be [h, w, c] or [n, h, w, c], in whole numbers over 0'
    rank = cursor.array(wanted)
    if rank not in RANKS:
        raise BadRequest(f"{wanted}.")
    axes = [cursor.scalar() for _ in range(rank)]
    shape = tuple(axis for axis in axes if type(axis) is int and axis > 0)
    if len(shape) != rank:
        raise BadRequest(f"{wanted}.")
    return shape
