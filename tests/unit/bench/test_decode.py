"""What is compared is comparable: every way ends with the same picture, and every peer was given its due."""

from __future__ import annotations

import numpy as np
import pytest

from bench.decode_lab import errors, rows, timing, ways
from gateway.models.spec import Input
from tests.support.images import encode, photo

CONTRACT = rows.contract()


def row(kind, shorter=300):
    picture = photo("chelsea", shorter)
    return rows.Row(kind, picture.size, kind, encode(picture, kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_way_ends_with_the_same_picture(kind):
    one = row(kind)
    wanted = errors.plain(one.body, CONTRACT)
    made = ways.ways(one, CONTRACT)
    assert {"ours", "Pillow"} <= set(made)
    for name, way in made.items():
        if not name.startswith("turbo"):
            off = errors.Error.between(np.asarray(way()), wanted)
            assert off.mean < (0.5 if name in ("ours", "Pillow", "Pillow draft") else 8), name


@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
def test_libjpeg_turbo_is_asked_for_that_scale(divisor):
    pixels = ways.turbo(row("JPEG"), divisor)()
    width, height = row("JPEG").size
    assert pixels.shape == (-(-height // divisor), -(-width // divisor), 3)


def test_a_ratio_is_the_median_of_the_rounds_quotients():
    assert timing.ratio({"a": [2.0, 30.0, 6.0], "b": [1.0, 10.0, 2.0]}, "a", "b") == 3.0


def test_the_definition_without_antialiasing_is_the_kernels_own():
    body = rows.at("coffee", 300)
    contract = rows.contract(antialias=False)
    assert contract.input == Input(width=224, height=224, antialias=False)
    assert errors.of(body, contract).largest <= 1
    assert errors.Error.between(errors.plain(body, contract), errors.plain(body, CONTRACT)).mean > 0.3
