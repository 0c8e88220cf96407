"""Measures l(b), how long a batch of b takes: enough runs for a tail, few enough to start soon."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from shm.wire import ProfilePoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

RUNS_MIN = 5
RUNS_MAX = 20
BUDGET_NS = 250_000_000
"""After RUNS_MIN runs, per size."""
BUDGET_NS_MAX = 1_000_000_000
"""After one run, per size: where a batch is slow, starting soon is worth more than a tail."""


def noise(size: int) -> NDArray[np.uint8]:
    """The image that is measured with: `size` random bytes, for some devices are faster on zeros. Always the same."""
    return np.random.default_rng(0).integers(0, 256, size, np.uint8)


def measure(size: int, run: Callable[[], object], clock: Callable[[], int] = time.perf_counter_ns) -> ProfilePoint:
    """Time `run`, which does a whole batch of `size`, until the bounds above say enough."""
    times: list[int] = []
    begin = now = clock()
    while len(times) < RUNS_MAX:
        run()
        last, now = now, clock()
        times.append(now - last)
        spent = now - begin
        if spent > BUDGET_NS_MAX or (len(times) >= RUNS_MIN and spent > BUDGET_NS):
            break
    times.sort()
    return ProfilePoint(size, times[_rank(len(times), 50)], times[_rank(len(times), 99)])


def _rank(count: int, percent: int) -> int:
    """Index of a percentile among `count` sorted values, nearest rank."""
    return -(-count * percent // 100) - 1
