"""What a run is summed up to: percentiles by status, goodput within a deadline, parts by when they were due."""

from __future__ import annotations

import math

import numpy as np
import orjson
import pytest

from gateway.loadtest.shots import BROKEN, TIMED_OUT, UNSENT, Sample, Shots

NAN = math.nan


def run() -> Shots:
    """Two good, one late, one refused, one of each that never was answered."""
    return Shots(
        due=np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        sent=np.array([0.001, 1.0, 2.0, 3.0, NAN, 5.0, 6.002]),
        answered=np.array([0.011, 1.030, 2.060, 3.002, NAN, NAN, NAN]),
        status=np.array([200, 200, 200, 503, UNSENT, TIMED_OUT, BROKEN], np.int16),
        bodies={
            1: orjson.dumps({"timing_ms": {"decode": 0.5, "total": 29.0}}),
            3: orjson.dumps({"code": "overloaded", "detail": "no"}),
            0: b"\x81\xa4code\xa1x",
            2: b"not a document",
        },
        began_s=100.0,
    )


def test_counts_are_by_status():
    shots = run()

    assert len(shots) == 7
    assert shots.counts() == {200: 3, 503: 1, UNSENT: 1, TIMED_OUT: 1, BROKEN: 1}
    assert shots.count(UNSENT) == 1
    assert shots.answered_count == 4


def test_latency_counts_from_when_a_request_was_due():
    shots = run()

    assert shots.latency_s(200) == pytest.approx([0.011, 0.030, 0.060])
    assert shots.latency_s(200, from_sent=True) == pytest.approx([0.010, 0.030, 0.060])
    assert shots.percentile_ms(50, 200) == pytest.approx(30)
    assert shots.percentile_ms(100) == pytest.approx(60)
    assert math.isnan(shots.percentile_ms(50, 404))
    assert shots.lateness_ms(100) == pytest.approx(2)


def test_goodput_counts_what_was_in_time():
    shots = run()

    assert shots.good(0.050).tolist() == [True, True, False, False, False, False, False]
    assert shots.goodput(0.050, 7.0) == pytest.approx(2 / 7)


def test_a_part_is_chosen_by_when_it_was_due():
    part = run().between(1.0, 4.0)

    assert part.status.tolist() == [200, 200, 503]
    assert part.began_s == 100.0
    assert [(sample.place, sample.code) for sample in part.samples()] == [(0, ""), (1, ""), (2, "overloaded")]


def test_bodies_say_codes_and_timings():
    shots = run()

    assert list(shots.samples(503)) == [Sample(3, 503, "overloaded", {})]
    assert [sample.timing_ms for sample in shots.samples(200)] == [{}, {"decode": 0.5, "total": 29.0}, {}]
    assert next(shots.samples()).code == "x", "msgpack is read as well as JSON"
