"""Warms the codecs before the sandbox is shut: a tiny image of every format goes through every step once.

Pillow imports and allocates lazily; an import that first happens inside the sandbox fails for want of a file system.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image

from gateway.decoding.header import Format
from gateway.decoding.imaging import Recipe, Scratch, decode_into
from gateway.models.spec import Contract, Input, Output

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIDE = 24
"""Pixels; not a multiple of 16, so that edges are met."""


def warm_up() -> None:
    """Decode a tiny image of each format and kind under contracts that take different ways."""
    scratch = Scratch()
    recipes = [
        Recipe(_contract(Input(width=8, height=8))),
        Recipe(_contract(Input(width=8, height=6, colour="gray", resize="letterbox", exact=True))),
        Recipe(_contract(Input(width=8, height=6, resample="lanczos", antialias=False, resize="stretch"))),
        Recipe(_contract(Input(width=8, height=6, colour="bgr", resample="hamming", resize="letterbox"))),
    ]
    for body in _bodies():
        for recipe in recipes:
            decode_into(body, np.empty(recipe.shape, np.uint8), recipe, scratch)


def _contract(spec: Input) -> Contract:
    """A contract of which only the input matters."""
    return Contract(input=spec, output=Output(task="raw"))


def _bodies() -> Iterator[bytes]:
    """Small encoded images: each format, and the modes and orientations that Pillow treats apart."""
    colour = Image.effect_noise((_SIDE, _SIDE), 64).convert("RGB")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    for kind in Format:
        yield _encode(colour, kind, exif=turned) if kind is not Format.GIF else _encode(colour, kind)
    yield _encode(colour.resize((64, 48)), Format.JPEG)
    yield _encode(colour, Format.WEBP)
    yield _encode(colour, Format.JPEG, progressive=True)
    yield _encode(colour.convert("L"), Format.JPEG)
    yield _encode(colour.convert("CMYK"), Format.JPEG)
    yield _encode(colour.convert("RGBA"), Format.PNG)
    yield _encode(colour.convert("RGBA"), Format.WEBP, lossless=True)
    yield _encode(colour.convert("P"), Format.PNG, transparency=0)
    yield _encode(colour.convert("P"), Format.GIF, transparency=0)
    yield _encode(Image.fromarray(np.arange(_SIDE * _SIDE, dtype=np.uint16).reshape(_SIDE, _SIDE)), Format.PNG)
    yield _encode(colour, Format.TIFF, compression="tiff_lzw")
    yield _encode(colour, Format.TIFF, compression="jpeg")
    yield _encode(colour.convert("1"), Format.TIFF, compression="group4")


def _encode(image: Image.Image, kind: Format, **options: object) -> bytes:
    """One image as bytes of `kind`."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
