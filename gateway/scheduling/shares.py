"""What the models that are asked for want of the workers they share: worked out once for all of them in a review.

Each line needs what all the others take. Summed for each of them anew that grows with the square of the models; here
a sum is made once for each length of time, and the line's own part is taken off it.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.scheduling.line import Line


class Rivals:
    """The lines of one company that are asked for at the moment; each has a profile."""

    __slots__ = ("_longest", "_sums", "_wants", "_weight")

    def __init__(self, lines: Iterable[Line], now_ns: int) -> None:
        self._wants: dict[int, tuple[float, int]] = {}
        """By index: a line's weight, and the worker time (ns) that it asks for."""
        batches: list[tuple[int, int]] = []
        for line in lines:
            assert line.profile is not None
            self._wants[line.index] = line.weight, line.pace.demand_ns(line.profile, now_ns)
            batches.append((line.batch_ns, line.index))
        self._longest = heapq.nlargest(2, batches)
        self._weight = sum(weight for weight, _ in self._wants.values())
        self._sums: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._wants)

    def share(self, line: Line) -> float:
        """Its part of the workers; 1 for one that nobody asks for."""
        return line.weight / self._weight if line.index in self._wants else 1.0

    def taken_ns(self, line: Line, room_ns: int) -> int:
        """What the others want of `room_ns` of worker time, each within its own share."""
        total = self._sums.get(room_ns)
        if total is None:
            total = self._sums[room_ns] = sum(self._part(index, room_ns) for index in self._wants)
        if line.index not in self._wants:
            return int(total)
        # Alone it takes nothing from itself, whatever the rounding says.
        return int(total - self._part(line.index, room_ns)) if len(self._wants) > 1 else 0

    def _part(self, index: int, room_ns: int) -> float:
        weight, demand_ns = self._wants[index]
        return min(demand_ns, weight / self._weight * room_ns)

    def longest_ns(self, line: Line) -> int:
        """The longest batch that any of the others plans with; 0 without others."""
        return next((batch_ns for batch_ns, index in self._longest if index != line.index), 0)
