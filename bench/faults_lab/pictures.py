"""Images that say what the right answer is: a digest model names the CRC-32 of their pixels, so a swapped one shows."""

from __future__ import annotations

import functools
import hashlib
import struct
import zlib
from typing import NamedTuple

SIDE = 8
"""Pixels each way; as the model's input, so that they reach it unchanged."""

CLASS_COUNT = 100_000
"""Of a digest model, which answers the CRC-32 modulo this: two images have the same answer once in so many."""

PLAIN, CRASH, HANG = (1, 2, 3), (255, 0, 0), (0, 255, 0)
KILL, SPIN, LOST = (255, 255, 0), (0, 255, 255), (255, 0, 255)
"""First pixels: an innocent image, and what makes a worker die, stop, be killed, spin, or lose its device."""

Pixel = tuple[int, int, int]

_ROW_SIZE = SIDE * 3


class Picture(NamedTuple):
    """An image as PNG, the CRC-32 of its pixels, and the start of their SHA-256."""

    file: bytes
    crc: int
    input: str


def picture(seed: int, number: int, first: Pixel = PLAIN) -> Picture:
    """The `number`-th image of a seed; no two are alike."""
    rest = hashlib.shake_128(f"{seed}/{number}".encode()).digest(SIDE * _ROW_SIZE - 3)
    pixels = bytes(first) + rest
    return Picture(_png(pixels), zlib.crc32(pixels), hashlib.sha256(pixels).hexdigest()[:16])


def _png(pixels: bytes) -> bytes:
    """Uncompressed: what is tested is not the decoder's speed."""
    rows = b"".join(b"\0" + pixels[at : at + _ROW_SIZE] for at in range(0, len(pixels), _ROW_SIZE))
    return _head() + _chunk(b"IDAT", zlib.compress(rows, 0)) + _chunk(b"IEND", b"")


@functools.cache
def _head() -> bytes:
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
