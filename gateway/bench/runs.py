"""One run of a load on a server, with what was seen of both ends meanwhile; and the search for the largest rate."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gateway.bench import inside, mlperf, processes, target
from gateway.bench.generator import Own, Watch
from gateway.bench.target import Unanswered
from gateway.bench.wish import (
    AT_A_RATE,
    CONNECTIONS_CLOSED,
    CONNECTIONS_OPEN,
    ONE_AT_A_TIME,
    RATE_MAX,
    SCENARIOS,
    SECONDS,
    Load,
)
from gateway.errors import InvalidSettings
from gateway.loadtest import openloop, schedules
from gateway.loadtest.closed import Extent, circulate
from gateway.loadtest.shots import OK, UNSENT, WRONG, Shots
from gateway.tuning.search import RateSearch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gateway.bench.expectation import Expectation
    from gateway.bench.inside import Inside
    from gateway.bench.processes import Process
    from gateway.bench.target import Target
    from gateway.bench.wish import Wish

    Progress = Callable[[str, float, int, int, int], None]
    """(what is done, seconds that it takes, requests sent, ended, failed)."""

PROBE_SHARE = 0.25
PROBE_S_MIN, PROBE_S_MAX = 1.0, 30.0
"""A probe of the search takes this share of the run that confirms it, within these bounds; no longer than that run."""

GLANCE_S = 1.0
"""A closed loop before the search, to know where to begin."""

KEPT_SIZE = 300
"""Bytes of an answer that was none, for the report."""

_SUCCESSES = range(200, 300)


class Judge:
    """Says what an answer counts as, and keeps the first body of each kind of failure. Any 2xx is OK."""

    def __init__(self, expectations: Sequence[Expectation]) -> None:
        self._expectations = expectations
        self.failed_count = 0
        self.kept: dict[int, bytes] = {}

    def __call__(self, status: int, body: bytes) -> int:
        """The status that counts."""
        counted = status
        if status in _SUCCESSES:
            counted = OK if all(expected.met(body) for expected in self._expectations) else WRONG
        if counted != OK:
            self.failed_count += 1
            self.kept.setdefault(counted, body[:KEPT_SIZE])
        return counted


class Traffic(NamedTuple):
    """What is sent: whole requests, in turn. `due_s`: of a trace, else None. `images`: in each request."""

    requests: list[bytes]
    images: int
    sizes: list[int]
    due_s: NDArray[np.float64] | None


class Outcome(NamedTuple):
    """One run. `length_s`: to its end or its last answer, whichever is later. `cpu_ns`: of the server's processes.

    `rate`: that was asked for, nan where none was. `kept`: the first body of each kind of failure.
    """

    shots: Shots
    rate: float
    length_s: float
    own: Own
    cpu_ns: dict[Process, int]
    inside: Inside | None
    kept: dict[int, bytes]

    def latency_ms(self) -> NDArray[np.float64]:
        """Of every request, from when it was due; inf for one that failed."""
        latency = (self.shots.answered - self.shots.due) * 1e3
        return np.where(self.shots.status == OK, latency, math.inf)

    def percentile_ms(self, share: float) -> float:
        """The latency that `share` in 100 of all requests kept, those that failed counted as never answered."""
        found = np.sort(self.latency_ms())
        return float(found[min(math.ceil(share / 100 * len(found)), len(found)) - 1]) if len(found) else math.nan

    @property
    def limits(self) -> list[str]:
        """In sentences, how the generator itself was the limit."""
        return self.own.limits(self.shots.percentile_ms(50, OK), self.shots.count(UNSENT))


class Probe(NamedTuple):
    """One rate that was tried in a search."""

    rate: float
    due_count: int
    tail_ms: float
    failed_share: float
    met: bool
    confirms: bool


class Runner:
    """Runs loads on one server. `progress` is told what happens."""

    def __init__(
        self, wish: Wish, server: Target, traffic: Traffic, expectations: Sequence[Expectation], progress: Progress
    ) -> None:
        self._wish = wish
        self._server = server
        self._traffic = traffic
        self._expectations = expectations
        self._progress = progress
        self._local = processes.is_local(server.address.host)

    async def warm_up(self) -> None:
        """Load it in a closed loop, as many connections as later, without looking. Raises Unanswered."""
        if self._wish.warmup_s:
            connections = 1 if self._wish.load in ONE_AT_A_TIME else min(self._connections(), CONNECTIONS_CLOSED)
            await self._closed("warm-up", Judge(()), connections, Extent(self._wish.warmup_s))

    async def run(self, what: str, rate: float, seconds: float) -> Outcome:
        """One run of the load at a rate (nan where it has none). Raises InvalidSettings, Unanswered."""
        before = await self._look()
        watch = Watch(asyncio.get_running_loop())
        judge = Judge(self._expectations)
        lateness_p99_ms = 0.0
        try:
            shots = await self._load(what, judge, rate, seconds)
            # Offline, requests wait for connections by design; a closed loop's are due when they can be sent.
            if self._wish.load is not Load.OFFLINE and shots.count(UNSENT) < len(shots):
                lateness_p99_ms = shots.lateness_ms(99)
        finally:
            own = watch.end(lateness_p99_ms)
        after = await self._look()
        last = float(np.nanmax(shots.answered)) if np.isfinite(shots.answered).any() else 0.0
        length = last if self._traffic.due_s is not None or self._wish.load not in AT_A_RATE else max(last, seconds)
        counted = inside.between(before[1], after[1], self._server.model) if self._server.penstock else None
        cpu_ns = {process: spent - before[0].get(process, 0) for process, spent in after[0].items()}
        return Outcome(shots, rate, length, own, cpu_ns, counted, judge.kept)

    async def search(self, seconds: float) -> tuple[list[Probe], Outcome]:
        """The probes, and the run of the last one: the confirmed rate, or one that failed.

        Raises: InvalidSettings, Unanswered.
        """
        glance_s = min(GLANCE_S, seconds)
        glance = await self._closed("a glance", Judge(()), CONNECTIONS_CLOSED, Extent(glance_s))
        good = glance.count(OK)
        if not good:
            status = next(iter(glance.counts()), 0)
            raise Unanswered(f"{self._server.address.base} answers nothing with success; the first says {status}")
        looked = RateSearch(max(good / glance_s / 2, 1.0), rate_max=RATE_MAX)
        probes: list[Probe] = []
        outcome: Outcome | None = None
        while (step := looked.next()) is not None:
            lasting = seconds if step.confirms else min(max(PROBE_SHARE * seconds, PROBE_S_MIN), PROBE_S_MAX, seconds)
            words = f"{'confirming' if step.confirms else 'trying'} {step.rate:,.0f}/s"
            outcome = await self.run(words, step.rate, lasting)
            met = self._meets(outcome, confirms=step.confirms)
            failed = 1 - outcome.shots.count(OK) / max(len(outcome.shots), 1)
            tail = outcome.percentile_ms(self._wish.percentile)
            probes.append(Probe(step.rate, len(outcome.shots), tail, failed, met, step.confirms))
            looked.note(met=met)
        assert outcome is not None
        return probes, outcome

    def seconds(self) -> float:
        """How long the run takes: what the user says, else what the load's rules say."""
        if self._wish.seconds is not None:
            return self._wish.seconds
        return mlperf.SECONDS_MIN * mlperf.SLACK if self._wish.load in SCENARIOS else SECONDS

    def _meets(self, outcome: Outcome, *, confirms: bool) -> bool:
        """Whether a rate is sustained. The server scenario's result has to be sure of it, as its rules say."""
        bound = self._wish.bound_ms or 0.0
        latency_ms = outcome.latency_ms()
        if confirms and self._wish.load is Load.SERVER:
            over = int(np.count_nonzero(latency_ms > bound))
            return len(latency_ms) > 0 and over <= mlperf.over_allowed(len(latency_ms), self._wish.percentile / 100)
        return outcome.percentile_ms(self._wish.percentile) <= bound

    def _connections(self) -> int:
        if self._wish.connections is not None:
            return self._wish.connections
        return CONNECTIONS_OPEN if self._wish.load in AT_A_RATE | {Load.TRACE} else CONNECTIONS_CLOSED

    async def _load(self, what: str, judge: Judge, rate: float, seconds: float) -> Shots:
        load = self._wish.load
        if load in ONE_AT_A_TIME:
            return await self._closed(what, judge, 1, Extent(seconds))
        if load is Load.CLOSED:
            return await self._closed(what, judge, self._connections(), Extent(seconds))
        if load is Load.OFFLINE:
            # Everything is due at the begin; connections take the next query when they are free.
            least = 0 if self._wish.seconds is not None else mlperf.OFFLINE_SAMPLES_MIN
            extent = Extent(seconds, count_min=math.ceil(least / self._traffic.images))
            shots = await self._closed(what, judge, self._connections(), extent)
            return Shots(np.zeros(len(shots)), shots.sent, shots.answered, shots.status, began_s=shots.began_s)
        try:
            due = self._due(rate, seconds)
        except ValueError as error:
            raise InvalidSettings(str(error)) from None
        return await self._open(what, judge, due, seconds)

    def _due(self, rate: float, seconds: float) -> NDArray[np.float64]:
        """Raises ValueError for more requests than one run may have."""
        if self._traffic.due_s is not None:
            return self._traffic.due_s
        if self._wish.load is Load.BURSTS:
            return schedules.bursts(rate, seconds, self._wish.burst_size, self._wish.seed)
        return schedules.poisson(rate, seconds, self._wish.seed)

    async def _closed(self, what: str, judge: Judge, connections: int, extent: Extent) -> Shots:
        try:
            return await circulate(
                self._server.address.host,
                self._server.address.port,
                self._traffic.requests,
                connections,
                extent,
                timeout_s=self._wish.timeout_s,
                judge=judge,
                progress=lambda sent, ended: self._progress(what, extent.seconds, sent, ended, judge.failed_count),
            )
        except OSError as error:
            raise Unanswered(f"no connection to {self._server.address.base}: {error.strerror or error}") from None

    async def _open(self, what: str, judge: Judge, due: NDArray[np.float64], seconds: float) -> Shots:
        most = self._connections()
        try:
            return await openloop.fire(
                self._server.address.host,
                self._server.address.port,
                self._traffic.requests,
                due,
                connections_max=most,
                connections_warm=min(most, CONNECTIONS_CLOSED),
                timeout_s=self._wish.timeout_s,
                judge=judge,
                progress=lambda sent, ended: self._progress(what, seconds, sent, ended, judge.failed_count),
            )
        except OSError as error:
            raise Unanswered(f"no connection to {self._server.address.base}: {error.strerror or error}") from None

    async def _look(self) -> tuple[dict[Process, int], inside.Samples]:
        """The server's CPU times and counters now. What cannot be had is empty."""
        page = None
        if self._server.penstock:
            try:
                page = await asyncio.to_thread(target.page, self._server.address, "/metrics")
            except Unanswered:
                page = None  # It is gone or full, which the requests say better.
        spent: dict[Process, int] = {}
        if self._local or self._wish.pids:
            for process in processes.find(self._server.address.port, self._wish.pids):
                cpu_ns = processes.cpu_ns(process.pid)
                if cpu_ns is not None:
                    spent[process] = cpu_ns
        return spent, inside.read(page or b"")
