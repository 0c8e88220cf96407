"""Pillow: every format but the common JPEG, the modes they come in, orientation, and the resize kernels.

Pillow's own pixel bound is off: ours is per model, checked on the header before Pillow is asked, and again after.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import (  # the plugins are named so that none is imported once the sandbox is shut
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from gateway.decoding.edge import codec
from gateway.decoding.header import Format
from gateway.decoding.resizing import Canvas
from gateway.errors import UnsupportedMediaType

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gateway.decoding.header import Body

PLUGINS = (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

TIFF_COMPRESSIONS = frozenset(
    (
        "raw",
        "tiff_ccitt",
        "group3",
        "group4",
        "tiff_lzw",
        "jpeg",
        "packbits",
        "tiff_adobe_deflate",
        "tiff_deflate",
    )
)
"""What TIFF files in the wild use. The rest (old JPEG, SGI, ThunderScan, LZMA, Zstandard, WebP) is attack surface."""

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""The contract's words for Pillow's kernels."""

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what sets it upright. Source: PIL.ImageOps.exif_transpose."""

_WITHOUT_MEANING = frozenset(("I", "F", "LAB", "HSV"))
"""Modes whose range or colours no contract speaks of: 32-bit integers, floats, CIELAB, HSV."""

Image.MAX_IMAGE_PIXELS = None


def silence() -> None:
    """In the decoder process: what Pillow warns of is no news to a server, and printing it reads source files."""
    warnings.simplefilter("ignore")


def open_header(body: Body, kind: Format) -> Image.Image:
    """Read the header only; the image's `size` is what decoding would make. Raises UndecodableImage."""
    with codec(kind):
        image = Image.open(io.BytesIO(body), formats=[kind])
    if kind is Format.TIFF and image.info.get("compression") not in TIFF_COMPRESSIONS:
        raise UnsupportedMediaType("The TIFF image is compressed in a way that is not read here.")
    return image


def load(image: Image.Image, kind: Format) -> None:
    """Decode the first frame. Raises UndecodableImage."""
    with codec(kind):
        image.load()


def draft(image: Image.Image, divisor: int) -> None:
    """Have a JPEG that was opened and not loaded decoded at 1 / `divisor`."""
    width, height = image.size
    # Pillow takes the largest scale whose quotients of sides, rounded down, still hold it: exactly `divisor` here.
    image.draft(None, (width // divisor, height // divisor))


def orientation(image: Image.Image) -> int:
    """EXIF orientation of a loaded image, 1 to 8; 1 when there is none. TIFF is set upright by Pillow itself."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - a damaged EXIF block raises anything, and is no reason to refuse the picture
        return 1
    return found if isinstance(found, int) and found in _TRANSPOSES else 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Undo an EXIF orientation."""
    method = _TRANSPOSES.get(orientation)
    return image if method is None else image.transpose(method)


def flatten(image: Image.Image, background: tuple[int, int, int], *, gray: bool) -> Image.Image:
    """A loaded image of any mode as "L" or "RGB" without alpha; always "L" when `gray`.

    Alpha is composed over `background` (RGB). 16-bit gray keeps its upper byte (Pillow's own conversion would clip).
    CMYK becomes RGB as Pillow does it, which undoes Adobe's inversion when it reads the JPEG. Raises
    UnsupportedMediaType for modes whose values have no agreed range.
    """
    if image.mode in _WITHOUT_MEANING:
        raise UnsupportedMediaType("The image's kind of pixels (32-bit, float or CIELAB) is not read here.")
    if image.mode.startswith("I;16"):
        image = _upper_byte(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(rgba, mask=rgba)
        image = canvas
    if image.mode == "1":
        image = image.convert("L")
    wanted = ("L",) if gray else ("L", "RGB")
    return image if image.mode in wanted else image.convert(wanted[-1])


def _upper_byte(image: Image.Image) -> Image.Image:
    """16-bit gray as "L", or "LA" where one gray value is declared transparent."""
    values = np.asarray(image)
    gray = Image.fromarray((values >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return gray
    alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
    return Image.merge("LA", (gray, alpha))


def image_of(source: Image.Image | Canvas) -> Image.Image:
    """An image of mode "L", "RGB" or "RGBX" that Pillow's own kernels take, on the memory of `source`."""
    if not isinstance(source, Canvas) or source.image.mode == "L":
        return source.image if isinstance(source, Canvas) else source
    # As "RGBA" Pillow would multiply by the fourth byte.
    return Image.frombuffer("RGBX", source.image.size, source.pixels, "raw", "RGBX", 0, 1)


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Copy out of an image of mode "L", "RGB" or "RGBX" as uint8[h, w, 1], else uint8[h, w, 3]."""
    order = "L" if image.mode == "L" else "RGB"
    # An "RGBX" image packs as "RGB" at the speed of a copy; NumPy takes 12 times that to drop the fourth byte.
    return np.frombuffer(image.tobytes("raw", order), np.uint8).reshape(image.height, image.width, len(order))


def gray_of(colour: tuple[int, int, int]) -> int:
    """Luma of one RGB colour, rounded as Pillow's conversion to "L" does."""
    return Image.new("RGB", (1, 1), colour).convert("L").tobytes()[0]
