"""The virtual clock, the workers and the judge. Knows no policy: it asks one, and counts what it sees.

A worker holds one running and one staged batch and runs them in order; as the real one does, it refuses a batch whose
latest start has passed. Every request of the trace ends exactly once, or an assertion fails.
"""

from __future__ import annotations

import enum
import heapq
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from bench.lab.traces import START_NS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bench.lab.law import Law
    from bench.lab.traces import Trace

NEVER_NS = 1 << 62

BATCHES_MAX = 2
"""One running, one staged."""


class Outcome(enum.IntEnum):
    """Where a request is, or how it ended."""

    COMING = 0
    REFUSED = 1
    """At once: it was never accepted."""
    ACCEPTED = 2
    ON_TIME = 3
    LATE = 4
    """Answered after its deadline."""
    EXPIRED = 5
    """Accepted, and given up when no worker could have answered it in time any more."""
    DROPPED = 6
    """Accepted, and given up though some worker still could have."""


_COMING, _REFUSED, _ACCEPTED, _ON_TIME, _LATE, _EXPIRED, _DROPPED = Outcome


class Run:
    """One batch in a worker: `requests` (indices into the trace), run at `size`; `number` is the policy's own."""

    __slots__ = ("latest_start_ns", "number", "requests", "size")

    def __init__(self, requests: list[int], size: int, latest_start_ns: int, number: int) -> None:
        self.requests = requests
        self.size = size
        self.latest_start_ns = latest_start_ns
        self.number = number


class Policy(Protocol):
    """What decides. It learns of time through arguments, and acts through the Machine that `begin` gave it."""

    name: str

    def begin(self, machine: Machine) -> None:
        """Before the first request."""

    def offer(self, request: int, now_ns: int) -> bool:
        """A request is here: True accepts it, False refuses it. It may be given to a worker in `decide` only."""

    def batch_done(self, worker: int, run: Run, *, ran: bool, now_ns: int) -> None:
        """A worker is through with its first batch; `ran` False: it refused it, for its latest start had passed."""

    def decide(self, now_ns: int) -> int | None:
        """After whatever happened at this instant: start batches, answer, give up. When to ask again at the latest."""


class Noise:
    """Factors on l(b), one per batch: lognormal with sigma 3 %, and 1.5 times as long once in 200."""

    def __init__(self, seed: int, *, sigma: float = 0.03, spike_share: float = 0.005, spike: float = 1.5) -> None:
        self._draw = np.random.default_rng(seed)
        self._sigma, self._spike_share, self._spike = sigma, spike_share, spike
        self._left: list[float] = []

    def factor(self) -> float:
        """The next one."""
        if not self._left:
            factors = self._draw.lognormal(0.0, self._sigma, 1024)
            factors[self._draw.random(1024) < self._spike_share] *= self._spike
            self._left = factors.tolist()
        return self._left.pop()


@dataclass(frozen=True)
class Played:
    """What the machine saw. Arrays are per request of the trace: `outcome` uint8[n], `ended_ns` int64[n]."""

    trace: Trace
    outcome: NDArray[np.uint8]
    ended_ns: NDArray[np.int64]
    capacity: float
    warmup_s: float
    busy_share: float
    """Of all workers' time within the horizon."""
    batch_mean: float
    """Images per batch."""

    def count(self, *outcomes: Outcome) -> int:
        """Requests that ended so."""
        return int(np.isin(self.outcome, outcomes).sum())

    @property
    def accepted(self) -> int:
        """Requests that were not refused at once."""
        return len(self.trace) - self.count(Outcome.REFUSED)

    @property
    def late(self) -> int:
        """Accepted, and not answered in time because the machine was too slow for it."""
        return self.count(Outcome.LATE, Outcome.EXPIRED)

    @property
    def dropped(self) -> int:
        """Accepted, and given up by choice."""
        return self.count(Outcome.DROPPED)

    @property
    def on_time(self) -> int:
        """Answered in time, whenever that was."""
        return self.count(Outcome.ON_TIME)

    @property
    def goodput(self) -> float:
        """Answers in time per second, from the end of the warm-up to the horizon."""
        return self.on_time_rate(np.ones(len(self.trace), bool))

    @property
    def goodput_share(self) -> float:
        """Goodput / capacity."""
        return self.goodput / self.capacity

    def on_time_rate(self, chosen: NDArray[np.bool_]) -> float:
        """Goodput of the chosen requests (bool[n])."""
        from_ns = START_NS + int(self.warmup_s * 1e9)
        inside = (self.ended_ns > from_ns) & (self.ended_ns <= self.trace.end_ns)
        good = chosen & inside & (self.outcome == Outcome.ON_TIME)
        return float(good.sum() / (self.trace.seconds - self.warmup_s))

    def refused_share(self, chosen: NDArray[np.bool_]) -> float:
        """Of the chosen requests (bool[n]), how many got a refusal, at once or after they were accepted."""
        refused = np.isin(self.outcome[chosen], (Outcome.REFUSED, Outcome.EXPIRED, Outcome.DROPPED))
        return float(refused.mean()) if len(refused) else 0.0

    @property
    def latency_ms(self) -> NDArray[np.float64]:
        """Of every request that was answered, in order of arrival; NaN for the others."""
        answered = np.isin(self.outcome, (Outcome.ON_TIME, Outcome.LATE))
        return np.where(answered, (self.ended_ns - self.trace.arrival_ns) / 1e6, np.nan)

    def latency_percentile(self, share: float) -> float:
        """Of the answered ones, in ms; NaN if there are none."""
        latency = self.latency_ms[~np.isnan(self.latency_ms)]
        return float(np.percentile(latency, share)) if len(latency) else float("nan")


class Machine:
    """One trace, one policy, N workers. `play` plays it to the end and beyond the horizon, until nobody waits."""

    def __init__(
        self, trace: Trace, law: Law, policy: Policy, *, worker_count: int = 1, noise: Noise | None = None
    ) -> None:
        self.trace = trace
        self.law = law
        self.worker_count = worker_count
        # Lists: one element of an array costs five times as much as one of a list.
        self.arrival_ns: list[int] = trace.arrival_ns.tolist()
        self.deadline_ns: list[int] = trace.deadline_ns.tolist()
        self.priority: list[int] = trace.priority.tolist()
        self.model: list[int] = trace.model.tolist()
        self.now_ns = START_NS
        self._policy = policy
        self.noise = noise
        self._outcome = [_COMING] * len(trace)
        self._ended_ns = [0] * len(trace)
        self._with: list[Run | None] = [None] * len(trace)
        self._ran = bytearray(len(trace))
        self._held: list[deque[Run]] = [deque() for _ in range(worker_count)]
        self._busy_until_ns = [START_NS] * worker_count
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._live_count = 0
        self._busy_ns = self._batch_count = self._image_count = 0

    # -- for policies --------------------------------------------------------------------------------------------

    def run(
        self, worker: int, requests: list[int], size: int, *, latest_start_ns: int = NEVER_NS, number: int = 0
    ) -> None:
        """Hand a worker a batch of accepted requests, to be run at `size` (padding up costs what `size` costs)."""
        run = Run(requests, size, latest_start_ns, number)
        held = self._held[worker]
        assert len(held) < BATCHES_MAX, f"worker {worker} is given a third batch"
        assert 0 < len(requests) <= size, f"{len(requests)} requests in a batch of {size}"
        for request in requests:
            assert self._outcome[request] is _ACCEPTED, f"request {request} runs, but is {self._outcome[request].name}"
            assert self._with[request] is None, f"request {request} is in two batches"
            self._with[request] = run
        held.append(run)
        if len(held) == 1:
            self._start(worker)

    def answer(self, request: int) -> None:
        """It was run, and its client has the answer now."""
        assert self._ran[request], f"request {request} is answered before it was run"
        self._end(request, _ON_TIME if self.now_ns <= self.deadline_ns[request] else _LATE)

    def give_up(self, request: int) -> None:
        """An accepted request gets a refusal after all."""
        free_ns = min(
            until if held else self.now_ns for held, until in zip(self._held, self._busy_until_ns, strict=True)
        )
        possible = free_ns + self.law.time_ns(1) <= self.deadline_ns[request]
        self._end(request, _DROPPED if possible else _EXPIRED)

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        """Something of the policy's own world, such as a decoder; `decide` is called behind it."""
        self._sequence += 1
        heapq.heappush(self._events, (self.now_ns + delay_ns, self._sequence, action))

    # -- the loop ------------------------------------------------------------------------------------------------

    def play(self, *, warmup_s: float = 0.0) -> Played:
        """To the last answer. At one instant, batches end first, then requests come, then the policy decides."""
        events, policy, arrival_ns = self._events, self._policy, [*self.arrival_ns, NEVER_NS]
        policy.begin(self)
        wake_ns = policy.decide(self.now_ns) or NEVER_NS
        place, count = 0, len(arrival_ns) - 1
        while place < count or self._live_count:
            event_ns = events[0][0] if events else NEVER_NS
            now = min(event_ns, arrival_ns[place], wake_ns)
            assert now < NEVER_NS, f"{self._live_count} requests wait for ever"
            self.now_ns = now = max(now, self.now_ns)
            due = wake_ns <= now
            while events and events[0][0] <= now:
                heapq.heappop(events)[2]()
                due = True
            while arrival_ns[place] <= now:
                due |= self._arrive(place, now)
                place += 1
            if due:
                wake = policy.decide(now)
                wake_ns = NEVER_NS if wake is None else max(wake, now + 1)
        return self._played(warmup_s)

    def _arrive(self, request: int, now_ns: int) -> bool:
        self._live_count += 1
        self._outcome[request] = _ACCEPTED
        if self._policy.offer(request, now_ns):
            return True
        self._end(request, _REFUSED)
        return False

    def _start(self, worker: int) -> None:
        """The worker turns to its first batch; one that is too late is answered at once."""
        run = self._held[worker][0]
        ran = self.now_ns <= run.latest_start_ns
        spent_ns = 0
        if ran:
            spent_ns = self.law.time_ns(run.size)
            if self.noise is not None:
                spent_ns = int(spent_ns * self.noise.factor())
            self._busy_ns += max(0, min(spent_ns, self.trace.end_ns - self.now_ns))
            self._batch_count += 1
            self._image_count += len(run.requests)
        self._busy_until_ns[worker] = self.now_ns + spent_ns
        self.after(spent_ns, lambda: self._done(worker, ran=ran))

    def _done(self, worker: int, *, ran: bool) -> None:
        run = self._held[worker].popleft()
        for request in run.requests:
            self._with[request] = None
            self._ran[request] |= ran
        if self._held[worker]:
            self._start(worker)
        self._policy.batch_done(worker, run, ran=ran, now_ns=self.now_ns)

    def _end(self, request: int, outcome: Outcome) -> None:
        assert self._outcome[request] is _ACCEPTED, f"request {request} ends twice: {self._outcome[request].name}"
        self._outcome[request] = outcome
        self._ended_ns[request] = self.now_ns
        self._live_count -= 1

    def _played(self, warmup_s: float) -> Played:
        outcome = np.array(self._outcome, np.uint8)
        assert not np.isin(outcome, (_COMING, _ACCEPTED)).any()
        return Played(
            self.trace,
            outcome,
            np.array(self._ended_ns, np.int64),
            self.law.capacity(self.worker_count),
            warmup_s,
            self._busy_ns / (self.worker_count * self.trace.seconds * 1e9),
            self._image_count / max(1, self._batch_count),
        )
