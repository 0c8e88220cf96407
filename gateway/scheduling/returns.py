"""Who was told when to come back, and that there will be room then: what makes a Retry-After true under overload.

Every refusal for want of time gives its client a date. Dates are as far apart as a share of the workers can serve, and
that share is kept free for whoever comes on or after a date of theirs; to others the queue is full a little earlier.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

S = 1_000_000_000

WAIT_NS_MIN = 1 * S
"""Retry-After counts in whole seconds."""

WAIT_NS_MAX = 60 * S

GRACE_NS = 5 * S
"""How long after its date a client is still let in before others."""

SHARE = 1 / 16
"""Of the workers, for those who come back."""

DATES_MAX = 4096
"""Dates that are remembered; who gets none is told to come after all of them."""


class Returns:
    """One model's dates. A client has one at a time."""

    __slots__ = ("_dates", "_last_ns", "_of")

    def __init__(self) -> None:
        self._dates: deque[tuple[int, Hashable]] = deque()
        """(date in ns, client), in order; also those that were kept, until they are over."""
        self._of: dict[Hashable, int] = {}
        """The date of each client that has not come yet."""
        self._last_ns = 0

    def __bool__(self) -> bool:
        """Whether somebody has a date."""
        return bool(self._of)

    def invite(self, client: Hashable, count: int, wait_ns: int, rate: float, now_ns: int) -> int:
        """A date for `count` images of a client, not before `wait_ns` from now; how long it is until then, in ns.

        `rate`: images per ns that the workers can do. A client that has a date is told that one again. Beyond
        WAIT_NS_MAX there are no dates: who knows what will be then.
        """
        self._forget(now_ns)
        mine_ns = self._of.get(client, 0)
        if mine_ns > now_ns:
            return max(mine_ns - now_ns, wait_ns)
        if wait_ns > WAIT_NS_MAX:
            return wait_ns
        date_ns = max(now_ns + max(WAIT_NS_MIN, wait_ns), self._last_ns)
        if len(self._dates) < DATES_MAX:
            self._last_ns = date_ns + int(count / (SHARE * rate))
            self._dates.append((date_ns, client))
            self._of[client] = date_ns
        return date_ns - now_ns

    def is_due(self, client: Hashable, now_ns: int) -> bool:
        """Whether a client comes on its date."""
        mine_ns = self._of.get(client)
        return mine_ns is not None and mine_ns <= now_ns <= mine_ns + GRACE_NS

    def keep(self, client: Hashable) -> None:
        """A client came on its date and was let in."""
        del self._of[client]

    def reserve(self, size: int, until_ns: int, now_ns: int) -> int:
        """Images of a batch of `size` to keep free for those who may come on their dates before `until_ns`."""
        self._forget(now_ns)
        dates = self._dates
        while dates and self._of.get(dates[0][1]) != dates[0][0]:
            dates.popleft()  # was kept
        return max(1, int(SHARE * size)) if dates and dates[0][0] <= until_ns else 0

    def _forget(self, now_ns: int) -> None:
        """Drop the dates that are over."""
        dates = self._dates
        while dates and dates[0][0] + GRACE_NS < now_ns:
            date_ns, client = dates.popleft()
            if self._of.get(client) == date_ns:
                del self._of[client]
