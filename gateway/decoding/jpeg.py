"""JPEG: one bounded scan of the segments for all that must be known first, then libjpeg-turbo.

Which scale is asked of libjpeg-turbo is the business of `scales`.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, NamedTuple

import simplejpeg

from gateway.errors import UndecodableImage, UnsupportedMediaType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gateway.decoding.header import Body

SEGMENTS_MAX = 1024
"""Segments before the first scan. A photo has 10 to 30, one with 10 MB of extended XMP 170."""

JUNK_SIZE_MAX = 65_536
"""Bytes between segments that belong to none; libjpeg skips them, so some writers got away with it."""

SCANS_MAX = 100
"""Scans of a progressive JPEG; encoders write about 10. Source: libjpeg-turbo's own fuzzers stop here."""

SCAN_PIXELS_MAX = 2_000_000_000
"""Pixels times scans: what a progressive JPEG costs. The CPU budget is the backstop."""

_COLOURS = {"L": "GRAY", "RGB": "RGB", "BGR": "BGR", "RGBX": "RGBX", "BGRX": "BGRX"}
"""Our words (Pillow's) for simplejpeg's."""
_NO_SCALE = 16
_MARKER = 0xFF
_APP1 = 0xE1
_START_OF_SCAN = 0xDA
_END_OF_IMAGE = 0xD9
_SAMPLE_BITS = 8
_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC9, 0xCA))
"""Baseline, extended, progressive, and both with arithmetic coding."""
_OTHER_FRAMES = frozenset((0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF))
"""Lossless and hierarchical."""
_PROGRESSIVE = frozenset((0xC2, 0xCA))
_BARE = frozenset((0x00, 0x01, *range(0xD0, 0xD9), 0xFF))
"""Markers without a length: stuffing, TEM, restarts, a second start of image; and 0xFF, which fills."""
_TELLING = _FRAMES | _OTHER_FRAMES | {_APP1, _START_OF_SCAN, _END_OF_IMAGE}
_SEGMENT = struct.Struct(">BBH")
_FRAME = struct.Struct(">BHHB")
_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_ORIENTATION_TAG = 0x0112
_UPRIGHT = 1
_ORIENTATIONS = range(1, 9)


class JpegHeader(NamedTuple):
    """What stands before the first scan. `exif` and `xmp` are positions of those segments' contents, or None."""

    width: int
    height: int
    components: int
    progressive: bool
    exif: tuple[int, int] | None
    xmp: tuple[int, int] | None


def scan(body: Body) -> JpegHeader:
    """Walk the segments up to the first scan; at most SEGMENTS_MAX of them.

    Raises UndecodableImage, and UnsupportedMediaType for lossless, hierarchical and 12-bit JPEG.
    """
    frame: tuple[int, int, int, bool] | None = None
    exif = xmp = None
    position = 2
    junk_left = JUNK_SIZE_MAX
    try:
        for _ in range(SEGMENTS_MAX):
            lead, marker, size = _SEGMENT.unpack_from(body, position)
            if lead != _MARKER or marker in _BARE:
                skipped = _skip(body, position, junk_left)
                junk_left -= skipped
                position += skipped
                continue
            if marker in _TELLING:
                if marker == _START_OF_SCAN:
                    break
                if marker != _APP1:
                    frame = frame or _frame(body, position, marker)
                elif exif is None and body[position + 4 : position + 10] == _EXIF:
                    exif = position + 4, position + 2 + size
                elif body[position + 4 : position + 33] == _XMP:
                    xmp = position + 4, position + 2 + size
            position += 2 + size
    except struct.error:
        raise UndecodableImage("The JPEG image ends within its header.") from None
    if frame is None or marker != _START_OF_SCAN:
        raise UndecodableImage("The JPEG image has no picture after its header.")
    return JpegHeader(*frame, exif, xmp)


def _skip(body: Body, position: int, junk_left: int) -> int:
    """Bytes to the next marker from what is none, or has no length. Raises struct.error, as at the end of the body."""
    if body[position] == _MARKER:
        # Any number of fill bytes may stand before a marker.
        return 1 if body[position + 1] == _MARKER else 2
    skipped = bytes(body[position : position + junk_left]).find(_MARKER)
    if skipped < 0:
        raise struct.error
    return skipped


def _frame(body: Body, position: int, marker: int) -> tuple[int, int, int, bool]:
    """(width, height, components, progressive) of a frame header.

    Raises struct.error, UndecodableImage (end of image), UnsupportedMediaType.
    """
    if marker == _END_OF_IMAGE:
        raise UndecodableImage("The JPEG image has no picture after its header.")
    if marker not in _FRAMES:
        raise UnsupportedMediaType("Lossless and hierarchical JPEG are not read here.")
    bits, height, width, components = _FRAME.unpack_from(body, position + 4)
    if bits != _SAMPLE_BITS:
        raise UnsupportedMediaType("JPEG with other than 8 bits per sample is not read here.")
    return width, height, components, marker in _PROGRESSIVE


def orientation(body: Body, header: JpegHeader) -> int:
    """EXIF orientation, 1 to 8; 1 when there is none. XMP counts where EXIF is silent, as in Pillow."""
    found = None
    if header.exif is not None:
        found = _exif_orientation(bytes(body[header.exif[0] + len(_EXIF) : header.exif[1]]))
    if found is None and header.xmp is not None:
        match = _XMP_ORIENTATION.search(bytes(body[header.xmp[0] : header.xmp[1]]))
        found = int(match[1]) if match else None
    return found if found is not None and found in _ORIENTATIONS else _UPRIGHT


def _exif_orientation(tiff: bytes) -> int | None:
    """The orientation entry of IFD0, if it is one whole SHORT or LONG. Bounded by the segment's 64 kB."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    entry = struct.Struct(order + "HHI")
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, directory)
        for offset in range(directory + 2, directory + 2 + count * 12, 12):
            tag, kind, values = entry.unpack_from(tiff, offset)
            if tag == _ORIENTATION_TAG:
                layout = {3: "H", 4: "I"}.get(kind)
                if layout is None or values != 1:
                    return None
                value: int = struct.unpack_from(order + layout, tiff, offset + 8)[0]
                return value
    except struct.error:
        return None
    return None


def check_scans(body: Body, header: JpegHeader) -> None:
    """Refuse a progressive JPEG by its number of scans. Raises UndecodableImage.

    In entropy-coded bytes 0xFF is followed by 0 or a restart, so FF DA is a scan, or stands in a thumbnail.
    """
    scans = bytes(body).count(b"\xff\xda")
    if scans > SCANS_MAX or scans * header.width * header.height > SCAN_PIXELS_MAX:
        raise UndecodableImage("The JPEG image has too many scans.")


def decode(
    body: Body,
    colour: str,
    size: tuple[int, int],
    divided_by: int,
    buffer: memoryview | NDArray[np.uint8],
    *,
    plain_chroma: bool = False,
) -> bool:
    """Decode into `buffer`: uint8[ceil(h / divided_by), ceil(w / divided_by), channels of `colour`], C-order.

    `size` is (width, height) of the header. `plain_chroma`: repeat subsampled colour instead of interpolating it. False
    when libjpeg-turbo finds anything amiss, even what others show with a warning; the buffer's contents are then
    undefined. Never writes outside of `buffer`.
    """
    width, height = -(-size[0] // divided_by), -(-size[1] // divided_by)
    # simplejpeg takes the smallest scale of k/8 whose rounded-up sides suffice. For a whole image of under 8 pixels
    # that would be 7/8, so a factor that no scale reaches keeps it at 1/1.
    factor = divided_by if divided_by > 1 else _NO_SCALE
    try:
        pixels = simplejpeg.decode_jpeg(
            body,
            _COLOURS[colour],
            fastupsample=plain_chroma,
            min_height=height,
            min_width=width,
            min_factor=factor,
            buffer=buffer,
        )
    except ValueError:
        return False
    # A header that libjpeg-turbo reads otherwise than we did: it has the right to, we have not to believe it.
    shape: tuple[int, ...] = pixels.shape
    return shape[:2] == (height, width)
