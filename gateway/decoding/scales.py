"""At which scale a JPEG is decoded, and with which kernel it is resized from there. Pure arithmetic over one table.

libjpeg-turbo decodes at 1/2, 1/4 and 1/8 by leaving out high frequencies. Each is cheaper than the finer one before it,
so the coarsest that is faithful is taken. What it gives is smoothed already: a kernel that smooths less than the
contract's comes nearer to what that one makes of a full decode, the more so the less is left to shrink.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway.decoding.geometry import Size

DIVISORS = (8, 4, 2)
"""Fast scales of libjpeg-turbo, coarsest first. Its others (k/8) take longer than a full decode."""


class Step(NamedTuple):
    """Decode at 1 / `divisor`, then resize with `kernel` (`resizing.FILTERS`, or a name of Pillow's)."""

    divisor: int
    kernel: str
    plain_chroma: bool = False
    """Whether subsampled colour may be repeated instead of interpolated: the averaging that follows hides it."""


STEPS: dict[str, tuple[tuple[float, str], ...]] = {
    "bilinear": ((2.25, "bilinear"), (1.05, "mitchell")),
    "bicubic": ((1.6, "bicubic"), (1.15, "lanczos")),
    "lanczos": ((1.2, "lanczos"),),
    "hamming": ((1.4, "hamming"), (1.25, "bicubic")),
    "box": ((4.0, "box"), (2.5, "bicubic")),
}
"""For each kernel of a contract: how many times larger than the resized image the decoded one must at least be, and the
kernel that takes it from there; largest first. Below the last, a finer scale is decoded.

Source: `python bench/decode.py --table`: mean difference from a full decode resized with the contract's kernel, of
photos at quality 90, at the three scales. At each bound it is about 1.2 of 255 or less, for the worst photo 2.4; a
little above a bound, half of that. Nearest is missing: a point of a smaller decode is another point.
"""

PLAIN_CHROMA_MIN = 1.4
"""How much an image that is decoded whole must shrink for its colour to be repeated instead of interpolated, which
takes 5 % from a decode at 4:2:0. Mean difference from there 0.4 of 255, worst photo 0.6; at 1.0 it were 1.0 and 1.5.
Source: nine photos at quality 75 to 97, libjpeg-turbo 3.1.2.
"""

SIDE_MIN = 16
"""Pixels of the longer side of what is decoded smaller. Under 8 two of libjpeg-turbo's scales (k/8), rounded up, are
the same size; under 16 there is nothing to gain.
"""


def choose(kernel: str, size: Size, resized: Size) -> Step:
    """How to take a JPEG of `size` to `resized` (both the whole image as stored, width and height) under `kernel`."""
    steps = STEPS.get(kernel)
    if steps is None:
        return Step(1, kernel)
    ratio = min(size[0] / resized[0], size[1] / resized[1])
    for divisor in DIVISORS:
        if max(size) < SIDE_MIN * divisor:
            continue
        for least, following in steps:
            if ratio >= least * divisor:
                return Step(divisor, following)
    return Step(1, kernel, plain_chroma=ratio >= PLAIN_CHROMA_MIN)
