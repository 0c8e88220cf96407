"""How full and how carefully one model's batches are planned: its offered rate, its margin, its inflation, its B*.

Source: the inflation controller is reference 7.1's; the best size is Symphony's (1 + 1/N) l(B) <= D (arXiv 2308.07470),
generalised to shares of the workers; the fluid size under overload is the largest that can still be collected and run
inside the deadline, l(B) + B / rate <= D.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.scheduling.profile import Profile

MS = 1_000_000
S = 1_000_000_000

MARGIN_NS_MIN = 1 * MS
MARGIN_SHARE = 0.1
"""Of a request's time that is kept back. Source: Clockwork (OSDI 2020) keeps 5 ms of 100."""

STEADY_SPREAD = 0.01
"""A device whose slowest run at load was this close to the median needs no such share."""

MARGIN_SHARE_MAX = 1 / 3
"""However late batches end, no more than this is kept back: a margin that refuses everybody never learns better."""

LATE_SHARE = 0.001
"""Of accepted images that may be answered late before more is expected of every batch."""

INFLATION_MIN, INFLATION_MAX = 1.02, 1.5
INFLATION_UP, INFLATION_DOWN = 0.02, 0.001
INFLATION_PERIOD_NS = 1 * S

TAIL_SHARE = 0.001
"""Of batches that may end later than the margin covers."""

TAIL_PRIOR, TAIL_SETTLED = 0.2, 200
"""Of the deadline: kept back for overruns of a device that is not steady, until so many batches have shown them."""

TAIL_STEPS = 64
"""Overruns are counted in steps of a TAIL_STEPS-th of the deadline, up to half of it."""

TAIL_PERIOD_NS = 10 * S
"""Overruns are remembered for one to two of these."""

RATE_MEMORY_NS_MIN = 20 * MS
ACTIVE_NS = 1 * S
"""A model that nothing was asked of for this long does not count among those that share the workers."""

REFUSED_SHARE = 0.01
"""Of real-time images; while more of them are refused, the batch class is."""

ASKED_COUNT_MIN = 200
"""Of fewer images nobody knows what share is refused."""

NO_QUOTA = 1 << 62

CHUNKS_MIN = 4
"""Where more models share workers than their deadline has room for, a batch may take a deadline's CHUNKS_MIN-th; less,
where it has a smaller share than the others.
"""


class Pace:
    """One model's controller. Durations in ns; `deadline_ns` is the model's own, a duration."""

    __slots__ = (
        "_accepted",
        "_asked_count",
        "_checked_ns",
        "_late",
        "_margin_share",
        "_offered_ns",
        "_rate",
        "_rate_memory_ns",
        "_refused_count",
        "_refusing_ns",
        "_step_ns",
        "_tails",
        "_tails_from_ns",
        "best_size",
        "deadline_ns",
        "inflation",
        "quota",
        "size",
        "tail_ns",
    )

    def __init__(self, deadline_ns: int) -> None:
        self.deadline_ns = deadline_ns
        self.inflation = INFLATION_MIN
        self.tail_ns = 0
        """By how much batches take longer than expected, all but TAIL_SHARE of them."""
        self.best_size = 1
        """B*: an image that just missed a batch still makes the next one. 1 until there is a profile."""
        self.size = 1
        """Images in a batch as planned now: B*, or more under overload."""
        self.quota = NO_QUOTA
        """Images of the real-time class that may wait; its share of the workers while other models are busy too."""
        self._rate = 0.0
        self._offered_ns = -ACTIVE_NS
        self._refusing_ns = -ACTIVE_NS
        self._asked_count = self._refused_count = 0
        self._rate_memory_ns = RATE_MEMORY_NS_MIN
        self._accepted = self._late = 0
        self._checked_ns = 0
        self._margin_share = MARGIN_SHARE
        self._step_ns = max(1, deadline_ns // TAIL_STEPS)
        self._tails = [[0] * (TAIL_STEPS // 2 + 1), [0] * (TAIL_STEPS // 2 + 1)]
        self._tails_from_ns = 0

    # -- what happens --------------------------------------------------------------------------------------------

    def offered(self, count: int, now_ns: int) -> bool:
        """Images were asked for, whatever the answer. Whether this model was asleep before."""
        asleep = now_ns - self._offered_ns >= ACTIVE_NS
        self._asked_count += count
        self._rate = self.rate(now_ns) + count / self._rate_memory_ns
        self._offered_ns = max(self._offered_ns, now_ns)
        return asleep

    def accepted(self, count: int) -> None:
        """Images were promised an answer in time."""
        self._accepted += count

    def refused(self, now_ns: int) -> None:
        """Real-time work was refused because there is too much of it."""
        self._refused_count += 1
        if self._refused_count > REFUSED_SHARE * max(self._asked_count, ASKED_COUNT_MIN):
            self._refusing_ns = now_ns

    def late(self) -> None:
        """An accepted image was not answered in time."""
        self._late += 1

    def ran(self, expected_ns: int, took_ns: int) -> None:
        """A batch that was expected to take `expected_ns` took `took_ns`."""
        step = -(-max(0, took_ns - expected_ns) // self._step_ns)
        self._tails[0][min(step, TAIL_STEPS // 2)] += 1

    def cut(self, size_max: int) -> None:
        """Larger batches do not fit in memory: not until the next `plan` either."""
        self.best_size = min(self.best_size, size_max)
        self.size = min(self.size, size_max)

    # -- what follows --------------------------------------------------------------------------------------------

    def rate(self, now_ns: int) -> float:
        """Images per ns that are asked for, lately."""
        return self._rate * math.exp(min(0, self._offered_ns - now_ns) / self._rate_memory_ns)

    def is_active(self, now_ns: int) -> bool:
        """Whether it counts among the models that share the workers."""
        return now_ns - self._offered_ns < ACTIVE_NS

    def is_refusing(self, now_ns: int) -> bool:
        """Whether more than a few real-time requests were refused lately."""
        return now_ns - self._refusing_ns < ACTIVE_NS

    def margin_ns(self, budget_ns: int) -> int:
        """How much of a budget is kept back for what nobody expects."""
        margin_ns = self._margin_share * budget_ns
        if self.tail_ns > margin_ns:
            margin_ns = min(self.tail_ns, MARGIN_SHARE_MAX * budget_ns)
        return int(margin_ns) if margin_ns > MARGIN_NS_MIN else MARGIN_NS_MIN

    def learn(self, now_ns: int) -> None:
        """Once in a while: what the late share and the overruns of the last period teach."""
        if now_ns - self._checked_ns >= INFLATION_PERIOD_NS:
            self._checked_ns = now_ns
            late = self._late > LATE_SHARE * self._accepted
            step = INFLATION_UP if late else -INFLATION_DOWN
            self.inflation = min(INFLATION_MAX, max(INFLATION_MIN, self.inflation + step))
            self._accepted = self._late = 0
            self._asked_count = self._refused_count = 0
        if now_ns - self._tails_from_ns >= TAIL_PERIOD_NS:
            self._tails_from_ns = now_ns
            self._tails = [[0] * (TAIL_STEPS // 2 + 1), self._tails[0]]
        self.tail_ns = self._tail()

    def _tail(self) -> int:
        counts = [new + old for new, old in zip(*self._tails, strict=True)]
        if self._margin_share and sum(counts) < TAIL_SETTLED:
            return int(TAIL_PRIOR * self.deadline_ns)
        allowed = int(TAIL_SHARE * sum(counts))
        for step in range(len(counts) - 1, 0, -1):
            allowed -= counts[step]
            if allowed < 0:
                return step * self._step_ns
        return 0

    def demand_ns(self, profile: Profile, now_ns: int) -> int:
        """Worker time for what half a deadline brings, as one batch where that is possible."""
        count = math.ceil(self.rate(now_ns) * self.deadline_ns / 2)
        whole, rest = divmod(count, profile.sizes[-1])
        return whole * profile.by_count[-1] + profile.by_count[rest]

    def plan(
        self,
        profile: Profile,
        *,
        share: float,
        active_count: int,
        taken_ns: int,
        longest_ns: int,
        worker_count: int,
        now_ns: int,
    ) -> int:
        """Set B* and the quota, and return the size to plan with now.

        `share` is this model's part of the workers among the `active_count` active ones; `taken_ns` the worker time
        that the others want while one of its images may wait, each within its own share; `longest_ns` the longest batch
        that any of the others plans with.
        """
        deadline_ns = self.deadline_ns
        rate = self.rate(now_ns)
        margin_share = MARGIN_SHARE if profile.spread > STEADY_SPREAD else 0.0
        if margin_share != self._margin_share:
            self._margin_share = margin_share
            self.tail_ns = self._tail()
        margin_ns = self.margin_ns(deadline_ns)

        def room_ns(size: int, time_ns: int) -> int:
            """Worker time before an image's deadline, behind a batch that was just started."""
            return worker_count * (deadline_ns - margin_ns - profile.leads_ns[size] - time_ns)

        def fits(size: int, time_ns: int) -> bool:
            return time_ns <= room_ns(size, time_ns) - taken_ns

        def collects(size: int, time_ns: int) -> bool:
            return size * worker_count <= rate * room_ns(size, time_ns)

        self.best_size = size = profile.best_size(fits)
        if taken_ns:
            floor_ns = int(deadline_ns / CHUNKS_MIN * min(1.0, share * active_count))
            self.best_size = size = max(size, profile.best_size(lambda _, time_ns: time_ns <= floor_ns))
        else:
            size = max(size, profile.best_size(collects))
        self._rate_memory_ns = max(RATE_MEMORY_NS_MIN, profile.times_ns[self.best_size])
        time_ns = profile.times_ns[size]
        # All wait equally long, so that what each may have waiting is in proportion to what it gets.
        waiting_ns = room_ns(size, max(time_ns, longest_ns))
        own_ns = max(waiting_ns - taken_ns, share * waiting_ns)
        self.quota = size * max(1, int(own_ns / time_ns)) if taken_ns else NO_QUOTA
        return size
