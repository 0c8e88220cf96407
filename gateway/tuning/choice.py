"""Which batch sizes to warm, from a measured profile: pure arithmetic on l(b). No clock, no processes, no files.

The best size B* carries the load; the others cover 1..B* so closely that little of a batch's time is padding.
Source: (1 + 1/N) l(B) <= D is Symphony's rule (arXiv 2308.07470); for one worker it is Nexus's (SOSP 2019).
"""

from __future__ import annotations

import bisect
import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shm.wire import ProfilePoint

SIZES_MAX = 16
"""Sizes that are warmed at most: each of them costs time at every start."""

WASTE_MAX = 0.15
"""Share of a batch's time that padding may cost, wherever SIZES_MAX allows it."""

WORTH = 0.99
"""A smaller batch is preferred while it reaches this share of the best throughput: nearer, no measurement can tell."""

MARGIN_SHARE, MARGIN_MS_MIN = 0.1, 1.0
"""What is kept of a deadline for noise: a tenth, and never less than a millisecond."""

_WASTE_STEP = 0.01


class Choice(NamedTuple):
    """`sizes` ascend from 1 to `best_size`. `rate`: images/s of all workers at that size. `waste`: the worst share.

    `fits`: whether the deadline leaves room for that size; where it does not even for 1, it is 1 all the same.
    """

    sizes: tuple[int, ...]
    best_size: int
    rate: float
    waste: float
    fits: bool


class Curve:
    """l(b) between measured sizes, by straight lines, in ms. Beyond the largest size it is not defined.

    A batch takes no longer than a larger one does, so a tail that says otherwise is noise of the moment and is cut.
    """

    def __init__(self, points: Iterable[ProfilePoint]) -> None:
        points = sorted(points, key=lambda point: point.size)
        assert points
        self._sizes = [point.size for point in points]
        self._p50_ms = [max(1, point.p50_ns) / 1e6 for point in points]
        # The one that is timed for a deadline may meet an idle device.
        self._p99_ms = [max(1, point.p99_ns + point.lead_ns) / 1e6 for point in points]
        for index in range(len(points) - 2, -1, -1):
            self._p99_ms[index] = max(self._p50_ms[index], min(self._p99_ms[index], self._p99_ms[index + 1]))

    @property
    def size_max(self) -> int:
        """The largest size that was measured."""
        return self._sizes[-1]

    def p50_ms(self, size: int) -> float:
        """Median time of a batch of `size`."""
        return self._at(size, self._p50_ms)

    def p99_ms(self, size: int) -> float:
        """99th percentile of the time of a batch of `size`."""
        return self._at(size, self._p99_ms)

    def rate(self, size: int) -> float:
        """Images/s of one worker that runs nothing but batches of `size`."""
        return size / self.p50_ms(size) * 1e3

    def _at(self, size: int, values: Sequence[float]) -> float:
        assert size <= self.size_max
        right = bisect.bisect_left(self._sizes, size)
        left = right - 1
        if self._sizes[right] == size or left < 0:
            return values[right]
        share = (size - self._sizes[left]) / (self._sizes[right] - self._sizes[left])
        return values[left] + (values[right] - values[left]) * share


def budget_ms(deadline_ms: float, decode_ms: float) -> float:
    """What a deadline leaves for waiting and running once an image is decoded."""
    return deadline_ms - max(MARGIN_MS_MIN, MARGIN_SHARE * deadline_ms) - decode_ms


def deadline_ms_least(single_ms: float, decode_ms: float, worker_count: int) -> float:
    """The shortest deadline that leaves room for batches of one that take `single_ms`."""
    needed = (1 + 1 / worker_count) * single_ms + decode_ms
    return max(needed / (1 - MARGIN_SHARE), needed + MARGIN_MS_MIN)


def choose(
    points: Sequence[ProfilePoint], *, budget_ms: float, worker_count: int, only: Sequence[int] | None = None
) -> Choice:
    """The sizes for a profile. `only`: take none but these, which were measured and cover their range already."""
    curve = Curve(points)
    allowed = sorted(only) if only else [size for size in range(1, curve.size_max + 1) if _is_round(size)]
    best = _best(curve, [size for size in allowed if size <= curve.size_max], budget_ms, worker_count)
    allowed = [size for size in allowed if size <= best]
    sizes, limit = tuple(allowed), WASTE_MAX
    if not only:
        sizes = _cover(curve, allowed, limit)
        while len(sizes) > SIZES_MAX:
            limit += _WASTE_STEP
            sizes = _cover(curve, allowed, limit)
    waste = max((_waste(curve, low + 1, high) for low, high in itertools.pairwise(sizes)), default=0.0)
    fits = (1 + 1 / worker_count) * curve.p99_ms(best) <= budget_ms
    return Choice(sizes, best, worker_count * curve.rate(best), waste, fits)


def decoders_needed(rate: float, decoder_rate: float) -> int:
    """Decoders that keep up with `rate` images/s when each of them does `decoder_rate`."""
    return max(1, math.ceil(rate / decoder_rate))


def _best(curve: Curve, allowed: Sequence[int], budget_ms: float, worker_count: int) -> int:
    """B*: the smallest size within WORTH of the best throughput for which (1 + 1/N) l(B) fits; else the smallest."""
    rates = {size: curve.rate(size) for size in allowed if (1 + 1 / worker_count) * curve.p99_ms(size) <= budget_ms}
    if not rates:
        return allowed[0]
    floor = WORTH * max(rates.values())
    return min(size for size, rate in rates.items() if rate >= floor)


def _cover(curve: Curve, allowed: Sequence[int], waste_max: float) -> tuple[int, ...]:
    """The fewest of `allowed`, first and last among them, with no more padding than `waste_max` if it can be."""
    sizes = [allowed[0]]
    while sizes[-1] < allowed[-1]:
        above = [size for size in allowed if size > sizes[-1]]
        near = [size for size in above if _waste(curve, sizes[-1] + 1, size) <= waste_max]
        sizes.append(max(near, default=above[0]))
    return tuple(sizes)


def _waste(curve: Curve, count: int, size: int) -> float:
    """Share of a batch's time that padding costs when `count` images run at `size`."""
    return max(0.0, 1 - curve.p50_ms(count) / curve.p50_ms(size))


def _is_round(size: int) -> bool:
    """Whether engines and people like the size: all up to 8, then by 2 up to 24, by 4 up to 64, by 8 beyond."""
    step = next((step for step, last in ((1, 8), (2, 24), (4, 64)) if size <= last), 8)
    return size % step == 0
