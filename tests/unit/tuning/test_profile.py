"""When growing batches further is worth another worker's start."""

from __future__ import annotations

import pytest

from gateway.tuning.profile import worth_growing
from shm.wire import ProfilePoint


def points(**times_ms: float) -> list[ProfilePoint]:
    return [ProfilePoint(int(size[1:]), int(ms * 1e6), int(1.1 * ms * 1e6)) for size, ms in times_ms.items()]


@pytest.mark.parametrize(
    ("measured", "deadline_ms", "worth"),
    [
        (points(b1=10, b2=12), 100, True),
        (points(b1=10, b2=20), 100, False),
        (points(b1=10, b2=19.5), 100, False),
        (points(b1=10, b2=12), 11, False),
        (points(b1=10, b2=12), 13, True),
        (points(b1=10, b2=12, b4=15, b8=20), 100, True),
        (points(b1=10, b2=12, b4=24, b8=48), 100, False),
        (points(b1=10, b2=12, b4=15, b8=60), 100, True),
        (points(b1=0, b2=0), 100, True),
    ],
)
def test_it_goes_on_while_a_step_gains_and_keeps_the_deadline(measured, deadline_ms, worth):
    assert worth_growing(measured, 2, deadline_ms) is worth
