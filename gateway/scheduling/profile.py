"""What a batch costs: l(b), measured at load and kept current by every batch that ran since.

One profile for a model on one kind of device; workers on like devices share it. It says what to expect; how much later
things may still end is `pace`'s business.
"""

from __future__ import annotations

import bisect
import statistics
from collections import deque
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shm.wire import ProfilePoint

WINDOW_COUNT = 32
"""Batches of one size that are remembered. Source: Clockwork (OSDI 2020) keeps 10 and takes their maximum."""

SETTLED_COUNT = 8
"""From this many batches on the window says what a size costs; before, never less than what was measured at load."""

FRESH_COUNT = 4
"""Batches of a size after which it is looked at again."""

LOOK_NS = 1_000_000_000
"""How often all sizes are."""

EXPECTED_PERCENT = 90
"""The window's percentile that is expected. The largest of 32 would follow one slow batch in 200 up and down."""

MEMORY_NS = 10_000_000_000
"""Batches longer ago than this are forgotten: what was slow once must not be refused for ever, unmeasured."""

SPREADS_MAX = 2.0
"""How many times as far from the median as for most sizes the slowest run of a size may lie."""

WARM_FLOOR = 0.5
"""Never expected to be faster than this share of the time measured at load."""

WORTH = 0.99
"""A smaller batch is preferred while it reaches this share of the best throughput: it answers sooner."""


class Profile:
    """l(b) at the warmed sizes, in ns. `times_ns`: what to expect of each, inflation included.

    `by_count[n]`: what to expect of n images, which run at the next warmed size. `least_ns`: what the smallest size
    took at best.

    Where batches overlap on a device, all of that is from when it is done with what was before them. `leads_ns`: how
    long before that a batch has to be sent; as much longer does one take that meets an idle device. Else 0.
    """

    __slots__ = (
        "_expected_ns",
        "_fresh_count",
        "_looked_ns",
        "_windows",
        "by_count",
        "inflation",
        "leads_ns",
        "least_ns",
        "points",
        "sizes",
        "spread",
        "times_ns",
    )

    def __init__(self, points: Sequence[ProfilePoint]) -> None:
        assert points
        self.points = tuple(sorted(points, key=lambda point: point.size))
        self.sizes = [point.size for point in self.points]
        self.inflation = 1.0
        self._windows: dict[int, deque[tuple[int, int]]] = {size: deque(maxlen=WINDOW_COUNT) for size in self.sizes}
        self.times_ns: dict[int, int] = {}
        self.by_count: list[int] = []
        # With two batches in flight, one that needed longer than the batch before it takes would be slower itself.
        self.leads_ns = {point.size: min(point.lead_ns, point.p50_ns) for point in self.points}
        self.least_ns = 0
        self.spread = statistics.median(point.p99_ns / max(1, point.p50_ns) - 1 for point in self.points)
        """By which share the slowest run of a size took longer than the median, at load; of all sizes the median."""
        self._fresh_count = dict.fromkeys(self.sizes, 0)
        self._expected_ns: dict[int, float] = {}
        self._looked_ns = 0
        self._look(0)

    def cut(self, size_end: int | None) -> Self:
        """Forget all sizes from `size_end` on, but never the smallest one; returns itself."""
        if size_end is not None and size_end <= self.sizes[-1]:
            self.points = tuple(point for point in self.points if point.size < size_end) or self.points[:1]
            self.sizes = [point.size for point in self.points]
            self.times_ns = {}
            self._look(self._looked_ns)
        return self

    def observe(self, size: int, took_ns: int, now_ns: int) -> None:
        """A batch of `size` took `took_ns` from its start to its answer."""
        if size not in self.times_ns:
            return
        window = self._windows[size]
        window.append((now_ns, took_ns))
        self._fresh_count[size] += 1
        # Sorting costs more than a small batch does; so not after each.
        if self._fresh_count[size] >= FRESH_COUNT:
            self._fresh_count[size] = 0
            self._expected_ns[size] = self._measured(self.points[self.sizes.index(size)])
            self._settle()

    def refresh(self, now_ns: int, inflation: float) -> None:
        """Time went by: forget what is old. `inflation`: expect things to take so many times what was measured."""
        if now_ns - self._looked_ns >= LOOK_NS:
            self.inflation = inflation
            self._look(now_ns)
        elif inflation != self.inflation:
            self.inflation = inflation
            self._settle()

    def _look(self, now_ns: int) -> None:
        self._looked_ns = now_ns
        for window in self._windows.values():
            while window and window[0][0] < now_ns - MEMORY_NS:
                window.popleft()
        self._expected_ns = {point.size: self._measured(point) for point in self.points}
        smallest = self.points[0]
        seen = [took_ns for _, took_ns in self._windows[smallest.size]]
        self.least_ns = max(1, min([smallest.p50_ns, *seen]))
        self._settle()

    def _settle(self) -> None:
        """Work out what to expect of each size, and of each number of images."""
        by_count, slowest_ns = [0], 1
        for size in self.sizes:
            # A larger batch that was measured quicker than a smaller one was measured badly.
            slowest_ns = self.times_ns[size] = max(slowest_ns, int(self.inflation * self._expected_ns[size]))
            by_count += [slowest_ns] * (size - len(by_count) + 1)
        self.by_count = by_count

    def _measured(self, point: ProfilePoint) -> float:
        """What a size took lately, or at load, in ns."""
        # The p99 of a few runs is their slowest; where it stands out from the other sizes', it was an accident.
        warm_ns = min(point.p99_ns, (1 + SPREADS_MAX * self.spread) * point.p50_ns)
        ranked = sorted(took_ns for _, took_ns in self._windows[point.size])
        if len(ranked) < SETTLED_COUNT:
            # The slowest of a few may be an accident; the second slowest is not.
            return max([warm_ns, *ranked[:-1]])
        measured = ranked[-(-len(ranked) * EXPECTED_PERCENT // 100) - 1]
        return max(measured, WARM_FLOOR * warm_ns)

    def best_size(self, fits: Callable[[int, int], bool]) -> int:
        """The smallest size whose throughput is within WORTH of the best among those that fit; else the smallest.

        `fits` is asked with a size and its expected time in ns.
        """
        rates = {size: size / time_ns for size, time_ns in self.times_ns.items() if fits(size, time_ns)}
        if not rates:
            return self.sizes[0]
        floor = WORTH * max(rates.values())
        return min(size for size, rate in rates.items() if rate >= floor)

    def size_above(self, count: int) -> int:
        """The warmed size at which `count` images run when none is left behind."""
        return self.sizes[bisect.bisect_left(self.sizes, count)]

    def size_below(self, count: int) -> int:
        """The largest warmed size that `count` images fill; 0 when they fill none."""
        place = bisect.bisect_right(self.sizes, count)
        return self.sizes[place - 1] if place else 0

    def padding_pays(self, count: int) -> bool:
        """Whether `count` images waste less when padded up than when split down and the rest runs later."""
        above, below = self.size_above(count), self.size_below(count)
        return below in (above, 0) or count * self.times_ns[below] >= below * self.times_ns[above]
