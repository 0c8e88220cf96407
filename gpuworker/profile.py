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


def measure_overlapping(
    size: int,
    start: Callable[[], object],
    finish: Callable[[], object],
    clock: Callable[[], int] = time.perf_counter_ns,
) -> ProfilePoint:
    """Time batches of `size` on a device that computes one while the next is begun: what each adds to a row of them,
    and how much longer one alone takes.

    `start` begins a batch and does not wait, `finish` waits for the oldest and writes its answers. None is in flight
    before, or afterwards.
    """

    def one() -> None:
        start()
        finish()

    lone = measure(size, one, clock)
    # From now on one more is in flight, and `one` waits for the batch before its own. The first of the row was alone.
    start()
    one()
    point = measure(size, one, clock)
    finish()
    return ProfilePoint(size, point.p50_ns, point.p99_ns, max(0, lone.p50_ns - point.p50_ns))


def _rank(count: int, percent: int) -> int:
    """Index of a percentile among `count` sorted values, nearest rank."""
    return -(-count * percent // 100) - 1
