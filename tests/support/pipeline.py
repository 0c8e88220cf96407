"""The plain Pillow pipeline that every decode is compared with: open, set upright, compose, convert, resize, crop."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from gateway.models.spec import Contract, Input, Limits, Output

KERNELS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
}


def contract(*, pixels_max: int = 50_000_000, **options) -> Contract:
    """A contract with this `[input]`; 32 x 32 unless said otherwise."""
    spec = Input(**{"width": 32, "height": 32, **options})
    return Contract(input=spec, output=Output(task="raw"), limits=Limits(pixels_max=pixels_max))


def reference(body: bytes, spec: Input) -> np.ndarray:
    """uint8[h, w, c] as a few lines of Pillow make them."""
    image = Image.open(io.BytesIO(body))
    image.load()
    if spec.exif:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, spec.background)
        canvas.paste(image, mask=image.getchannel("A"))
        image = canvas
    image = image.convert("L" if spec.colour == "gray" else "RGB")
    kernel = KERNELS[spec.resample]
    target = spec.width, spec.height
    if spec.resize == "stretch":
        image = image.resize(target, kernel)
    elif spec.resize == "letterbox":
        canvas = Image.new("RGB", target, spec.padding).convert(image.mode)
        factor = min(spec.width / image.width, spec.height / image.height)
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        canvas.paste(image.resize(size, kernel), ((spec.width - size[0]) // 2, (spec.height - size[1]) // 2))
        image = canvas
    else:
        least = round(spec.width / spec.crop_fraction), round(spec.height / spec.crop_fraction)
        if least[0] / image.width >= least[1] / image.height:
            size = least[0], int(least[0] * image.height / image.width)
        else:
            size = int(least[1] * image.width / image.height), least[1]
        left, top = round((size[0] - spec.width) / 2), round((size[1] - spec.height) / 2)
        image = image.resize(size, kernel).crop((left, top, left + spec.width, top + spec.height))
    pixels = np.asarray(image)
    if spec.colour == "gray":
        return pixels[:, :, None]
    return pixels[:, :, ::-1] if spec.colour == "bgr" else pixels
