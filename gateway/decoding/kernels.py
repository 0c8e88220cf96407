"""Resizing without antialiasing: the kernel keeps its own width however much the image shrinks.

This is what `tf.image.resize(antialias=False)` and OpenCV do. Pillow has no such mode, so it is NumPy here. Kernels,
their constants, and the way weights are normalised at the edges are Pillow's, so that enlarging gives the same pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gateway.decoding.geometry import Box, Size


def _box(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)  # noqa: PLR2004 - half a pixel


def _bilinear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _hamming(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 1.0, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0.0)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic with a = -0.5."""
    a = -0.5
    x = np.abs(x)
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    outer = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))  # noqa: PLR2004 - the cubic's two pieces


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3.0), 0.0)  # noqa: PLR2004 - three lobes


_KERNELS: dict[str, tuple[float, Callable[[NDArray[np.float64]], NDArray[np.float64]]]] = {
    "box": (0.5, _box),
    "bilinear": (1.0, _bilinear),
    "hamming": (1.0, _hamming),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _lanczos),
}
"""Half width in source pixels, and the weight at a distance."""


def resize(pixels: NDArray[np.uint8], size: Size, box: Box, kernel: str) -> NDArray[np.uint8]:
    """Sample `box` (source pixels) of uint8[h, w, c] at `size` (width, height) points: uint8[size[1], size[0], c]."""
    rows, row_weights = _taps(pixels.shape[0], box[1], box[3], size[1], kernel)
    columns, column_weights = _taps(pixels.shape[1], box[0], box[2], size[0], kernel)
    # Rows first: gathering whole rows is a memcpy, and only the rows that a tap touches are ever widened to float.
    tall = np.zeros((size[1], *pixels.shape[1:]), np.float32)
    for tap in range(rows.shape[1]):
        tall += row_weights[:, tap, None, None] * pixels[rows[:, tap]]
    result = np.full((size[1], size[0], pixels.shape[2]), 0.5, np.float32)
    for tap in range(columns.shape[1]):
        result += column_weights[None, :, tap, None] * tall[:, columns[:, tap]]
    return np.clip(result, 0.0, 255.0).astype(np.uint8)


def _taps(
    length: int, start: float, stop: float, count: int, kernel: str
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Along one axis: for each of `count` outputs the source indices and weights, both [count, taps]; weights sum to 1.

    A tap beyond the image has weight 0 and points at the edge.
    """
    reach, weigh = _KERNELS[kernel]
    centres = start + (np.arange(count) + 0.5) * ((stop - start) / count)
    first = np.floor(centres - reach).astype(np.intp)
    indices = first[:, None] + np.arange(int(2 * reach) + 2)
    weights = weigh(indices + 0.5 - centres[:, None])
    weights[(indices < 0) | (indices >= length)] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(indices, 0, length - 1), weights.astype(np.float32)
