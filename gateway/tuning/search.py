"""Which rate to try next: doubling, then bisection, then a confirmation. Pure: somebody else does the trying."""

from __future__ import annotations

import math
from typing import NamedTuple

PROBES_MAX = 12
"""Rates that are tried, confirmations included."""

CONFIRMATIONS_MAX = 3
"""Probes of PROBES_MAX that are kept for confirming what was found."""

PRECISION = 1.04
"""Bisection ends when the smallest rate that failed is this close to the largest that did not."""

REFUSED_SHARE_MAX = 0.01

_GROWTH = 2.0
_RETREATS = (0.95, 0.85, 0.7)
"""What a rate that was not confirmed is lowered to, the first time, the second, and from then on."""


class Step(NamedTuple):
    """Try `rate` (requests/s) next; `confirms`: and look longer, for this is to be the result."""

    rate: float
    confirms: bool


class Probe(NamedTuple):
    """What one rate gave. Times are counted from when a request was due; `refused_share` is of all that were due."""

    rate: float
    due_count: int
    p50_ms: float
    p99_ms: float
    refused_share: float
    confirms: bool = False

    def meets(self, deadline_ms: float) -> bool:
        """Whether the rate is sustained: p99 within the deadline, next to nothing refused."""
        return self.p99_ms <= deadline_ms and self.refused_share <= REFUSED_SHARE_MAX

    def verdict(self, deadline_ms: float) -> str:
        """In one word."""
        if self.meets(deadline_ms):
            return "confirmed" if self.confirms else "meets"
        return "refuses" if self.refused_share > REFUSED_SHARE_MAX else "late"


class RateSearch:
    """Ask `next`, try that rate, tell `note`, until `next` is None. `confirmed`: the result, None without one."""

    def __init__(self, first: float, *, rate_max: float, probes_max: int = PROBES_MAX) -> None:
        assert 0 < first <= rate_max
        assert probes_max > CONFIRMATIONS_MAX
        self.confirmed: float | None = None
        self.low: float | None = None
        """The largest rate that was sustained, and is not known to fail."""
        self._high: float | None = None
        self._first = first
        self._rate_max = rate_max
        self._left = probes_max
        self._retreat_count = 0
        self._step: Step | None = None

    def next(self) -> Step | None:
        """What to try now; None when the search is over. The same until it was noted."""
        if self._step is None and self.confirmed is None and self._left > 0:
            self._step = self._choose()
        return self._step

    def note(self, *, met: bool) -> None:
        """Whether the step's rate was sustained."""
        step = self._step
        assert step is not None
        self._step = None
        self._left -= 1
        if not met:
            self._high = step.rate
            if step.confirms:
                self.low = step.rate * _RETREATS[min(self._retreat_count, len(_RETREATS) - 1)]
                self._retreat_count += 1
        elif step.confirms:
            self.confirmed = self.low = step.rate
        else:
            self.low = step.rate

    def hurry(self) -> None:
        """There is time for one more probe only: confirm what is known."""
        self._left = min(self._left, 1)
        if self._step is not None and not self._step.confirms:
            self._step = None

    def _choose(self) -> Step | None:
        low, high = self.low, self._high
        if low is None:
            if self._left <= CONFIRMATIONS_MAX:
                return None
            return Step(self._first if high is None else high / _GROWTH, confirms=False)
        found = low >= self._rate_max or (high is not None and high / low <= PRECISION)
        if found or self._left <= CONFIRMATIONS_MAX:
            return Step(low, confirms=True)
        if high is None:
            return Step(min(low * _GROWTH, self._rate_max), confirms=False)
        return Step(math.sqrt(low * high), confirms=False)
