"""How bench/growth.py judges curves, slopes and drifts: on series of which the answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.growth_lab import fits
from bench.growth_lab.parts import Point, middle
from bench.growth_lab.soak import Piece, judge

SIZES = (1, 10, 100, 1000)


@pytest.mark.parametrize(
    ("costs", "kind", "rise"),
    [
        ((300, 305, 298, 303), "flat", 303 / 298),
        ((500, 300, 250, 240), "falling", 1.0),
        ((301, 310, 400, 1300), "linear", 1300 / 301),
        ((500, 310, 400, 1300), "linear", 1300 / 310),
        ((300, 305, 390, 303), "flat", 303 / 300),
        ((300, 310, 900, 60_000), "faster than linear", 200.0),
        ((300, 600, 900, 1200), "slower than linear", 4.0),
    ],
)
def test_a_curve_is_named(costs, kind: str, rise: float):
    found = fits.fit(SIZES, costs)

    assert (found.kind, found.rise) == (kind, pytest.approx(rise))


def test_a_line_is_found_as_it_was_drawn():
    found = fits.fit(SIZES, [250 + 3 * size for size in SIZES])

    assert (found.fixed, found.slope) == (pytest.approx(250), pytest.approx(3))
    assert found.misfit == pytest.approx(0, abs=1e-9)


def test_a_line_with_a_dear_first_size_is_drawn_through_the_rest():
    found = fits.fit(SIZES, [900, *(250 + 3 * size for size in SIZES[1:])])

    assert (found.fixed, found.slope) == (pytest.approx(250), pytest.approx(3))


def test_what_repeats_differ_by_is_no_growth():
    costs = (300, 305, 310, 370)

    assert fits.fit(SIZES, costs).kind == "slower than linear" or fits.fit(SIZES, costs).kind == "linear"
    assert fits.fit(SIZES, costs, noise_share=0.12).kind == "flat"


@pytest.mark.parametrize(("sizes", "costs"), [((1,), (1,)), ((1, 1), (1, 2)), ((1, 2), (0, 1)), ((1, 2), (1,))])
def test_what_is_no_curve_is_refused(sizes, costs):
    with pytest.raises(ValueError, match="two ascending sizes"):
        fits.fit(sizes, costs)


def test_an_exact_slope_has_no_noise():
    found = fits.slope(range(10), [7 + 2 * step for step in range(10)])

    assert (found.slope, found.noise) == (pytest.approx(2), pytest.approx(0, abs=1e-6))
    assert not found.is_zero


def test_independent_noise_is_told_as_the_textbook_has_it():
    draw = np.random.default_rng(5)
    slopes, noises = [], []
    for _ in range(300):
        found = fits.slope(range(40), draw.normal(0, 1, 40))
        slopes.append(found.slope)
        noises.append(found.noise)

    # Two standard errors; those of 40 independent values are 1 / sqrt(sum of squares) = 0.0137.
    assert np.std(slopes) == pytest.approx(0.0137, rel=0.1)
    assert np.median(noises) == pytest.approx(2 * 0.0137, rel=0.15)
    assert np.mean(np.abs(slopes) <= noises) > 0.9


def test_values_that_hang_together_make_a_slope_less_sure():
    draw = np.random.default_rng(6)
    walks = [fits.slope(range(60), np.cumsum(draw.normal(0, 1, 60))) for _ in range(200)]

    # A slope is seen in nine of ten walks by whoever takes their values for independent.
    assert np.mean([walk.is_zero for walk in walks]) > 0.5
    walk = np.cumsum(draw.normal(0, 1, 60))
    assert fits.slope(range(60), walk).noise > 2 * fits.slope(range(60), draw.permutation(walk)).noise


def test_a_late_step_of_few_values_is_no_sure_slope():
    assert fits.slope(range(12), [1] * 10 + [2] * 2).is_zero
    with pytest.raises(ValueError, match="four values"):
        fits.slope(range(3), [1, 2, 3])


def pieces(count: int, *, factor: float = 1.0, leak: int = 0) -> list[Piece]:
    """Of 500 requests each; latency grows to `factor` evenly, the gateway's memory by `leak` bytes each."""
    draw = np.random.default_rng(7)
    made = []
    for number in range(count):
        latencies = draw.gamma(4, 0.001, 500) * (1 + (factor - 1) * number / (count - 1))
        memory = {"gateway": 70_000_000 + leak * number + int(draw.integers(0, 5000)), "decoder": 80_000_000}
        made.append(Piece(latencies.astype(np.float32), memory, 300.0))
    return made


def test_a_soak_that_stays_as_it_was_shows_nothing():
    found = judge(pieces(100))

    assert found.requests == 50_000
    assert found.drift == pytest.approx(1, abs=found.drift_noise)
    assert found.drift_noise < 0.1
    assert found.memory["gateway"].is_zero
    assert (found.memory["decoder"].slope, found.memory["decoder"].noise) == (0, 0)


def test_a_soak_that_gets_slower_and_keeps_memory_shows_both():
    found = judge(pieces(100, factor=1.3, leak=4096))

    assert found.drift > 1 + found.drift_noise
    # 4 KiB each 500 requests.
    assert found.figures()["soak_memory_slope_kib"][0] == pytest.approx(800, rel=0.05)
    assert not found.memory["gateway"].is_zero


def test_drift_compares_tenths_of_the_requests():
    series = [np.full(100, value, np.float32) for value in (1, *[5] * 8, 2)]

    assert fits.drift(series)[0] == pytest.approx(2)
    assert fits.drift(series[:5])[1] == math.inf


def test_of_several_measurements_the_middle_one_counts_with_the_most_memory():
    points = [
        Point(1, {"gateway": cpu}, {"gateway": size}, rate) for cpu, size, rate in ((9, 5, 1), (1, 7, 2), (4, 6, 9))
    ]

    assert middle(points) == Point(1, {"gateway": 4}, {"gateway": 7}, 2)
