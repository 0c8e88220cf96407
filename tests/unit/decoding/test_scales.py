from __future__ import annotations

import pytest

from gateway.decoding.resizing import FILTERS
from gateway.decoding.scales import STEPS, choose
from tests.support.pipeline import KERNELS


def test_the_coarsest_faithful_scale_is_taken_and_the_kernel_by_what_is_left_to_shrink():
    assert choose("bilinear", (1920, 1080), (455, 256)) == (4, "mitchell", False)
    assert choose("bilinear", (4000, 3000), (341, 256)) == (8, "mitchell", False)
    assert choose("bilinear", (5333, 4000), (300, 225)) == (8, "mitchell", False)
    assert choose("bilinear", (5400, 4050), (300, 225)) == (8, "bilinear", False)
    assert choose("bilinear", (500, 375), (341, 256)) == (1, "bilinear", True)


def test_the_side_that_shrinks_less_decides():
    assert choose("bilinear", (4000, 540), (100, 256)) == (2, "mitchell", False)
    assert choose("bilinear", (4000, 537), (100, 256)) == (1, "bilinear", True)


@pytest.mark.parametrize("kernel", STEPS)
def test_a_bound_is_inclusive(kernel):
    least, following = STEPS[kernel][-1]
    assert choose(kernel, (round(4000 * least), round(4000 * least)), (500, 500))[:2] == (8, following)
    assert choose(kernel, (round(4000 * least) - 1,) * 2, (500, 500)).divisor < 8


def test_nearest_and_enlarging_and_the_small_are_decoded_whole():
    assert choose("nearest", (4000, 3000), (10, 10)) == (1, "nearest", False)
    assert choose("bilinear", (200, 200), (256, 256)) == (1, "bilinear", False)
    assert choose("bilinear", (31, 31), (1, 1)) == (1, "bilinear", True)
    assert choose("bilinear", (32, 32), (1, 1)) == (2, "bilinear", False)


def test_every_step_is_a_kernel_there_is_largest_bound_first():
    assert set(STEPS) == set(KERNELS) - {"nearest"}
    for steps in STEPS.values():
        bounds = [least for least, _ in steps]
        assert bounds == sorted(bounds, reverse=True)
        assert {kernel for _, kernel in steps} <= {*FILTERS, *KERNELS}


def test_colour_is_interpolated_unless_much_averaging_follows():
    assert not choose("bilinear", (349, 349), (250, 250)).plain_chroma
    assert choose("bilinear", (350, 350), (250, 250)).plain_chroma
    assert not choose("nearest", (500, 500), (250, 250)).plain_chroma
