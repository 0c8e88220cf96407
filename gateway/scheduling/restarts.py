"""What the core keeps about any child, and when a dead one comes back: at once the first time, then later and later."""

from __future__ import annotations

BACK_OFF_NS = (0, 100_000_000, 200_000_000, 500_000_000, 1_000_000_000, 2_000_000_000, 5_000_000_000)
"""Delay before the nth restart in a row; the last one repeats."""

SETTLED_NS = 10_000_000_000
"""A child that was ready this long starts a new row."""

FAILING_COUNT = 5
"""Deaths in a row after which nothing is queued for this child any more."""


class Restarts:
    """The deaths of one child."""

    __slots__ = ("_ready_ns", "in_a_row", "total")

    def __init__(self) -> None:
        self.in_a_row = 0
        self.total = 0
        self._ready_ns: int | None = None

    @property
    def failing(self) -> bool:
        """Whether it is down and keeps dying, so that waiting for it is no use. One that came up counts as up."""
        return self._ready_ns is None and self.in_a_row >= FAILING_COUNT

    def ready(self, now_ns: int) -> None:
        """It came up."""
        self._ready_ns = now_ns

    def died(self, now_ns: int) -> int:
        """It died; the time at which to start it again."""
        settled = self._ready_ns is not None and now_ns - self._ready_ns >= SETTLED_NS
        self._ready_ns = None
        self.in_a_row = 1 if settled else self.in_a_row + 1
        self.total += 1
        return now_ns + BACK_OFF_NS[min(self.in_a_row, len(BACK_OFF_NS)) - 1]


class ChildState:
    """What the core keeps about any child. Decoders and workers add what they hold."""

    __slots__ = ("broken", "condemned", "index", "ready", "restarts", "spawn_at_ns", "started_ns")

    def __init__(self, index: int) -> None:
        self.index = index
        self.ready = False
        self.condemned = False
        """Its death was asked for and has not come back: whatever it says, it gets nothing more."""
        self.broken = False
        """It broke the protocol, so nobody knows what it has done."""
        self.restarts = Restarts()
        self.spawn_at_ns: int | None = 0
        """When to start it; None while it runs or starts."""
        self.started_ns = 0
        """When it was started; 0 once it was condemned."""
