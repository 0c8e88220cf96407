"""Where pixels go: from the contract and a source's size to a resize, a crop and a place in the slot. Pure arithmetic.

The resize modes, on an upright source of w x h pixels and a slot of W x H:

=========  =========================================  ===========================  ======================
mode       resized to                                 crop                         place in the slot
=========  =========================================  ===========================  ======================
stretch    W x H                                      all                          all
letterbox  the larger of W x h*W/w and w*H/h x H      all                          centre; bars around it
           that fits, rounded
crop       the smaller that covers                    W x H at the centre          all
           round(W / f) x round(H / f)
=========  =========================================  ===========================  ======================

For a square slot the crop is torchvision's `Resize(round(size / f))` and `CenterCrop(size)`: the shorter side becomes
round(size / f), the longer int(longer * short / shorter), and the crop starts at round((resized - size) / 2).
Source: torchvision.transforms.functional, `_compute_resized_output_size` and `center_crop`. For others the same rule
asks for the size that covers W/f x H/f.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway.models.spec import Input

Size = tuple[int, int]
Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels."""


class Fit(NamedTuple):
    """How one source size fills a slot. All sizes are (width, height), all in the upright frame unless said otherwise.

    resized: of the whole source. crop: part of `resized` that is kept. place: its (left, top) in the slot.
    stored_resized, stored_size, stored_box: the same in the frame in which the file stores its pixels: what the whole
    source is resized to, the size of the kept part, and the part of the source, in source pixels, that it shows.
    """

    resized: Size
    crop: tuple[int, int, int, int]
    place: tuple[int, int]
    stored_resized: Size
    stored_size: Size
    stored_box: Box
    resizes: bool
    """Whether a pixel is anything but copied."""


def turns(orientation: int) -> bool:
    """Whether an EXIF orientation swaps width and height."""
    return orientation >= 5  # noqa: PLR2004 - 5 to 8 are the four with a quarter turn


def upright(stored: Size, orientation: int) -> Size:
    """The upright size of a source stored at `stored`."""
    return (stored[1], stored[0]) if turns(orientation) else stored


def fit(spec: Input, stored: Size, orientation: int) -> Fit:
    """Plan a source stored at `stored` pixels under an EXIF `orientation` (1 to 8)."""
    width, height = upright(stored, orientation)
    target = spec.width, spec.height
    place = 0, 0
    if spec.resize == "crop":
        resized = _cover(
            (round(spec.width / spec.crop_fraction), round(spec.height / spec.crop_fraction)), width, height
        )
        left = round((resized[0] - spec.width) / 2)
        top = round((resized[1] - spec.height) / 2)
        crop = left, top, left + spec.width, top + spec.height
    elif spec.resize == "letterbox":
        resized = _inside(target, width, height)
        crop = 0, 0, *resized
        place = (spec.width - resized[0]) // 2, (spec.height - resized[1]) // 2
    else:
        resized = target
        crop = 0, 0, *resized
    scale_x, scale_y = width / resized[0], height / resized[1]
    box = crop[0] * scale_x, crop[1] * scale_y, crop[2] * scale_x, crop[3] * scale_y
    kept = crop[2] - crop[0], crop[3] - crop[1]
    return Fit(
        resized=resized,
        crop=crop,
        place=place,
        stored_resized=upright(resized, orientation),
        stored_size=upright(kept, orientation),
        stored_box=_stored(box, stored, orientation),
        resizes=resized != (width, height),
    )


def _cover(least: Size, width: int, height: int) -> Size:
    """The smallest size of the same shape that covers `least`."""
    if least[0] * height >= least[1] * width:
        return least[0], height * least[0] // width
    return width * least[1] // height, least[1]


def _inside(most: Size, width: int, height: int) -> Size:
    """The largest size of the same shape inside `most`, a side of at least one pixel."""
    if most[0] * height <= most[1] * width:
        return most[0], max(1, round(height * most[0] / width))
    return max(1, round(width * most[1] / height)), most[1]


def _stored(box: Box, stored: Size, orientation: int) -> Box:
    """Turn a box of the upright frame back into the stored one; never past its edges."""
    left, top, right, bottom = box
    width, height = stored
    if turns(orientation):
        left, top, right, bottom = top, left, bottom, right
    # What the mirror does to each stored axis, by orientation: 2 and 3 flip x, 3 and 4 flip y, and so on.
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))


def divided(box: Box, divisor: int) -> Box:
    """The same part of a source that was decoded at 1 / `divisor`: pixel i there covers [i, i + 1) * divisor here."""
    left, top, right, bottom = box
    return left / divisor, top / divisor, right / divisor, bottom / divisor
