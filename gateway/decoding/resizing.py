"""The resize kernels that have SIMD code: those of `cykooz.resizer`, straight over the memory of Pillow's images.

They give Pillow's pixels to within 1 of 255 (tests/unit/decoding/test_resizing.py), whatever the CPU has. Hamming and
nearest are not among them; Pillow has those.

The library starts no thread unless it is given a pool (its global one is built with this thread alone at import), opens
nothing, and does not look at the fourth byte of a pixel when told that it is no alpha. A source or a target of Pillow's
is read by the layout of Pillow's own structure, so the two are bound to releases that agree (pyproject.toml). It has no
wheel for machines other than x86-64; there all kernels are Pillow's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

try:
    import cykooz_resizer
    from cykooz_resizer import rust_lib
except ImportError:
    rust_lib = None

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gateway.decoding.geometry import Box, Size

FILTERS = {
    "box": "box",
    "bilinear": "bilinear",
    "bicubic": "catmull_rom",
    "lanczos": "lanczos3",
    "mitchell": "mitchell",
}
"""The library's kernels by Pillow's names, and one that Pillow has not. Pillow's bicubic has a = -0.5, as Catmull and
Rom's has.
"""

BETWEEN_SIZE_MAX = 1 << 25
"""Bytes between the two passes of one resize: target's width x source's height. Memory that the library cannot have
ends the process, where Pillow says so; past this bound Pillow is asked.
"""

KEPT_SIZE_MAX = 1 << 25
"""Bytes of pixels that a canvas may have to be kept for the next image."""

CANVASES_MAX = 64
"""Sizes whose canvas is kept, per use."""


class Canvas(NamedTuple):
    """Memory and views of it. pixels: uint8[h, w, 1 or 4], C-order. image: of mode "L" or "RGBA", mapped on it.
    wrapped: that image for the library, if there is one.
    """

    pixels: NDArray[np.uint8]
    image: Image.Image
    wrapped: Any


class Canvases:
    """Canvases by size, kept from image to image on one piece of memory: each is valid until the next is taken."""

    __slots__ = ("_kept", "_memory")

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._kept: dict[tuple[Size, int], Canvas] = {}

    def take(self, size: Size, channels: int) -> Canvas:
        """A canvas of `size` (width, height) and 1 or 4 `channels`, of any content. Raises MemoryError."""
        key = size, channels
        found = self._kept.get(key)
        if found is not None:
            return found
        needed = size[0] * size[1] * channels
        if needed > KEPT_SIZE_MAX:
            return _canvas(np.empty(needed, np.uint8), size, channels)
        if needed > len(self._memory) or len(self._kept) >= CANVASES_MAX:
            self._kept.clear()
        if needed > len(self._memory):
            self._memory = np.empty(needed, np.uint8)
        made = self._kept[key] = _canvas(self._memory[:needed], size, channels)
        return made


class Resizer:
    """Resizes into memory that it keeps from image to image. Not for two at once."""

    __slots__ = ("_engine", "_options", "_targets")

    def __init__(self) -> None:
        self._engine: Any = None
        self._options: dict[tuple[str, bool], Any] = {}
        self._targets = Canvases()
        if rust_lib is None:
            return
        self._engine = rust_lib.RustResizer()
        # `interpolation` is a kernel that keeps its own width however much the image shrinks.
        for antialias, algorithm in ((True, "convolution"), (False, "interpolation")):
            for name, kernel in FILTERS.items():
                options = cykooz_resizer.ResizeOptions(use_alpha=False).rust_options
                self._options[name, antialias] = options.set_resize_alg(
                    cykooz_resizer.Algorithm[algorithm].value, cykooz_resizer.FilterType[kernel].value, 2
                )

    def resize(
        self, source: Image.Image | Canvas, size: Size, box: Box, kernel: str, *, antialias: bool = True
    ) -> NDArray[np.uint8] | None:
        """`box` (source pixels) of `source` at `size` (width, height): uint8[h, w, 1 or 4], valid until the next call.

        `source` is a canvas or an image of mode "L" or "RGB"; channels stay in its order, and the fourth means nothing.
        None when `kernel` is not of `FILTERS`, the resize needs more than BETWEEN_SIZE_MAX, or there is no library.
        Raises MemoryError.
        """
        options = self._options.get((kernel, antialias))
        image = source.image if isinstance(source, Canvas) else source
        channels = 1 if image.mode == "L" else 4
        if options is None or size[0] * image.height * channels > BETWEEN_SIZE_MAX:
            return None
        target = self._targets.take(size, channels)
        left, top, right, bottom = box
        options = options.set_crop_box(left, top, _span(left, right, image.width), _span(top, bottom, image.height))
        wrapped = source.wrapped if isinstance(source, Canvas) else rust_lib.PilImageWrapper(source)
        self._engine.resize_pil(wrapped, target.wrapped, options)
        return target.pixels


def upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation (1 to 8) of uint8[h, w, c]; a view."""
    if orientation >= 5:  # noqa: PLR2004 - 5 to 8 swap the axes
        pixels = pixels.swapaxes(0, 1)
    across = -1 if orientation in (2, 3, 6, 7) else 1
    down = -1 if orientation in (3, 4, 7, 8) else 1
    return pixels[::down, ::across]


def store(pixels: NDArray[np.uint8], out: NDArray[np.uint8], *, swapped: bool) -> None:
    """Copy uint8[h, w, 1, 3 or 4] into uint8[h, w, 1 or 3]: gray is repeated, a fourth channel dropped, and the order
    of the other three reversed when `swapped`. `out` may be a part of a slot, and `pixels` any view.
    """
    if swapped and pixels.shape[2] != 1:
        for channel in range(3):
            out[:, :, channel] = pixels[:, :, 2 - channel]
    elif pixels.shape[2] != 4:  # noqa: PLR2004 - 4 is what has one too many
        out[...] = pixels
    elif out.flags.c_contiguous:
        _drop_fourth(np.ascontiguousarray(pixels), out)
    else:
        whole = np.empty(out.shape, np.uint8)
        _drop_fourth(np.ascontiguousarray(pixels), whole)
        out[...] = whole


def _drop_fourth(pixels: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """uint8[h, w, 4] to uint8[h, w, 3], both C-contiguous.

    Pixels are written as words of four bytes, three bytes apart, first to last: each overwrites the fourth byte of the
    one before. 13 µs for 224 x 224, where `pixels[..., :3]` takes 158, a copy per channel 38, and Pillow's packer 27.
    """
    words = pixels.reshape(-1).view(np.uint32)
    np.ndarray((len(words) - 1,), np.uint32, buffer=out, strides=(3,))[...] = words[:-1]
    # The last word would reach past the end.
    out[-1, -1] = pixels[-1, -1, :3]


def _canvas(memory: NDArray[np.uint8], size: Size, channels: int) -> Canvas:
    """A canvas on `memory`, which it keeps alive."""
    # "RGBA" because the library reads it; that its fourth byte is no alpha is said with each resize.
    mode = "L" if channels == 1 else "RGBA"
    image = Image.frombuffer(mode, size, memory, "raw", mode, 0, 1)
    wrapped = rust_lib.PilImageWrapper(image) if rust_lib is not None else None
    return Canvas(memory.reshape(size[1], size[0], channels), image, wrapped)


def _span(start: float, stop: float, length: int) -> float:
    """The width of a box, such that `start` plus it is not past `length` for want of digits."""
    span = stop - start
    return span if start + span <= length else math.nextafter(span, 0.0)
