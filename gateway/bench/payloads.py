"""The bodies that are sent: images in one of the forms, or a file as it is. Built once, before anything is measured."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgpack
import numpy as np
import orjson
from PIL import Image

from gateway.bench.wish import Form, Load, Wish, made_up_size, readable
from gateway.errors import InvalidSettings
from gateway.tuning import photos
from gateway.tuning.photos import Photo

if TYPE_CHECKING:
    from collections.abc import Sequence

BOUNDARY = "penstock-bench-7d1c0e5a9f3b4862"
SIZE_MAX = 64 << 20
"""Bytes of one image or body; and of all bodies that are kept, eight times as much."""

BODIES_MAX = 64

LADDER = ((64, 48), (160, 120), (320, 240), (500, 375), (800, 600), (1280, 960), (1920, 1440), (2880, 2160))
"""Pixels of the made-up images that a trace chooses from, by the size of their files."""

_KINDS = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG", "image/png"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"BM", "image/bmp"),
)


class Payload(NamedTuple):
    """One body. `size`: of its first image's file, in bytes, as a trace has it; `images`: how many are in it."""

    content: bytes
    content_type: str
    images: int
    size: int


def build(wish: Wish, form: Form, images_per_request: int, side: tuple[int, int] | None) -> list[Payload]:
    """The bodies, sent in turn. `side`: (width, height) of the model's input, for tensors. Raises InvalidSettings."""
    if wish.body is not None:
        content = readable("--body", Path(wish.body))
        return [Payload(content, wish.content_type or "", wish.images_per_request or 1, len(content))]
    found = _photos(wish)
    if form is Form.RAW:
        return [Payload(photo.body, kind_of(photo.body), 1, len(photo.body)) for photo in found]
    made: list[Payload] = []
    size = 0
    for first in range(min(len(found), BODIES_MAX)):
        chosen = [found[(first + place) % len(found)] for place in range(images_per_request)]
        payload = _packed(form, chosen, side)
        size += len(payload.content)
        if len(payload.content) > SIZE_MAX:
            raise InvalidSettings(f"a body of {images_per_request} images is over {SIZE_MAX} bytes; send fewer at once")
        if size > 8 * SIZE_MAX:
            break
        made.append(payload)
    return made


def kind_of(image: bytes) -> str:
    """The content type that a file's first bytes show."""
    return next((kind for begin, kind in _KINDS if image.startswith(begin)), "application/octet-stream")


def _photos(wish: Wish) -> list[Photo]:
    """The user's images, or made-up ones. Raises InvalidSettings."""
    if not wish.images:
        if wish.load is Load.TRACE:
            return [photos.made_up(width, height) for width, height in LADDER]
        return [photos.made_up(*made_up_size(wish.size))]
    found: list[Photo] = []
    for given in wish.images:
        path = Path(given)
        if path.is_dir():
            found += photos.from_folder(path, SIZE_MAX)
            continue
        body = readable("--images", path)
        if not body or len(body) > SIZE_MAX:
            raise InvalidSettings(f"--images {path}: has {len(body)} bytes; from 1 to {SIZE_MAX} are sent")
        found.append(Photo(path.name, body))
    return found


def _packed(form: Form, chosen: Sequence[Photo], side: tuple[int, int] | None) -> Payload:
    """Images in one body of a form that is not raw."""
    images = [photo.body for photo in chosen]
    one = len(images) == 1
    if form is Form.JSON:
        texts = [base64.b64encode(image).decode() for image in images]
        content, kind = orjson.dumps({"image": texts[0]} if one else {"images": texts}), "application/json"
    elif form is Form.MSGPACK:
        content, kind = msgpack.packb({"image": images[0]} if one else {"images": images}), "application/msgpack"
    elif form is Form.MULTIPART:
        content, kind = _multipart(chosen), f"multipart/form-data; boundary={BOUNDARY}"
    else:
        content, kind = _tensor(chosen, side), "application/msgpack"
    return Payload(content, kind, len(images), len(images[0]))


def _multipart(chosen: Sequence[Photo]) -> bytes:
    """A form with a file per image. Source: RFC 7578."""
    parts = []
    for place, photo in enumerate(chosen):
        head = (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image{place}"; filename="image{place}"\r\n'
            f"Content-Type: {kind_of(photo.body)}\r\n\r\n"
        )
        parts += [head.encode("ascii"), photo.body, b"\r\n"]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode("ascii")])


def _tensor(chosen: Sequence[Photo], side: tuple[int, int] | None) -> bytes:
    """Pixels uint8[n, h, w, 3] RGB, or [h, w, 3] of one image, as /predictions takes them. Raises InvalidSettings."""
    if side is None:
        raise InvalidSettings("--form tensor needs a Penstock server, which says what its model takes; else use --body")
    rows = []
    for photo in chosen:
        try:
            with Image.open(io.BytesIO(photo.body)) as image:
                rows.append(np.asarray(image.convert("RGB").resize(side, Image.Resampling.BILINEAR)))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise InvalidSettings(f"--images {photo.name}: cannot be read as an image ({error})") from None
    pixels = rows[0] if len(rows) == 1 else np.stack(rows)
    tensor = {"shape": list(pixels.shape), "dtype": "uint8", "data": pixels.tobytes()}
    packed: bytes = msgpack.packb({"tensor": tensor})
    return packed
