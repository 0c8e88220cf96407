"""The images that are decoded, one a row: sizes, samplings, scans, formats; and real photos at many sizes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from bench import rig
from gateway.models.spec import Contract, Input, Output
from tests.support.images import PHOTOS, encode, photo

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = {
    "224": (224, 224, 85),
    "500": (500, 375, 90),
    "1080p": (1920, 1080, 90),
    "4K": (3840, 2160, 90),
    "12MP": (4000, 3000, 85),
}
"""Width, height and JPEG quality by name."""

MOTORCYCLE = PHOTOS["chelsea"].with_name("motorcycle_left.png")
"""A photo of two motorcycles' worth of spokes and chrome: the hardest that is at hand."""


class Row(NamedTuple):
    """One encoded image and what is asked of it. `kind` is Pillow's name of the format."""

    name: str
    size: tuple[int, int]
    kind: str
    body: bytes


def rows(*, quick: bool) -> Iterator[Row]:
    """Every row, small images first."""
    for label, (width, height, quality) in SIZES.items():
        if quick and width * height > 3_000_000:
            return
        picture = rig.photo(width, height)
        for sampling in ("4:2:0", "4:4:4"):
            for progressive in (False, True):
                body = encode(picture, "JPEG", quality=quality, subsampling=sampling, progressive=progressive)
                yield Row(f"{label} {sampling}{' progressive' * progressive}", (width, height), "JPEG", body)
        yield Row(f"{label} PNG", (width, height), "PNG", encode(picture, "PNG"))
        yield Row(f"{label} WebP", (width, height), "WEBP", encode(picture, "WEBP", quality=80))


def contract(**options: object) -> Contract:
    """The default contract at 224 x 224, with these keys of `[input]`."""
    return Contract(input=Input(width=224, height=224, **options), output=Output(task="raw"))  # type: ignore[arg-type]


def names() -> list[str]:
    """Real photos."""
    return [*PHOTOS, "motorcycle"]


def at(name: str, shorter: int, quality: int = 90) -> bytes:
    """A real photo as JPEG whose shorter side has `shorter` pixels."""
    if name != "motorcycle":
        return encode(photo(name, shorter), "JPEG", quality=quality)
    source = Image.open(Path(MOTORCYCLE)).convert("RGB")
    factor = shorter / min(source.size)
    size = round(source.width * factor), round(source.height * factor)
    return encode(source.resize(size, Image.Resampling.LANCZOS), "JPEG", quality=quality)
