"""WebP: still pictures without transparency, by libwebp's own call into memory that is given.

Pillow decodes every WebP as an animation, through three canvases: twice the time. The pixels are the same, for it is
the same library: Pillow's extension is linked with it, and a symbol is looked up in what an extension is linked with.
Where Pillow was built with the library inside, the symbols are not found, and Pillow's way is the only one.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import _webp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gateway.decoding.geometry import Size
    from gateway.decoding.header import Body

_CHUNK = struct.Struct("<4sI")
_RIFF_SIZE = 12


def _find(name: str, result: Any, *arguments: Any) -> Any:
    """A function of libwebp, or None."""
    try:
        found = ctypes.CDLL(_webp.__file__)[name]
    except (OSError, AttributeError):
        return None
    found.restype, found.argtypes = result, arguments
    return found


_BYTES = (ctypes.c_void_p, ctypes.c_size_t)
_INFO = _find("WebPGetInfo", ctypes.c_int, *_BYTES, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
_INTO = {
    order: _find(f"WebPDecode{order}AInto", ctypes.c_void_p, *_BYTES, *_BYTES, ctypes.c_int) for order in ("RGB", "BGR")
}
"""uint8_t *WebPDecodeRGBAInto(data, size, buffer, buffer's size, bytes a row): NULL when anything is amiss.
Source: https://developers.google.com/speed/webp/docs/api, "Simple Decoding API".
"""


def is_plain(body: Body) -> bool:
    """Whether the file is one lossy picture and nothing else: no metadata, no alpha, no animation."""
    if len(body) < _RIFF_SIZE + _CHUNK.size:
        return False
    name: bytes
    size: int
    name, size = _CHUNK.unpack_from(body, _RIFF_SIZE)
    # Chunks have even sizes. What may follow the picture of a file without VP8X is unknown to us, so Pillow's.
    return name == b"VP8 " and _RIFF_SIZE + _CHUNK.size + size + size % 2 == len(body)


def decode(body: Body, order: str, size: Size, pixels: NDArray[np.uint8]) -> bool:
    """Decode into `pixels`, uint8[h, w, 4] of `size` (width, height), `order` "RGB" or "BGR"; the fourth is alpha.

    False when libwebp finds anything amiss, or is not to be had; the pixels are then undefined.
    """
    into = _INTO[order]
    if into is None or _INFO is None:
        return False
    data = np.frombuffer(body, np.uint8)
    width, height = ctypes.c_int(), ctypes.c_int()
    if not _INFO(data.ctypes.data, data.size, width, height) or (width.value, height.value) != size:
        return False
    written = into(data.ctypes.data, data.size, pixels.ctypes.data, pixels.size, 4 * size[0])
    return written is not None
