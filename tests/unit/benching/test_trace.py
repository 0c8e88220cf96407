"""A trace is read from what logs give, written so that it can be read, and replayed with the nearest images."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.bench import trace
from gateway.errors import InvalidSettings


def test_times_count_from_the_first_in_any_order():
    due, sizes = trace.parse("t", "# from a log\n1700000000.5 300 GET /\n\n1700000000.25,100\n1700000001 200\n")
    assert due.tolist() == [0.0, 0.25, 0.75]
    assert sizes.tolist() == [100, 300, 200]


def test_what_is_written_can_be_read():
    due, sizes = trace.parse("t", trace.written(np.array([0.0, 0.5, 1.25]), [3, 1, 2]))
    assert (due.tolist(), sizes.tolist()) == ([0.0, 0.5, 1.25], [3, 1, 2])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no request"),
        ("# only words\n", "holds no request"),
        ("0.1 5\nx 5\n", "line 2: 'x 5' is no 'seconds bytes'"),
        ("0.1\n", "line 1"),
        ("nan 1\n", "out of bounds"),
        ("1 -1\n", "out of bounds"),
    ],
)
def test_what_is_no_trace_is_told_with_its_line(text, says):
    with pytest.raises(InvalidSettings, match=says):
        trace.parse("t", text)


def test_the_nearest_size_is_taken():
    assert trace.nearest(np.array([0, 140, 160, 5000, 200]), [1000, 100, 200]).tolist() == [1, 1, 2, 0, 2]
    assert trace.nearest(np.array([0, 5000]), [100]).tolist() == [0, 0]
