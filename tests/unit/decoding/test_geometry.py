from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.decoding import geometry
from gateway.models.spec import Input

SIDES = st.integers(1, 16_384)


def test_crop_is_torchvisions():
    found = geometry.fit(Input(width=224, height=224), (500, 375), 1)
    assert found.resized == (341, 256)
    assert found.crop == (58, 16, 282, 240)  # round(58.5) is 58, as Python rounds
    assert found.stored_size == (224, 224)
    assert found.resizes


def test_crop_of_a_wide_slot_covers_it():
    found = geometry.fit(Input(width=300, height=100, crop_fraction=0.5), (400, 400), 1)
    assert found.resized == (600, 600)
    assert found.crop == (150, 250, 450, 350)


def test_letterbox_keeps_the_shape_and_is_centred():
    found = geometry.fit(Input(width=640, height=640, resize="letterbox"), (1000, 501), 1)
    assert found.resized == (640, 321)
    assert found.place == (0, 159)
    assert geometry.fit(Input(width=64, height=64, resize="letterbox"), (16_000, 1), 1).resized == (64, 1)


def test_stretch_takes_all():
    found = geometry.fit(Input(width=10, height=20, resize="stretch"), (30, 50), 1)
    assert found.stored_box == (0, 0, 30, 50)


def test_the_box_follows_the_orientation():
    spec = Input(width=10, height=10, crop_fraction=1.0)
    # An upright source of 40 x 10 shows its columns 15 to 25.
    for orientation in (1, 2, 3, 4):
        assert geometry.fit(spec, (40, 10), orientation).stored_box == (15, 0, 25, 10)
    for orientation in (5, 6, 7, 8):
        assert geometry.fit(spec, (10, 40), orientation).stored_box == (0, 15, 10, 25)


def test_a_smaller_decode_keeps_the_grid():
    assert geometry.divided((8, 4, 24, 20), 4) == (2, 1, 6, 5)


@given(SIDES, SIDES, st.integers(1, 8), st.sampled_from(["crop", "stretch", "letterbox"]), st.floats(0.1, 1.0))
def test_a_fit_stays_within_source_and_slot(width, height, orientation, resize, fraction):
    spec = Input(width=48, height=36, resize=resize, crop_fraction=fraction)
    found = geometry.fit(spec, (width, height), orientation)
    left, top, right, bottom = found.stored_box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    kept = found.crop[2] - found.crop[0], found.crop[3] - found.crop[1]
    assert 0 <= found.crop[0] <= found.crop[2] <= found.resized[0]
    assert 0 <= found.crop[1] <= found.crop[3] <= found.resized[1]
    assert found.place[0] + kept[0] <= 48
    assert found.place[1] + kept[1] <= 36
    if resize != "letterbox":
        assert kept == (48, 36)
    assert geometry.upright(found.stored_size, orientation) == kept


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_odd_crop_is_mirrored_not_shifted(orientation):
    spec = Input(width=2, height=2, crop_fraction=1.0)
    upright = (5, 2)
    stored = upright if orientation < 5 else upright[::-1]
    box = geometry.fit(spec, stored, orientation).stored_box
    # Upright columns 2 to 4 of 5: mirrored they are 1 to 3.
    expected = {1: (2, 0, 4, 2), 2: (1, 0, 3, 2), 3: (1, 0, 3, 2), 4: (2, 0, 4, 2)}
    turned = {5: (0, 2, 2, 4), 6: (0, 1, 2, 3), 7: (0, 1, 2, 3), 8: (0, 2, 2, 4)}
    assert box == {**expected, **turned}[orientation]
