"""Each kernel against Pillow's pixels, at sizes and boxes that are anything but round; and what stores them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from gateway.decoding import kernels, resizing
from gateway.decoding.resizing import FILTERS, Canvases, Resizer
from tests.support import images
from tests.support.pipeline import KERNELS, contract, reference
from tests.unit.decoding.test_imaging import decode, difference

SHARED = sorted(set(FILTERS) & set(KERNELS))
NOISE = np.random.default_rng(3).integers(0, 256, (600, 640, 4), dtype=np.uint8)
PHOTO = np.dstack([np.asarray(images.photo("chelsea", 600))[:600, :640], NOISE[:, :, 3]])
RESIZER = Resizer()
OFF_MAX = {"box": 1, "bilinear": 1, "bicubic": 2, "lanczos": 2}
"""Of 255, on a photo. The two passes are not in Pillow's order: kernels that overshoot are clipped elsewhere."""


def canvas_of(pixels):
    """A canvas that holds uint8[h, w, 1 or 4]."""
    canvas = Canvases().take((pixels.shape[1], pixels.shape[0]), pixels.shape[2])
    canvas.pixels[...] = pixels
    return canvas


def pillows(pixels, size, box, kernel):
    """The same resize by Pillow, of three channels or of one."""
    flat = pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[:, :, :3])
    found = np.asarray(Image.fromarray(flat).resize(size, KERNELS[kernel], box)).astype(int)
    return found[:, :, None] if found.ndim == 2 else found


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("kernel", SHARED)
@pytest.mark.parametrize(
    ("source", "size", "box"),
    [
        ((500, 375), (224, 224), (85.04398826979472, 23.4375, 413.48973607038124, 351.5625)),
        ((640, 600), (7, 5), (0, 0, 640, 600)),
        ((61, 47), (200, 301), (3.3, 5.25, 50.7, 46.5)),
        ((61, 47), (61, 47), (0, 0, 61, 47)),
        ((61, 47), (20, 17), (10, 10, 30, 27)),
        ((1, 1), (9, 4), (0, 0, 1, 1)),
        ((1, 600), (32, 32), (0, 0, 1, 600)),
        ((640, 1), (1, 32), (0, 0, 640, 1)),
        ((640, 600), (1, 1), (0.5, 0.25, 639.5, 599.125)),
        ((640, 3), (3, 200), (639.0, 2.0, 640, 3)),
    ],
)
def test_pillows_pixels_to_within_one_or_two(kernel, channels, source, size, box):
    pixels = PHOTO[: source[1], : source[0], :channels]
    found = RESIZER.resize(canvas_of(pixels), size, box, kernel).astype(int)
    expected = pillows(pixels, size, box, kernel)
    assert found.shape == (size[1], size[0], channels)
    off = np.abs(found[:, :, : expected.shape[2]] - expected)
    assert off.max() <= OFF_MAX[kernel]
    assert off.mean() <= 0.25 or off.size < 10


@pytest.mark.parametrize("kernel", SHARED)
def test_noise_is_the_worst_case_for_clipping(kernel):
    box = 85.04398826979472, 23.4375, 413.48973607038124, 351.5625
    found = RESIZER.resize(canvas_of(NOISE), (224, 224), box, kernel)[:, :, :3].astype(int)
    off = np.abs(found - pillows(NOISE, (224, 224), box, kernel))
    assert off.mean() <= 0.6
    assert off.max() <= (1 if OFF_MAX[kernel] == 1 else 48)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_box_of_any_source_is_taken(data):
    width, height = data.draw(st.integers(1, 640)), data.draw(st.integers(1, 600))
    size = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 80))
    left, top = data.draw(st.floats(0, width - 0.5)), data.draw(st.floats(0, height - 0.5))
    right, bottom = data.draw(st.floats(left + 0.25, width)), data.draw(st.floats(top + 0.25, height))
    kernel = data.draw(st.sampled_from(sorted(FILTERS)))
    antialias = data.draw(st.booleans())
    level = data.draw(st.integers(0, 255))
    canvas = canvas_of(np.full((height, width, 1), level, np.uint8))
    RESIZER.resize(canvas_of(np.full((2, 2, 1), 255 - level, np.uint8)), size, (0, 0, 2, 2), kernel)
    # Nothing of the resize before is left: a flat picture stays flat, whatever of it is asked for.
    found = RESIZER.resize(canvas, size, (left, top, right, bottom), kernel, antialias=antialias)
    assert (found == level).all()


@pytest.mark.parametrize("kernel", SHARED)
def test_the_fourth_byte_means_nothing(kernel):
    box = 10.5, 3.25, 600.0, 555.5
    opaque = NOISE.copy()
    opaque[:, :, 3] = 255
    assert np.array_equal(
        RESIZER.resize(canvas_of(NOISE), (50, 40), box, kernel)[:, :, :3].copy(),
        RESIZER.resize(canvas_of(opaque), (50, 40), box, kernel)[:, :, :3],
    )


def test_an_image_of_pillows_is_read_where_it_is():
    for image in (images.scene(200, 160), images.scene(200, 160).convert("L")):
        found = RESIZER.resize(image, (33, 21), (1.5, 2.5, 180.0, 150.0), "bilinear")
        expected = np.asarray(image.resize((33, 21), KERNELS["bilinear"], (1.5, 2.5, 180.0, 150.0))).astype(int)
        assert np.abs(found[:, :, :3].squeeze() - expected).max() <= 1


@pytest.mark.parametrize("kernel", SHARED)
def test_without_antialiasing_it_is_numpys(kernel):
    box = 3.3, 5.25, 590.7, 580.5
    found = RESIZER.resize(canvas_of(PHOTO), (37, 29), box, kernel, antialias=False)[:, :, :3].astype(int)
    assert np.abs(found - kernels.resize(PHOTO[:, :, :3], (37, 29), box, kernel)).max() <= 1


@pytest.mark.parametrize("kernel", sorted(FILTERS))
@pytest.mark.parametrize("channels", [1, 4])
def test_the_same_pixels_with_and_without_simd(kernel, channels):
    canvas = canvas_of(NOISE[:, :, :channels])
    wanted = RESIZER.resize(canvas, (224, 100), (2.5, 1.25, 630.0, 599.0), kernel).copy()
    plain = Resizer()
    # `none` of the library's CpuExtensions: what a CPU without SSE4.1 runs.
    plain._engine.set_cpu_extensions(1)
    assert plain._engine.get_cpu_extensions() == 1
    assert np.array_equal(plain.resize(canvas, (224, 100), (2.5, 1.25, 630.0, 599.0), kernel), wanted)


def test_what_it_does_not_do_is_left_to_others(monkeypatch):
    assert RESIZER.resize(images.scene(), (5, 5), (0, 0, 61, 47), "hamming") is None
    monkeypatch.setattr(resizing, "BETWEEN_SIZE_MAX", 5 * 47 * 4 - 1)
    assert RESIZER.resize(images.scene(), (5, 5), (0, 0, 61, 47), "bilinear") is None
    assert RESIZER.resize(images.scene(), (4, 5), (0, 0, 61, 47), "bilinear") is not None


def test_without_the_library_pillow_does_it(monkeypatch):
    monkeypatch.setattr(resizing, "rust_lib", None)
    assert Resizer().resize(images.scene(), (5, 5), (0, 0, 61, 47), "bilinear") is None
    for options in ({}, {"colour": "bgr"}, {"resample": "lanczos"}):
        spec = contract(width=224, height=224, **options)
        for shorter, bound in ((300, 0.01), (1080, 1.5)):
            body = images.encode(images.photo("coffee", shorter), "JPEG", quality=90)
            assert difference(decode(body, spec)[0], reference(body, spec.input)).mean() <= bound
    photo = images.photo("coffee", 300)
    found, _ = decode(images.encode(photo, "PNG"), contract(antialias=False, resize="stretch"))
    assert np.array_equal(found, kernels.resize(np.asarray(photo), (32, 32), (0, 0, *photo.size), "bilinear"))


def test_no_thread_is_started():
    text = (
        "import os; from PIL import Image; from gateway.decoding.resizing import Resizer\n"
        "image = Image.effect_noise((4000, 3000), 64)\n"
        "Resizer().resize(image, (224, 224), (0, 0, 4000, 3000), 'lanczos')\n"
        "print(len(os.listdir('/proc/self/task')))"
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", text], capture_output=True, check=True, text=True, env=environment)
    assert found.stdout.strip() == "1"


@pytest.mark.parametrize("orientation", images.ORIENTATIONS)
def test_upright_is_pillows(orientation):
    image = images.scene(13, 7)
    image.getexif()[0x0112] = orientation
    found = resizing.upright(np.asarray(image), orientation)
    assert np.array_equal(found, np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (224, 224), (3, 7)])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_fourth_channel_is_dropped_and_no_byte_beyond_is_written(size, swapped):
    pixels = NOISE[: size[1], : size[0]]
    expected = pixels[:, :, :3][:, :, ::-1] if swapped else pixels[:, :, :3]
    memory = np.full(size[0] * size[1] * 3 + 128, 0xA5, np.uint8)
    out = memory[64:-64].reshape(size[1], size[0], 3)
    for view in (pixels, pixels.swapaxes(0, 1).copy().swapaxes(0, 1)):
        out[...] = 0
        resizing.store(view, out, swapped=swapped)
        assert np.array_equal(out, expected)
    assert (memory[:64] == 0xA5).all()
    assert (memory[-64:] == 0xA5).all()


def test_a_part_of_a_slot_is_filled_and_its_neighbours_are_not():
    slot = np.full((10, 12, 3), 0xA5, np.uint8)
    resizing.store(NOISE[:4, :5], slot[2:6, 3:8], swapped=False)
    assert np.array_equal(slot[2:6, 3:8], NOISE[:4, :5, :3])
    slot[2:6, 3:8] = 0xA5
    assert (slot == 0xA5).all()


def test_gray_is_repeated():
    out = np.zeros((4, 5, 3), np.uint8)
    resizing.store(NOISE[:4, :5, :1], out, swapped=True)
    assert np.array_equal(out, np.repeat(NOISE[:4, :5, :1], 3, axis=2))


def test_canvases_are_kept_by_size_and_large_ones_are_let_go(monkeypatch):
    canvases = Canvases()
    first = canvases.take((20, 10), 4)
    assert canvases.take((20, 10), 4) is first
    assert np.shares_memory(canvases.take((7, 5), 1).pixels, first.pixels)
    larger = canvases.take((40, 10), 4)
    assert not np.shares_memory(larger.pixels, first.pixels)
    assert np.shares_memory(canvases.take((20, 10), 4).pixels, larger.pixels)
    monkeypatch.setattr(resizing, "KEPT_SIZE_MAX", 2000)
    assert not np.shares_memory(canvases.take((1000, 3), 1).pixels, larger.pixels)


def test_canvases_have_a_bound(monkeypatch):
    monkeypatch.setattr(resizing, "CANVASES_MAX", 3)
    canvases = Canvases()
    for width in range(1, 20):
        canvases.take((width, 2), 4)
        assert len(canvases._kept) <= 3
