"""libwebp called by us, against libwebp called by Pillow: the same library, so the same pixels."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.decoding import imaging, webp
from gateway.errors import UndecodableImage
from tests.support import images
from tests.support.pipeline import contract, reference
from tests.unit.decoding.test_imaging import decode, difference

PLAIN = images.encode(images.scene(), "WEBP", quality=90)


@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_a_plain_file_never_meets_pillow(colour, monkeypatch):
    spec = contract(width=61, height=47, crop_fraction=1.0, colour=colour)
    expected = reference(PLAIN, spec.input)
    monkeypatch.setattr(imaging.pillow, "open_header", pytest.fail)
    assert np.array_equal(decode(PLAIN, spec)[0], expected)
    assert (
        difference(decode(PLAIN, contract(colour=colour))[0], reference(PLAIN, contract(colour=colour).input)).max()
        <= 1
    )


def test_what_is_plain():
    assert webp.is_plain(PLAIN)
    others = images.variants()
    assert not any(webp.is_plain(others[name]) for name in ("webp_lossless", "webp_alpha", "webp_animated", "jpeg"))
    assert not webp.is_plain(images.encode(images.scene(), "WEBP", orientation=6))
    assert not webp.is_plain(PLAIN + b"EXIF\0\0\0\0")
    assert not webp.is_plain(PLAIN[:-1])
    assert not webp.is_plain(PLAIN[:15])


def test_a_file_whose_size_is_not_what_was_said_is_left_to_pillow():
    pixels = np.zeros((47, 60, 4), np.uint8)
    assert not webp.decode(PLAIN, "RGB", (60, 47), pixels)
    assert not pixels.any()


def test_a_damaged_file_is_refused():
    body = bytearray(PLAIN)
    body[30:] = b"\xff" * (len(body) - 30)
    assert not webp.decode(bytes(body), "RGB", (61, 47), np.zeros((47, 61, 4), np.uint8))
    with pytest.raises(UndecodableImage):
        decode(bytes(body), contract())


def test_a_pillow_with_the_library_inside_decodes_by_itself(monkeypatch):
    assert webp._find("WebPNoSuchFunction", None) is None
    spec = contract()
    wanted = decode(PLAIN, spec)[0]
    monkeypatch.setitem(webp._INTO, "RGB", None)
    assert np.array_equal(decode(PLAIN, spec)[0], wanted)
