"""What a batch costs: l(b) as measured by the worker at load, and the sizes it argues for.

Source: the rule for the best size B is Symphony's (1 + 1/N) l(B) <= D (arXiv 2308.07470); for N = 1 it is Nexus's
(SOSP 2019).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shm.wire import ProfilePoint

WORTH = 0.97
"""A smaller batch is preferred while it reaches this share of the best throughput: it answers sooner."""


class Profile:
    """l(b) at the warmed sizes, in ns."""

    __slots__ = ("best_size", "points", "sizes", "times_ns")

    def __init__(self, points: Sequence[ProfilePoint], *, deadline_ns: int, worker_count: int) -> None:
        """`deadline_ns` (a duration) and `worker_count` bound the best size: a full batch that just missed one start
        still makes the next: (1 + 1/N) l(B) <= D.
        """
        assert points
        self.points = tuple(sorted(points, key=lambda point: point.size))
        self.sizes = [point.size for point in self.points]
        self.times_ns = {point.size: max(1, point.p99_ns) for point in self.points}
        self.best_size = self._best(deadline_ns, worker_count)

    def _best(self, deadline_ns: int, worker_count: int) -> int:
        """B*: the smallest size whose throughput is within WORTH of the best that the deadline allows."""
        rates = {
            point.size: point.size / max(1, point.p50_ns)
            for point in self.points
            if self.times_ns[point.size] * (1 + 1 / worker_count) <= deadline_ns
        }
        if not rates:
            return self.sizes[0]
        floor = WORTH * max(rates.values())
        return min(size for size, rate in rates.items() if rate >= floor)

    def size_for(self, count: int) -> tuple[int, int]:
        """For `count` waiting tickets: (how many to take, the warmed size to run), padding up or splitting down.

        Whichever of the two wastes less: count / l(next size up) against (next size down) / l(next size down).
        """
        assert count > 0
        if count >= self.best_size:
            return self.best_size, self.best_size
        above = next(size for size in self.sizes if size >= count)
        below = max((size for size in self.sizes if size <= count), default=0)
        if below in (above, 0):
            return count, above
        if count * self.times_ns[below] >= below * self.times_ns[above]:
            return count, above
        return below, below
