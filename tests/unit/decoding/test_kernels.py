"""Resizing without antialiasing, against Pillow where both agree, and against a slow loop where Pillow has none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from gateway.decoding import kernels
from tests.support import images
from tests.support.pipeline import KERNELS, contract
from tests.unit.decoding.test_imaging import decode, difference

NAMES = ("box", "bilinear", "hamming", "bicubic", "lanczos")


def sinc(x):
    return 1.0 if x == 0 else math.sin(math.pi * x) / (math.pi * x)


def cubic(x):
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


WEIGHTS = {
    "box": lambda x: 1.0 if -0.5 < x <= 0.5 else 0.0,
    "bilinear": lambda x: max(0.0, 1 - abs(x)),
    "hamming": lambda x: sinc(x) * (0.54 + 0.46 * math.cos(math.pi * x)) if abs(x) < 1 else 0.0,
    "bicubic": cubic,
    "lanczos": lambda x: sinc(x) * sinc(x / 3) if -3 <= x < 3 else 0.0,
}


def slow(pixels, size, box, kernel):
    """One output value at a time, as the definition reads."""

    def axis(length, start, stop, count):
        rows = []
        for index in range(count):
            centre = start + (index + 0.5) * (stop - start) / count
            row = [WEIGHTS[kernel](at + 0.5 - centre) for at in range(length)]
            total = sum(row)
            rows.append([weight / total for weight in row])
        return np.array(rows)

    vertical = axis(pixels.shape[0], box[1], box[3], size[1])
    horizontal = axis(pixels.shape[1], box[0], box[2], size[0])
    result = np.einsum("yh,hwc,xw->yxc", vertical, pixels.astype(float), horizontal, optimize=True)
    return np.clip(np.floor(result + 0.5), 0, 255)


@pytest.mark.parametrize("kernel", NAMES)
@pytest.mark.parametrize("box", [(0, 0, 61, 47), (3.3, 5.25, 50.7, 46.5)])
@pytest.mark.parametrize("size", [(9, 7), (61, 20), (100, 90)])
def test_against_the_definition(kernel, box, size):
    pixels = np.asarray(images.scene())
    assert difference(kernels.resize(pixels, size, box, kernel), slow(pixels, size, box, kernel)).max() <= 1


@pytest.mark.parametrize("kernel", NAMES)
def test_enlarging_is_pillows(kernel):
    image = images.scene(20, 15)
    expected = np.asarray(image.resize((64, 70), KERNELS[kernel]))
    found = kernels.resize(np.asarray(image), (64, 70), (0, 0, 20, 15), kernel)
    assert difference(found, expected).max() <= 1


def test_shrinking_samples_points():
    # Stripes one pixel wide: an antialiased kernel makes gray of them, a point-sampled one does not.
    stripes = np.zeros((4, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    found = kernels.resize(stripes, (8, 4), (0, 0, 64, 4), "box")
    assert set(np.unique(found)) <= {0, 255}
    assert 100 < np.asarray(Image.fromarray(stripes[:, :, 0]).resize((8, 4), Image.Resampling.BOX)).mean() < 155


@pytest.mark.parametrize("kernel", NAMES)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("colour", ["bgr", "gray"])
def test_a_contract_without_antialiasing(kernel, kind, colour):
    image = images.scene(200, 160)
    body = images.encode(image, kind, **({"quality": 100, "subsampling": "4:4:4"} if kind == "JPEG" else {}))
    spec = contract(resample=kernel, antialias=False, resize="stretch", colour=colour)
    pixels = np.asarray(image.convert("L"))[:, :, None] if colour == "gray" else np.asarray(image)[:, :, ::-1]
    expected = slow(pixels, (32, 32), (0, 0, 200, 160), kernel)
    found = difference(decode(body, spec)[0], expected)
    assert found.mean() <= (0.5 if kind == "PNG" else 3.0)
