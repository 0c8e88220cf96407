"""One image: encoded bytes to the pixels that a model's contract asks for, in a buffer that is given.

Two ways lead there. `exact`: open, set upright, flatten, resize the whole, crop; in that order, with Pillow alone. The
default keeps the same geometry and saves work where the picture hardly changes: JPEG is decoded by simplejpeg at
1/1 to 1/8, resize and crop are one step over the stored pixels, and only the small result is turned upright. Where the
source already has the slot's size, libjpeg-turbo writes into the slot itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gateway.decoding import geometry, header, jpeg, kernels, pillow
from gateway.decoding.edge import codec
from gateway.decoding.header import Format
from gateway.errors import PayloadTooLarge, UndecodableImage

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from gateway.decoding.geometry import Fit, Size
    from gateway.decoding.header import Body
    from gateway.models.spec import Contract

SCALED_MARGIN = {"box": 4.0, "bilinear": 1.25, "hamming": 1.5, "bicubic": 1.25, "lanczos": 1.25}
"""How many times larger than the resized image a JPEG that is decoded at 1/2, 1/4 or 1/8 must at least be.

At 1.0 the mean difference from a full decode reaches 2.5/255 (bilinear) on real photos; with these margins it stays
under 1.2/255, measured on five photos at eleven sizes. Narrow kernels need more: they show the grid they sample.
"""

RESIZED_PIXELS_MAX = 1 << 26
"""Pixels of a whole resized image under `exact`: a 1 x 16384 strip would become 256 x 4 million."""

SCRATCH_SIZE_MAX = 1 << 25
"""Bytes of decoded pixels kept from one image to the next; a larger image gets memory of its own."""

_FAST_COMPONENTS = (1, 3)
"""Gray, and YCbCr or RGB. Four are CMYK or YCCK, whose conversion is Pillow's business."""

FITS_MAX = 1024
"""Source sizes whose geometry is remembered, per model."""


class Scratch:
    """Memory for decoded JPEG pixels, reused from image to image. Not for two at once."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept = np.empty(0, np.uint8)

    def take(self, size: int) -> NDArray[np.uint8]:
        """uint8[size] of any content, valid until the next call."""
        if size > SCRATCH_SIZE_MAX:
            return np.empty(size, np.uint8)
        if size > len(self._kept):
            self._kept = np.empty(size, np.uint8)
        return self._kept[:size]


class Recipe:
    """One model's contract, prepared for the hot path. Holds the geometry of sizes seen lately; else immutable."""

    __slots__ = (
        "_fits",
        "background",
        "exact",
        "exif",
        "gray",
        "margin",
        "order",
        "padding",
        "pixels_max",
        "point_sampled",
        "resample",
        "shape",
        "spec",
        "whole",
    )

    def __init__(self, contract: Contract) -> None:
        spec = contract.input
        self.spec = spec
        self.shape = spec.shape
        self.pixels_max = contract.limits.pixels_max
        self.exact = spec.exact
        self.exif = spec.exif
        self.gray = spec.colour == "gray"
        self.order = {"rgb": "RGB", "bgr": "BGR", "gray": "L"}[spec.colour]
        self.resample = pillow.RESAMPLING[spec.resample]
        self.background = spec.background
        # Nearest samples points whether asked to or not, so Pillow's is right for both.
        self.point_sampled = not spec.antialias and spec.resample != "nearest"
        # A point sample of a smaller decode is another picture; only kernels that average may start from one.
        self.margin = None if not spec.antialias or self.exact else SCALED_MARGIN.get(spec.resample)
        # A crop's box ends between pixels, where single precision (Pillow's) may round a nearest pixel to the next.
        self.whole = self.exact or spec.resample == "nearest"
        self.padding: tuple[int, ...] = spec.padding[::-1] if spec.colour == "bgr" else spec.padding
        if self.gray:
            self.padding = (pillow.gray_of(spec.padding),)
        self._fits: dict[tuple[Size, int], Fit] = {}

    def fit(self, stored: Size, orientation: int) -> Fit:
        """`geometry.fit`, remembered."""
        key = stored, orientation
        found = self._fits.get(key)
        if found is None:
            if len(self._fits) >= FITS_MAX:
                self._fits.clear()
            found = self._fits[key] = geometry.fit(self.spec, stored, orientation)
        return found


def decode_into(body: Body, out: NDArray[np.uint8], recipe: Recipe, scratch: Scratch) -> Size:
    """Decode one image into a slot and return the source's (width, height), upright.

    `out` is uint8[h, w, c] of `recipe.shape`, C-order, in the contract's colour order. Every byte of it is written on
    return; after a refusal its contents are undefined. No byte outside of it is ever written.

    Raises: UnsupportedMediaType, UndecodableImage, PayloadTooLarge (pixels), MemoryError.
    """
    assert out.shape == recipe.shape
    kind = header.sniff(body)
    if kind is Format.JPEG:
        return _decode_jpeg(body, out, recipe, scratch)
    claimed = header.size_of(kind, body)
    if claimed is not None:
        header.check_size(claimed, recipe.pixels_max)
    image = pillow.open_header(body, kind)
    header.check_size(image.size, recipe.pixels_max)
    pillow.load(image, kind)
    orientation = pillow.orientation(image) if recipe.exif else 1
    size = image.size
    header.check_size(size, recipe.pixels_max)
    _finish(_flatten(image, recipe, kind), out, recipe, recipe.fit(size, orientation), orientation, 1)
    return geometry.upright(size, orientation)


def _decode_jpeg(body: Body, out: NDArray[np.uint8], recipe: Recipe, scratch: Scratch) -> Size:
    """The same for JPEG: simplejpeg where it can, Pillow for CMYK, for `exact`, and for files with something amiss."""
    head = jpeg.scan(body)
    size = head.width, head.height
    header.check_size(size, recipe.pixels_max)
    if head.progressive:
        jpeg.check_scans(body, head)
    orientation = jpeg.orientation(body, head) if recipe.exif else 1
    fit = recipe.fit(size, orientation)
    divisor = 1
    if recipe.margin is not None and fit.resizes:
        width, height = fit.stored_resized
        divisor = jpeg.divisor(size, (width * recipe.margin, height * recipe.margin))
    if not recipe.exact and head.components in _FAST_COMPONENTS:
        if orientation == 1 and not fit.resizes and size == (out.shape[1], out.shape[0]):
            if jpeg.decode(body, recipe.order, size, 1, out):
                return size
        else:
            mapped = _decode_mapped(body, size, divisor, scratch, gray=recipe.gray or head.components == 1)
            if mapped is not None:
                _finish(mapped, out, recipe, fit, orientation, divisor)
                return geometry.upright(size, orientation)
    # Pillow has the last word on files that libjpeg-turbo warns about: what the plain pipeline shows, we show.
    image = pillow.open_header(body, Format.JPEG)
    if image.size != size:
        raise UndecodableImage("The JPEG image holds two sizes that contradict each other.")
    if divisor > 1:
        pillow.draft(image, divisor)
    pillow.load(image, Format.JPEG)
    _finish(_flatten(image, recipe, Format.JPEG), out, recipe, fit, orientation, divisor)
    return geometry.upright(size, orientation)


def _decode_mapped(body: Body, size: Size, divisor: int, scratch: Scratch, *, gray: bool) -> Image.Image | None:
    """A JPEG decoded into the scratch memory, as an image of mode "L" or "RGBX" on it; None when anything is amiss.

    Four bytes a pixel cost libjpeg-turbo nothing and spare the copy into Pillow's memory, which has four as well.
    """
    width, height = -(-size[0] // divisor), -(-size[1] // divisor)
    pixels = scratch.take(width * height * (1 if gray else 4))
    if not jpeg.decode(body, "L" if gray else "RGBX", size, divisor, pixels):
        return None
    return pillow.map_pixels(pixels, "L" if gray else "RGBX", (width, height))


def _flatten(image: Image.Image, recipe: Recipe, kind: Format) -> Image.Image:
    """`pillow.flatten` as the contract says. Raises UndecodableImage, UnsupportedMediaType."""
    with codec(kind):
        return pillow.flatten(image, recipe.background, gray=recipe.gray)


def _finish(
    image: Image.Image, out: NDArray[np.uint8], recipe: Recipe, fit: Fit, orientation: int, divisor: int
) -> None:
    """Resize, crop, set upright and store an image ("L", "RGB" or "RGBX") that was decoded at 1 / `divisor`."""
    if recipe.whole:
        if fit.resized[0] * fit.resized[1] > RESIZED_PIXELS_MAX:
            raise PayloadTooLarge("The image is too long and narrow for this model.")
        image = pillow.upright(image, orientation).resize(fit.resized, recipe.resample).crop(fit.crop)
    elif fit.resizes:
        box = geometry.divided(fit.stored_box, divisor)
        if recipe.point_sampled:
            pixels = pillow.pixels_of(image, "L" if image.mode == "L" else "RGB")
            image = pillow.from_pixels(kernels.resize(pixels, fit.stored_size, box, recipe.spec.resample))
        else:
            image = image.resize(fit.stored_size, recipe.resample, box)
        image = pillow.upright(image, orientation)
    else:
        image = pillow.upright(image, orientation).crop(fit.crop)
    pixels = pillow.pixels_of(image, recipe.order)
    if pixels.shape == out.shape:
        out[...] = pixels
        return
    out[...] = recipe.padding
    left, top = fit.place
    out[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
