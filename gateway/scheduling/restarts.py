"""The life of a child: its states, and when a dead one comes back.

::

    starting ──▶ warming ──▶ ready ──▶ draining      killed, or died by itself, from any of them ──▶ dead ──▶ starting
         └──▶ building ◀─┘ (and back)                killed, and not reaped after STUCK_NS: dead ──▶ stuck ──▶ dead

A child is `dead` from the moment that its end is known or asked for: it gets nothing more and is not believed. What it
holds is taken back once it was reaped, never before.
"""

from __future__ import annotations

import enum
from collections import deque

BACK_OFF_NS = (0, 100_000_000, 200_000_000, 500_000_000, 1_000_000_000, 2_000_000_000, 5_000_000_000)
"""Delay before the nth restart in a row; the last one repeats."""

SETTLED_NS = 10_000_000_000
"""A child that was ready this long, or did any work, starts a new row."""

FAILING_COUNT = 5
"""Deaths in a row after which nothing is queued for this child any more."""

STUCK_NS = 5_000_000_000
"""A killed child that is not gone after this hangs in the kernel: nobody waits for it any longer."""


SPAWN_RETRY_NS = 250_000_000
"""When to try again to start a child for which there was no process or no descriptor."""


class State(enum.Enum):
    """Where a child is in its life."""

    STARTING = "starting"
    WARMING = "warming"
    BUILDING = "building"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"
    STUCK = "stuck"


_S = State
TRANSITIONS: dict[State, frozenset[State]] = {
    _S.DEAD: frozenset({_S.STARTING, _S.STUCK}),
    _S.STARTING: frozenset({_S.WARMING, _S.BUILDING, _S.READY, _S.DEAD}),
    _S.WARMING: frozenset({_S.BUILDING, _S.READY, _S.DEAD}),
    _S.BUILDING: frozenset({_S.WARMING, _S.DEAD}),
    _S.READY: frozenset({_S.DRAINING, _S.DEAD}),
    _S.DRAINING: frozenset({_S.DEAD}),
    _S.STUCK: frozenset({_S.DEAD}),
}


class Restarts:
    """The deaths of one child. At most `count_max` restarts in any `window_ns`, where that is not 0; then its circuit
    is open, and the next restart is a probe: if that one comes up, the circuit is closed.
    """

    __slots__ = ("_count_max", "_ready_ns", "_starts_ns", "_window_ns", "in_a_row", "open_until_ns", "total")

    def __init__(self, count_max: int = 0, window_ns: int = 60_000_000_000) -> None:
        self.in_a_row = 0
        self.total = 0
        self.open_until_ns = 0
        """When the next probe is started; 0 while the circuit is closed."""
        self._count_max = count_max
        self._window_ns = window_ns
        self._starts_ns: deque[int] = deque(maxlen=count_max or 1)
        self._ready_ns: int | None = None

    @property
    def failing(self) -> bool:
        """Whether it is down and keeps dying, so that waiting for it is no use. One that came up counts as up."""
        return self._ready_ns is None and (self.in_a_row >= FAILING_COUNT or self.open_until_ns > 0)

    def ready(self, now_ns: int) -> None:
        """It came up."""
        self._ready_ns = now_ns
        self.open_until_ns = 0

    def postponed(self, start_ns: int) -> None:
        """The start that was due comes later."""
        if self._starts_ns:
            self._starts_ns[-1] = start_ns

    def died(self, now_ns: int, *, worked: bool = False) -> int:
        """It died; the time at which to start it again. `worked`: it did some of its work before."""
        settled = self._ready_ns is not None and (worked or now_ns - self._ready_ns >= SETTLED_NS)
        self._ready_ns = None
        self.in_a_row = 1 if settled else self.in_a_row + 1
        self.total += 1
        start_ns = now_ns + BACK_OFF_NS[min(self.in_a_row, len(BACK_OFF_NS)) - 1]
        if self._count_max:
            if len(self._starts_ns) == self._count_max and start_ns < self._starts_ns[0] + self._window_ns:
                start_ns = self.open_until_ns = self._starts_ns[0] + self._window_ns
            elif self.open_until_ns:
                self.open_until_ns = start_ns  # the probe died, too
            self._starts_ns.append(start_ns)
        return start_ns


class ChildState:
    """What the core keeps about any child. Decoders and workers add what they hold."""

    __slots__ = (
        "broken",
        "condemned_ns",
        "index",
        "ready",
        "restarts",
        "spawn_at_ns",
        "started_ns",
        "state",
        "worked",
    )

    def __init__(self, index: int, restarts: Restarts | None = None) -> None:
        self.index = index
        self.state = State.DEAD
        self.ready = False
        """Whether it takes work: READY, or DRAINING."""
        self.condemned_ns = 0
        """When its death was asked for; 0 unless that has not come back. Whatever it says, it gets nothing more."""
        self.broken = False
        """It broke the protocol, so nobody knows what it has done."""
        self.worked = False
        """Whether it did any work since it came up."""
        self.restarts = restarts or Restarts()
        self.spawn_at_ns: int | None = 0
        """When to start it; None while it runs or starts."""
        self.started_ns = 0
        """When it was started; 0 once it was condemned."""

    @property
    def is_hopeless(self) -> bool:
        """Whether waiting for it is no use: it keeps dying, or hangs in the kernel."""
        return self.restarts.failing or self.state is State.STUCK

    @property
    def condemned(self) -> bool:
        """Whether its death was asked for and has not come back."""
        return self.condemned_ns > 0

    def move(self, target: State) -> None:
        """To the next state of its life; any move but those in TRANSITIONS is a bug."""
        assert target in TRANSITIONS[self.state], f"child {self.index}: {self.state.name} to {target.name}"
        self.state = target
        self.ready = target is State.READY or target is State.DRAINING

    def begin(self, now_ns: int) -> None:
        """It is being started."""
        self.move(State.STARTING)
        self.spawn_at_ns = None
        self.condemned_ns = 0
        self.broken = self.worked = False
        self.started_ns = now_ns

    def up_by_ns(self, start_timeout_ns: int, build_timeout_ns: int) -> int:
        """When a child that is being started must have come up."""
        del build_timeout_ns  # Only workers build.
        return self.started_ns + start_timeout_ns

    def lateness(self, now_ns: int) -> str:
        """What one that has not come up by then did not do."""
        del now_ns
        return "did not start in time"

    def condemn(self, now_ns: int, *, broken: bool) -> None:
        """Its death is being asked for."""
        if self.state not in (State.DEAD, State.STUCK):
            self.move(State.DEAD)
        self.ready = False
        self.broken = broken
        self.condemned_ns = now_ns
        self.started_ns = 0

    def postpone(self, now_ns: int) -> None:
        """It could not be started, for want of something that others may give back: that is no death of its own."""
        self.move(State.DEAD)
        self.started_ns = 0
        self.spawn_at_ns = now_ns + SPAWN_RETRY_NS
        self.restarts.postponed(self.spawn_at_ns)

    def bury(self, now_ns: int) -> None:
        """It is dead and reaped."""
        if self.state is not State.DEAD:
            self.move(State.DEAD)
        self.ready = False
        self.condemned_ns = self.started_ns = 0
        self.spawn_at_ns = self.restarts.died(now_ns, worked=self.worked)
