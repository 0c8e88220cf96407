"""Whatever a body holds, decoding ends in pixels or in one of three refusals, and writes to its slot only."""

from __future__ import annotations

import base64
import functools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.decoding import header, jpeg
from gateway.decoding.imaging import Recipe, Scratch, decode_into
from gateway.decoding.loop import BadBase64, from_base64
from gateway.errors import PayloadTooLarge, UndecodableImage, UnsupportedMediaType
from tests.support import images
from tests.support.pipeline import contract

REFUSALS = (PayloadTooLarge, UndecodableImage, UnsupportedMediaType)
MAGIC = [
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\x20\0\0\0WEBPVP8 ",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"BM",
    b"II+\0",
]
RECIPES = [
    Recipe(contract(pixels_max=250_000, exact=exact, colour=colour, resize=resize))
    for exact, colour, resize in ((False, "rgb", "crop"), (True, "bgr", "stretch"), (False, "gray", "letterbox"))
]
SCRATCH = Scratch()


@functools.cache
def bodies() -> list[bytes]:
    return list(images.variants().values())


def attempt(body: bytes) -> None:
    """Decode under several contracts, each between guard bands."""
    for recipe in RECIPES:
        size = int(np.prod(recipe.shape))
        memory = np.full(size + 8192, 0xA5, np.uint8)
        out = memory[4096 : 4096 + size].reshape(recipe.shape)
        said = ""
        width = height = 1
        try:
            width, height = decode_into(memoryview(body), out, recipe, SCRATCH)
        except REFUSALS as refusal:
            said = refusal.detail or "nothing at all, which is a defect" * 9
        assert len(said) <= 120
        assert 0 < width * height <= 250_000
        assert (memory[:4096] == 0xA5).all()
        assert (memory[-4096:] == 0xA5).all()


@given(st.binary(max_size=400))
def test_any_bytes(body):
    attempt(body)


@given(st.sampled_from(MAGIC), st.binary(max_size=400))
def test_any_bytes_behind_any_magic(magic, rest):
    attempt(magic + rest)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(st.data())
def test_mutations_of_real_images(data):
    body = bytearray(data.draw(st.sampled_from(bodies())))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.integers(0, 3)):
            case 0:
                body[at] = data.draw(st.integers(0, 255))
            case 1:
                body[at : at + data.draw(st.integers(1, 40))] = data.draw(st.binary(max_size=40))
            case 2:
                body[at:at] = body[: data.draw(st.integers(0, 200))]
            case _:
                # Sizes, counts and offsets are what codecs trust.
                body[at : at + 4] = data.draw(
                    st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1"])
                )
        if not body:
            break
    attempt(bytes(body))


@given(st.binary(max_size=300))
@example(b"\xff" * 300)
@example(b"\xff\xe1\0\x02" * 60)
def test_the_scan_of_segments_ends(rest):
    try:
        found = jpeg.scan(b"\xff\xd8" + rest)
    except REFUSALS:
        return
    assert found.width <= 65_535
    assert 1 <= jpeg.orientation(b"\xff\xd8" + rest, found) <= 8


@given(st.sampled_from(list(header.Format)), st.binary(max_size=60))
def test_header_sizes_never_raise_anything_else(kind, body):
    try:
        header.size_of(kind, body)
    except UndecodableImage:
        return


@given(st.binary(max_size=200))
def test_base64_gives_back_what_went_in_with_or_without_padding(content):

    text = base64.b64encode(content)
    assert from_base64(memoryview(text)) == content
    assert from_base64(memoryview(text.rstrip(b"="))) == content


@given(st.binary(max_size=60))
def test_base64_decodes_or_refuses(text):
    try:
        found = from_base64(memoryview(text))
    except BadBase64:
        return
    assert len(found) == len(text.rstrip(b"=")) * 3 // 4
