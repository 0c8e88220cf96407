"""Whether images are accepted: the one place that says yes, or why not. A yes is a promise; the plan keeps it.

Before the body is read a request is checked as one image; once its images are known they are one decision. Nothing is
reserved in between: a slow upload would be a cheap way to lock others out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.scheduling import refusals
from gateway.scheduling.shares import Rivals
from gateway.scheduling.ticket import Priority

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from gateway import errors
    from gateway.scheduling.feeder import Feeder
    from gateway.scheduling.line import Line
    from gateway.scheduling.placement import WorkerState
    from gateway.scheduling.plan import Plan
    from gateway.scheduling.profile import Profile

REVIEW_NS = 20_000_000
"""How often sizes, shares and margins follow what was measured, while there is traffic."""

BATCH_BACKLOG_SHARE = 0.25
"""Batch work is accepted while workers, on their own, would be done with all of it in this share of its time."""

_BATCH = Priority.BATCH


PASSED_NS = 1_000_000
"""How long a request that was checked at its headers is as good as checked, if nothing changes."""


class Promise(NamedTuple):
    """What an accepted image is promised, and what it was seen beside."""

    due_ns: int
    """When it is to be done: its deadline, less a margin."""
    ready_ns: int
    """When it is expected to be decoded."""
    state: tuple[int, ...]
    cost_ns: int
    until_ns: int


class Admission:
    """The decision, and the review that keeps its figures current."""

    __slots__ = ("_feeder", "_lines", "_passed", "_plan", "_workers", "draining")

    def __init__(self, lines: Sequence[Line], workers: Sequence[WorkerState], feeder: Feeder, plan: Plan) -> None:
        self._lines = lines
        self._workers = workers
        self._feeder = feeder
        self._plan = plan
        self._passed = Promise(0, 0, (), 0, 0)
        self.draining = False

    def check(
        self,
        line: Line,
        deadline_ns: int,
        count: int,
        priority: int,
        cost_ns: int,
        now_ns: int,
        *,
        client: Hashable = None,
    ) -> Promise:
        """What `count` images are promised, if they are accepted.

        `cost_ns`: how long decoding all of them is expected to take one decoder. `client`: whose they are; a refusal
        for want of time gives it a date.
        Raises: Draining, ModelNotReady, DeadlineExceeded, Overloaded, PayloadTooLarge.
        """
        passed = self._passed
        if (
            count == 1
            and passed.cost_ns >= cost_ns
            and passed.until_ns >= now_ns
            and passed.state == (line.index, deadline_ns, priority, len(line.dues), self._plan.version, self.draining)
        ):
            return passed  # precheck has just looked, and nothing has changed since
        if priority == _BATCH:
            client = None  # Dates are for the real-time class.
        profile = self._serving(line, now_ns)
        if now_ns >= line.review_ns:
            self.review(now_ns, line)
        budget_ns = deadline_ns - now_ns
        margin_ns = line.pace.margin_ns(budget_ns)
        needed_ns = cost_ns // count + profile.leads_ns[profile.sizes[0]] + profile.by_count[1] + margin_ns
        self._check_bounds(line, count, budget_ns, needed_ns, priority, now_ns)
        due_ns = deadline_ns - margin_ns
        ready_ns = now_ns + self._feeder.expected_ns(cost_ns, count, now_ns)
        lateness_ns = self._lateness_ns(line, due_ns, count, ready_ns, now_ns, client)
        if lateness_ns > 0:
            if client is not None:
                rate = line.worker_count / line.batch_ns * line.pace.size
                lateness_ns = line.returns.invite(client, count, lateness_ns, rate, now_ns)
            raise self._refused(line, priority, now_ns, refusals.no_time(line, lateness_ns))
        state = line.index, deadline_ns, priority, len(line.dues), self._plan.version, self.draining
        self._passed = Promise(due_ns, ready_ns, state, cost_ns, now_ns + PASSED_NS)
        return self._passed

    def _check_bounds(self, line: Line, count: int, budget_ns: int, needed_ns: int, priority: int, now_ns: int) -> None:
        """What can be told without the plan: `needed_ns` is what an idle server would need for one image.

        Raises: DeadlineExceeded, Overloaded, PayloadTooLarge.
        """
        if count > line.queue_max:
            raise refusals.never_fits(line, count)
        if budget_ns <= 0:
            raise refusals.too_late()
        if needed_ns > budget_ns:
            raise refusals.impossible(line, needed_ns)
        if len(line.dues) + count > line.queue_max:
            raise self._refused(line, priority, now_ns, refusals.full(line))
        if priority == _BATCH:
            self._check_batch(line, budget_ns, count, now_ns)
        elif (waiting := len(line.dues) - line.batch_count) > 0 and waiting + count > line.pace.quota:
            raise self._refused(line, priority, now_ns, refusals.over_share(line))

    def _lateness_ns(self, line: Line, due_ns: int, count: int, ready_ns: int, now_ns: int, client: Hashable) -> int:
        """As `Plan.lateness_ns`; places that are kept for those who were told to come back are for them only."""
        plan = self._plan
        if not line.returns:
            return plan.lateness_ns(line, due_ns, count, ready_ns, now_ns)
        if client is not None and line.returns.is_due(client, now_ns):
            return plan.lateness_ns(line, due_ns, count, ready_ns, now_ns, growing=False)
        lateness_ns = plan.lateness_ns(line, due_ns, count, ready_ns, now_ns)
        size = line.pace.size
        reserve = line.returns.reserve(size, due_ns, now_ns)
        if lateness_ns > 0 or not reserve:
            return lateness_ns
        if plan.lateness_ns(line, due_ns, count + size, ready_ns, now_ns) <= 0:
            return lateness_ns  # whoever comes on a date finds room for a batch more
        assert line.profile is not None
        most = line.profile.size_below(size - reserve)
        if not most:
            return plan.lateness_ns(line, due_ns, count + reserve, ready_ns, now_ns)
        # Batches of a warmed size, less than whole: anything between would be split, or padded.
        return line.batch_ns if (len(line.dues) + count - 1) % size >= most else lateness_ns

    def _serving(self, line: Line, now_ns: int) -> Profile:
        """What to expect of the line's batches. Raises Draining, ModelNotReady."""
        if self.draining:
            raise refusals.draining()
        if not line.serving or line.profile is None:
            # With a Retry-After while a worker is loading, or will be started; not when trying again would be no use.
            those = [worker for worker in self._workers if line.index in worker.models and not worker.retiring]
            if any(not worker.came_up and not worker.is_hopeless for worker in those):
                raise refusals.loading(line)
            probes_ns = [worker.spawn_at_ns or now_ns for worker in those if worker.restarts.failing]
            if probes_ns:
                raise refusals.failing(line, min(probes_ns) - now_ns)
            raise refusals.not_served(line)
        return line.profile

    def _check_batch(self, line: Line, budget_ns: int, count: int, now_ns: int) -> None:
        """The batch class gets what room the real-time class leaves. Raises Overloaded."""
        if any(other.pace.is_refusing(now_ns) for other in self._plan.company(line)):
            raise refusals.real_time_first(line)
        if self._plan.crowds(now_ns, line):
            raise refusals.real_time_first(line)
        work_ns = (line.batch_count + count) * line.batch_ns // line.pace.size
        if work_ns > BATCH_BACKLOG_SHARE * budget_ns * line.worker_count:
            raise refusals.batch_full(line, work_ns)

    def offered(self, line: Line, count: int, priority: int, now_ns: int) -> None:
        """Images were asked for, whatever comes of it; once for each. The batch class takes what is left, so it does
        not count.
        """
        if priority != _BATCH and line.pace.offered(count, now_ns) and len(self._lines) > 1:
            self.review(now_ns, line)  # one more model that shares the workers

    @staticmethod
    def _refused(line: Line, priority: int, now_ns: int, refusal: errors.Refusal) -> errors.Refusal:
        if priority != _BATCH:
            line.pace.refused(now_ns)
        return refusal

    # -- review --------------------------------------------------------------------------------------------------

    def review(self, now_ns: int, asked: Line | None = None) -> None:
        """Let shares, batch sizes and inflation follow what was measured: of every line; with `asked` only of that one
        and of those that have, or lately had, something to do. The others are looked at when somebody asks for them.
        """
        lines = self._lines
        if asked is not None:
            lines = [line for line in lines if line is asked or line.dues or line.pace.is_active(now_ns)]
        for line in lines:
            line.review_ns = now_ns + REVIEW_NS
            self._look(line)
        active = {line.index for line in lines if self._is_active(line, now_ns)}
        companies: dict[int, Rivals] = {}
        for line in lines:
            profile = line.profile
            if profile is None:
                continue
            line.pace.learn(now_ns)
            for worker in self._workers:
                if line.index in worker.profiles:
                    worker.profiles[line.index].refresh(now_ns, line.pace.inflation)
            # Whoever has workers of its own takes nothing from the others.
            rivals = companies.get(line.index)
            if rivals is None:
                company = self._plan.company(line)
                rivals = Rivals((other for other in company if other.index in active), now_ns)
                companies.update((other.index, rivals) for other in company)
            size = line.pace.plan(
                profile,
                share=rivals.share(line),
                active_count=len(rivals),
                taken_ns=rivals.taken_ns(line, line.worker_count * line.deadline_ns),
                longest_ns=rivals.longest_ns(line),
                worker_count=line.worker_count,
                now_ns=now_ns,
            )
            self._resize(line, size, now_ns)
        self._plan.changed()

    @staticmethod
    def _is_active(line: Line, now_ns: int) -> bool:
        """Whether a line is asked for, and is served."""
        return line.serving and line.profile is not None and line.pace.is_active(now_ns)

    def _resize(self, line: Line, size: int, now_ns: int) -> None:
        """Plan with another batch size, unless that breaks a promise: then later."""
        before = line.pace.size
        if size == before:
            return
        slack_ns = self._plan.slack_ns(now_ns, line) if line.dues else 0
        line.pace.size = size
        self._plan.changed()
        if line.dues and self._plan.slack_ns(now_ns, line) < min(0, slack_ns):
            line.pace.size = before
            self._plan.changed()

    def _look(self, line: Line) -> None:
        """Which workers serve a line, and what to expect of its batches: of unlike workers, the slowest one's."""
        able = [worker for worker in self._workers if worker.is_expected and line.index in worker.profiles]
        if able:
            line.worker_count = len(able)
            line.profile = max((w.profiles[line.index] for w in able), key=lambda profile: profile.by_count[-1])
            leads_ns = [worker.profiles[line.index].leads_ns for worker in able]
            line.leads_ns = max(leads_ns, key=lambda leads_ns: max(leads_ns.values()))
            line.alike = all(worker.profiles[line.index] is line.profile for worker in able)
