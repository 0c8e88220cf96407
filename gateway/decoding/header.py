"""What the first bytes of a body say: its format and its size in pixels. Nothing here decodes a pixel.

JPEG has a file of its own (`jpeg.py`), for its header is a list of segments. TIFF keeps its size in a directory that
may be anywhere in the file, so Pillow reads it (still without decoding).
"""

from __future__ import annotations

import enum
import struct

from gateway.errors import PayloadTooLarge, UndecodableImage, UnsupportedMediaType

Body = memoryview | bytes
"""One encoded image. A memoryview is of format "B", one dimension, C-contiguous."""

SIDE_MAX = 16_384
"""Pixels. WebP's own bound, and above a phone's panorama (16382 wide); past it only bombs were seen."""


class Format(enum.StrEnum):
    """The formats that are read; values are Pillow's names."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WEBP"
    GIF = "GIF"
    TIFF = "TIFF"
    BMP = "BMP"


_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def sniff(body: Body) -> Format:
    """The format by its magic bytes. Raises UndecodableImage (empty), UnsupportedMediaType."""
    start = bytes(body[:12])
    if start[:3] == b"\xff\xd8\xff":
        return Format.JPEG
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        return Format.PNG
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return Format.WEBP
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return Format.GIF
    if start[:4] in _TIFF_MAGIC:
        return Format.TIFF
    if start[:2] == b"BM":
        return Format.BMP
    if not start:
        raise UndecodableImage("The image is empty.")
    raise UnsupportedMediaType("The bytes are not a JPEG, PNG, WebP, GIF, TIFF or BMP image.")


def size_of(kind: Format, body: Body) -> tuple[int, int] | None:
    """(width, height) as the header claims, None for JPEG and TIFF. Raises UndecodableImage."""
    try:
        if kind is Format.PNG:
            if body[12:16] != b"IHDR":
                raise UndecodableImage("The PNG image does not begin with its header.")
            return _pair(">II", body, 16)
        if kind is Format.GIF:
            return _pair("<HH", body, 6)
        if kind is Format.BMP:
            return _bmp_size(body)
        if kind is Format.WEBP:
            return _webp_size(body)
    except struct.error:
        raise UndecodableImage(f"The {kind} image ends within its header.") from None
    return None


def check_size(size: tuple[int, int], pixels_max: int) -> None:
    """Refuse by size alone. Raises PayloadTooLarge, UndecodableImage (a side of zero)."""
    width, height = size
    if width < 1 or height < 1:
        raise UndecodableImage("The image has no pixels.")
    if width * height > pixels_max:
        raise PayloadTooLarge(f"The image is {width} x {height} pixels; this model takes {pixels_max} pixels.")
    if width > SIDE_MAX or height > SIDE_MAX:
        raise PayloadTooLarge(f"The image is {width} x {height} pixels; a side has at most {SIDE_MAX}.")


def _pair(layout: str, body: Body, offset: int) -> tuple[int, int]:
    """Two integers at `offset`. Raises struct.error."""
    first, second = struct.unpack_from(layout, body, offset)
    return first, second


def _bmp_size(body: Body) -> tuple[int, int]:
    """OS/2 headers (12 bytes) hold unsigned shorts, all others signed longs; a negative height means top-down."""
    (header_size,) = struct.unpack_from("<I", body, 14)
    if header_size == 12:  # noqa: PLR2004 - the one number that tells the two layouts apart
        return _pair("<HH", body, 18)
    width, height = _pair("<ii", body, 18)
    return width, abs(height)


def _webp_size(body: Body) -> tuple[int, int]:
    """The canvas of the first chunk. Source: RFC 9649, sections 2.5 to 2.7, and RFC 6386, section 9.1."""
    chunk = bytes(body[12:16])
    if chunk == b"VP8X":
        width, width_top, height, height_top = struct.unpack_from("<HBHB", body, 24)
        return (width | width_top << 16) + 1, (height | height_top << 16) + 1
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = _pair("<HH", body, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise UndecodableImage("The WebP image does not begin with a picture.")
