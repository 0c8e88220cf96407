"""Every offset, alignment and size in shared memory. No other file has a number.

Bodies segment (one, written by the gateway, read by decoders)::

    0            BODY_ALIGN                                   size
    +------------+------------+--------- ... ------------------+
    | region     | region     | free                           |   a region is one request body
    +------------+------------+--------- ... ------------------+

Input segment and output segment (one pair per loaded model; slot i of one belongs to slot i of the other)::

    0             stride        2*stride               count*stride
    +-------------+-------------+---------- ... -------+
    | slot 0      | slot 1      |                      |   input:  uint8[h, w, c] pixels, C-order
    +-------------+-------------+---------- ... -------+   output: the model's fields one behind the other

Recorder (one page per child, written by the child, read by the gateway only after the child was reaped)::

    0                8
    +----------------+
    | ticket, u64 LE |   the image (decoder) or batch (worker) being worked on; 0 = none
    +----------------+
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

SLOT_ALIGN = 64
"""Bytes. A cache line, so that two slots never share one."""

BODY_ALIGN = 64
"""Bytes. Granularity of the bodies segment."""

RECORDER_SIZE = 4096
"""Bytes. One page."""

DTYPE_SIZES = {
    "uint8": 1,
    "int8": 1,
    "bool": 1,
    "float16": 2,
    "int16": 2,
    "uint16": 2,
    "float32": 4,
    "int32": 4,
    "uint32": 4,
    "float64": 8,
    "int64": 8,
    "uint64": 8,
}
"""Bytes per element of every dtype that may cross a segment."""


class Field(msgspec.Struct, frozen=True, array_like=True):
    """One array inside a slot: `name`, `dtype` (a key of DTYPE_SIZES) and `shape` without the batch axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * DTYPE_SIZES[self.dtype]


def align(size: int, to: int) -> int:
    """Round `size` bytes up to a multiple of `to`."""
    return -(-size // to) * to


def offsets(fields: Iterable[Field]) -> tuple[list[int], int]:
    """Offset of each field inside a slot, and the bytes they need together; every field starts on SLOT_ALIGN."""
    starts: list[int] = []
    end = 0
    for field in fields:
        starts.append(end)
        end = align(end + field.size, SLOT_ALIGN)
    return starts, end


def stride(size: int) -> int:
    """Bytes from one slot to the next, for slots of `size` bytes; never 0."""
    return max(SLOT_ALIGN, align(size, SLOT_ALIGN))
