"""One rate limit, exact: GCRA (ITU-T I.371, the virtual scheduling form) in whole numbers.

Over any window of W seconds at most `rate * W + burst` images are let through, and nothing is refused that this allows.
Time comes as `now_ns`. Inside, a *tick* is a nanosecond divided by the rate's numerator, so that an image takes a whole
number of ticks whatever the rate and nothing drifts. The state is one number, `_tat`: when the meter is full again.

A charge stays open until it is settled or given back. To give one back is to make the meter what it would be had the
charge never been: not the same as subtracting it, for a meter that was full again in between has forgotten it.
What came after an open charge and is settled acts on the state as x → max(x + added, floor), and two such functions in
a row are one: so what is kept is as long as the list of open charges, whatever went through.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fractions import Fraction


class Charge:
    """What one `take` took, and what was settled between it and the next open charge. All in ticks."""

    __slots__ = ("added", "at", "before", "cost", "floor")

    def __init__(self, at: int, cost: int, before: int) -> None:
        """`before`: the meter's state without this charge and what follows."""
        self.at = at
        self.cost = cost
        self.before = before
        self.added = 0
        self.floor = 0

    def after(self, state: int) -> int:
        """The meter's state behind this charge and what was settled after it, from the state before it."""
        return max(max(state, self.at) + self.cost + self.added, self.floor)

    def then(self, added: int, floor: int) -> None:
        """Something more was settled behind this charge."""
        self.floor = max(self.floor + added, floor)
        self.added += added


class Meter:
    """Lets `rate` images a second through, and `burst` (at least 1) at once after a rest."""

    __slots__ = ("_capacity", "_image", "_open", "_scale", "_tat", "burst", "rate", "window_s")

    def __init__(self, rate: Fraction, burst: int) -> None:
        assert rate > 0
        assert burst >= 1
        self.rate = rate
        self.burst = burst
        self.window_s = ceil(burst / rate)
        """What an empty meter takes to be full, in whole seconds."""
        self._scale = rate.numerator  # ticks per ns
        self._image = rate.denominator * 1_000_000_000  # ticks per image
        self._capacity = burst * self._image
        self._tat = 0
        self._open: list[Charge] = []

    def wait_ns(self, now_ns: int, cost: int) -> int:
        """How long until `cost` images conform; 0: now. One ns earlier they would not."""
        assert cost <= self.burst
        due = self._tat + cost * self._image - self._capacity
        return max(0, -(-due // self._scale) - now_ns)

    def take(self, now_ns: int, cost: int) -> Charge:
        """Charge `cost` images that conform."""
        at = now_ns * self._scale
        before = self._tat
        charge = Charge(at, cost * self._image, before)
        self._tat = max(before, at) + charge.cost
        assert self._tat - at <= self._capacity, "asked for no wait_ns first"
        self._open.append(charge)
        return charge

    def settle(self, charge: Charge) -> None:
        """The charge is final."""
        index = self._open.index(charge)
        if index:
            previous = self._open[index - 1]
            previous.then(charge.cost, charge.at + charge.cost)
            previous.then(charge.added, charge.floor)
        del self._open[index]

    def give_back(self, charge: Charge) -> None:
        """The charge never was; every other one stands."""
        index = self._open.index(charge)
        if index:
            self._open[index - 1].then(charge.added, charge.floor)
        state = max(charge.before + charge.added, charge.floor)
        del self._open[index]
        for later in self._open[index:]:
            if later.before == state:
                return  # It was forgotten before this one came.
            later.before = state
            state = later.after(state)
        self._tat = state

    def remaining(self, now_ns: int) -> int:
        """Images that conform at once."""
        return min(self.burst, max(0, self._capacity - self._tat + now_ns * self._scale) // self._image)

    def full_ns(self, now_ns: int) -> int:
        """How long until the whole burst conforms; 0: it does now."""
        return max(0, -(-self._tat // self._scale) - now_ns)
