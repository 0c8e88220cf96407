"""One image: encoded bytes to the pixels that a model's contract asks for, in a buffer that is given.

Two ways lead there. `exact`: open, set upright, flatten, resize the whole, crop; in that order, with Pillow alone. The
default keeps the same geometry and saves work where the picture hardly changes: JPEG is decoded by simplejpeg at
1/1 to 1/8 (`scales`), resize and crop are one step over the stored pixels (`resizing`), and only the small result is
turned upright. Where the source already has the slot's size, libjpeg-turbo writes into the slot itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.decoding import geometry, header, jpeg, kernels, pillow, resizing, scales, webp
from gateway.decoding.edge import codec
from gateway.decoding.header import Format
from gateway.decoding.resizing import Canvas
from gateway.decoding.scales import Step
from gateway.errors import PayloadTooLarge, UndecodableImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from gateway.decoding.geometry import Box, Fit, Size
    from gateway.decoding.header import Body
    from gateway.models.spec import Contract

RESIZED_PIXELS_MAX = 1 << 26
"""Pixels of a whole resized image under `exact`: a 1 x 16384 strip would become 256 x 4 million."""

_FAST_COMPONENTS = (1, 3)
"""Gray, and YCbCr or RGB. Four are CMYK or YCCK, whose conversion is Pillow's business."""

PLANS_MAX = 1024
"""Source sizes whose plan is remembered, per model."""


class Plan(NamedTuple):
    """How one source size fills a slot: where pixels go, how they are decoded and resized."""

    fit: Fit
    step: Step
    box: Box
    """`fit.stored_box`, in pixels of what is decoded at 1 / `step.divisor`."""


class Scratch:
    """Memory for decoded and for resized pixels, reused from image to image. Not for two at once."""

    __slots__ = ("resizer", "sources")

    def __init__(self) -> None:
        self.sources = resizing.Canvases()
        self.resizer = resizing.Resizer()


class Recipe:
    """One model's contract, prepared for the hot path. Holds the plans of sizes seen lately; else immutable."""

    __slots__ = (
        "_plans",
        "background",
        "exact",
        "exif",
        "gray",
        "order",
        "padding",
        "pixels_max",
        "point_sampled",
        "resample",
        "scaled",
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
        self.scaled = spec.antialias and not self.exact
        # A crop's box ends between pixels, where single precision (Pillow's) may round a nearest pixel to the next.
        self.whole = self.exact or spec.resample == "nearest"
        self.padding: tuple[int, ...] = spec.padding[::-1] if spec.colour == "bgr" else spec.padding
        if self.gray:
            self.padding = (pillow.gray_of(spec.padding),)
        self._plans: dict[tuple[Size, int, bool], Plan] = {}

    def plan(self, stored: Size, orientation: int, *, jpeg: bool) -> Plan:
        """How to take a source stored at `stored` (width, height) under an EXIF `orientation`; remembered."""
        key = stored, orientation, jpeg
        found = self._plans.get(key)
        if found is None:
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            fit = geometry.fit(self.spec, stored, orientation)
            step = Step(1, self.spec.resample)
            if jpeg and self.scaled and fit.resizes:
                step = scales.choose(self.spec.resample, stored, fit.stored_resized)
            found = self._plans[key] = Plan(fit, step, geometry.divided(fit.stored_box, step.divisor))
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
        if kind is Format.WEBP and not (recipe.exact or recipe.gray) and webp.is_plain(body):
            canvas = scratch.sources.take(claimed, 4)
            if webp.decode(body, recipe.order, claimed, canvas.pixels):
                _finish(canvas, out, recipe, recipe.plan(claimed, 1, jpeg=False), 1, scratch)
                return claimed
    image = pillow.open_header(body, kind)
    header.check_size(image.size, recipe.pixels_max)
    pillow.load(image, kind)
    orientation = pillow.orientation(image) if recipe.exif else 1
    size = image.size
    header.check_size(size, recipe.pixels_max)
    image = _flatten(image, recipe, kind)
    _finish(image, out, recipe, recipe.plan(size, orientation, jpeg=False), orientation, scratch)
    return geometry.upright(size, orientation)


def _decode_jpeg(body: Body, out: NDArray[np.uint8], recipe: Recipe, scratch: Scratch) -> Size:
    """The same for JPEG: simplejpeg where it can, Pillow for CMYK, for `exact`, and for files with something amiss."""
    head = jpeg.scan(body)
    size = head.width, head.height
    header.check_size(size, recipe.pixels_max)
    if head.progressive:
        jpeg.check_scans(body, head)
    orientation = jpeg.orientation(body, head) if recipe.exif else 1
    plan = recipe.plan(size, orientation, jpeg=True)
    divisor = plan.step.divisor
    if not recipe.exact and head.components in _FAST_COMPONENTS:
        if orientation == 1 and not plan.fit.resizes and size == (out.shape[1], out.shape[0]):
            if jpeg.decode(body, recipe.order, size, 1, out):
                return size
        else:
            canvas = _decode_mapped(body, size, plan.step, recipe, scratch, gray=head.components == 1)
            if canvas is not None:
                _finish(canvas, out, recipe, plan, orientation, scratch)
                return geometry.upright(size, orientation)
    # Pillow has the last word on files that libjpeg-turbo warns about: what the plain pipeline shows, we show.
    image = pillow.open_header(body, Format.JPEG)
    if image.size != size:
        raise UndecodableImage("The JPEG image holds two sizes that contradict each other.")
    if divisor > 1:
        pillow.draft(image, divisor)
    pillow.load(image, Format.JPEG)
    _finish(_flatten(image, recipe, Format.JPEG), out, recipe, plan, orientation, scratch)
    return geometry.upright(size, orientation)


def _decode_mapped(
    body: Body, size: Size, step: Step, recipe: Recipe, scratch: Scratch, *, gray: bool
) -> Canvas | None:
    """A JPEG decoded into scratch memory, with its channels in the slot's order; None when anything is amiss.

    Four bytes a pixel cost libjpeg-turbo nothing and spare the copy into Pillow's memory, which has four as well.
    """
    width, height = -(-size[0] // step.divisor), -(-size[1] // step.divisor)
    order = "L" if gray else {"RGB": "RGBX", "BGR": "BGRX", "L": "L"}[recipe.order]
    canvas = scratch.sources.take((width, height), len(order))
    decoded = jpeg.decode(body, order, size, step.divisor, canvas.pixels, plain_chroma=step.plain_chroma)
    return canvas if decoded else None


def _flatten(image: Image.Image, recipe: Recipe, kind: Format) -> Image.Image:
    """`pillow.flatten` as the contract says. Raises UndecodableImage, UnsupportedMediaType."""
    with codec(kind):
        return pillow.flatten(image, recipe.background, gray=recipe.gray)


def _finish(
    source: Image.Image | Canvas,
    out: NDArray[np.uint8],
    recipe: Recipe,
    plan: Plan,
    orientation: int,
    scratch: Scratch,
) -> None:
    """Resize, crop, set upright and store what was decoded as planned.

    `source` is an image of mode "L" or "RGB", or a canvas that has the slot's order already.
    """
    fit, step, box = plan
    if fit.resizes and not recipe.whole:
        antialias = recipe.spec.antialias
        pixels = scratch.resizer.resize(source, fit.stored_size, box, step.kernel, antialias=antialias)
        if pixels is None:
            pixels = _resize_elsewhere(source, recipe, plan)
        if orientation != 1:
            pixels = resizing.upright(pixels, orientation)
    else:
        image = pillow.upright(pillow.image_of(source), orientation)
        if recipe.whole:
            if fit.resized[0] * fit.resized[1] > RESIZED_PIXELS_MAX:
                raise PayloadTooLarge("The image is too long and narrow for this model.")
            image = image.resize(fit.resized, recipe.resample)
        pixels = pillow.pixels_of(image.crop(fit.crop))
    place = out
    if pixels.shape[:2] != out.shape[:2]:
        out[...] = recipe.padding
        left, top = fit.place
        place = out[top : top + pixels.shape[0], left : left + pixels.shape[1]]
    resizing.store(pixels, place, swapped=recipe.order == "BGR" and not isinstance(source, Canvas))


def _resize_elsewhere(source: Image.Image | Canvas, recipe: Recipe, plan: Plan) -> NDArray[np.uint8]:
    """What `resizing` does not do: Pillow's other kernels, and NumPy's for those of them that are not to be widened."""
    image = pillow.image_of(source)
    if recipe.point_sampled:
        return kernels.resize(pillow.pixels_of(image), plan.fit.stored_size, plan.box, recipe.spec.resample)
    # Mitchell is not Pillow's: the contract's own kernel stands in for it, 0.2 of 255 further away (`scales`).
    kernel = pillow.RESAMPLING.get(plan.step.kernel, recipe.resample)
    return pillow.pixels_of(image.resize(plan.fit.stored_size, kernel, plan.box))
