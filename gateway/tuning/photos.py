"""The images that are sent: the user's own, as bytes, or one that is made up. Nothing untrusted is decoded here."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from gateway.errors import InvalidSettings

if TYPE_CHECKING:
    from pathlib import Path

WIDTH, HEIGHT, QUALITY = 500, 375, 90
"""Of the made-up photo: what a small photo from the web has."""

COUNT_MAX = 64
SIZE_MAX = 64 << 20
"""Files, and bytes, that are taken from a folder."""

_GRAIN = 6.0
_BLOBS = 40


class Photo(NamedTuple):
    """One encoded image, and what to call it."""

    name: str
    body: bytes


def made_up(width: int = WIDTH, height: int = HEIGHT) -> Photo:
    """A JPEG with smooth shapes, edges and grain, so that it costs what a photo costs. The same on every machine."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    picture = np.zeros((height, width, 3), np.float32) + 128
    for _ in range(_BLOBS):
        left, top, radius = random.uniform(0, width), random.uniform(0, height), random.uniform(10, 90)
        inside = np.hypot(x - left, y - top) < radius
        picture[inside] = 0.4 * picture[inside] + random.uniform(0, 150, 3)
    picture += 30 * np.sin(x / 37)[..., None] + 20 * np.cos(y / 23)[..., None]
    picture += random.normal(0, _GRAIN, (height, width, 1))
    out = io.BytesIO()
    Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=QUALITY)
    return Photo("a made-up photo", out.getvalue())


def from_folder(folder: Path, body_size_max: int) -> list[Photo]:
    """The files of a folder, by name, up to the bounds above; whether they are images is for a decoder to say.

    Raises: InvalidSettings when the folder cannot be read or holds none.
    """
    photos: list[Photo] = []
    size = 0
    try:
        for file in sorted(folder.iterdir()):
            if file.name.startswith(".") or not file.is_file() or file.stat().st_size > body_size_max:
                continue
            body = file.read_bytes()
            size += len(body)
            if len(photos) == COUNT_MAX or size > SIZE_MAX:
                break
            if body:
                photos.append(Photo(file.name, body))
    except OSError as error:
        raise InvalidSettings(f"--images {error.filename}: cannot be read ({error.strerror})") from None
    if not photos:
        raise InvalidSettings(f"--images {folder}: holds no file of at most {body_size_max} bytes")
    return photos
