"""Gives workers their batches, the soonest free worker first, the model with the most urgent head first.

The plan keeps every promise if batches run in its order. Better orders (real time before the batch class, what is
decoded before what is not, room filled up) are taken where the plan still holds afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.scheduling import batcher, placement
from gateway.scheduling.ticket import Batch, RunBatch, Seal, Stage
from shm.arena import SlotState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.scheduling.line import Line
    from gateway.scheduling.placement import WorkerState
    from gateway.scheduling.plan import Plan
    from gateway.scheduling.profile import Profile
    from gateway.scheduling.ticket import Ticket

    Choice = tuple[tuple[bool, int], Line, Seal]
    """A batch that may be closed: its place in the order of urgency, its line, and the reason."""

# Python 3.11 looks an enum's member up in 77 ns, a module's name in 7; a ticket takes forty of them.
_RUNNING = Stage.RUNNING
_SLOT_RUNNING = SlotState.RUNNING

HOLD_NS = 2_000_000
"""A batch that was held back for the sake of others is looked at again after this, if nothing happens before."""


class Dispatcher:
    """`busy`: the lines of which images wait, by index. `on_late` is called with each ticket that can no longer be
    answered in time; it takes it out of its line.
    """

    __slots__ = ("_busy", "_number", "_on_late", "_plan", "_workers", "wake_ns")

    def __init__(
        self,
        busy: Sequence[Line],
        workers: Sequence[WorkerState],
        plan: Plan,
        on_late: Callable[[Ticket], None],
    ) -> None:
        self._busy = busy
        self._workers = workers
        self._plan = plan
        self._on_late = on_late
        self._number = 0
        self.wake_ns: int | None = None
        """When a window ends, a worker may be staged, or a batch can be held back no longer; as of `dispatch`."""

    def dispatch(self, now_ns: int) -> list[RunBatch]:
        """Close as many batches as workers can take."""
        self.wake_ns = None
        sent: list[RunBatch] = []
        while (run := self._next(now_ns)) is not None:
            sent.append(run)
        return sent

    def _next(self, now_ns: int) -> RunBatch | None:
        suspects = waiting = False
        for line in self._busy:
            if line.suspects:
                suspects = True
            elif line.ready or line.ready_batch:
                waiting = True
        if not suspects and not waiting:
            return None
        for worker in placement.takers(self._workers):
            if suspects:
                if (run := self._next_suspect(worker, now_ns)) is not None:
                    return run
                if worker.batches and any(line.suspects for line in self._busy if line.index in worker.profiles):
                    continue  # with a batch staged it would never be idle
            run = self._next_for(worker, now_ns)
            if run is not None:
                return run
        return None

    def _next_suspect(self, worker: WorkerState, now_ns: int) -> RunBatch | None:
        """An idle worker takes whoever was there when another died, alone, before anybody else."""
        if worker.batches:
            return None
        for line in tuple(self._busy):
            profile = worker.profiles.get(line.index)
            while profile is not None and (ticket := line.suspects.peek()) is not None:
                start_ns = _start_ns(worker, profile, profile.sizes[0], now_ns)
                if start_ns + profile.least_ns <= ticket.deadline_ns:
                    line.suspects.pop()
                    return self._send(worker, line, [ticket], profile.sizes[0], Seal.SUSPECT, now_ns)
                if self._another_could(line, ticket, now_ns):
                    break
                self._on_late(ticket)
        return None

    def _next_for(self, worker: WorkerState, now_ns: int) -> RunBatch | None:
        """Close one batch for `worker` if its state and some model's line allow it."""
        staging_ns = self._staging_from_ns(worker) if worker.batches else 0
        early = now_ns < staging_ns
        if early and worker.batches[0].expected_ns >= placement.STAGE_WORTH_NS:
            self._wake(staging_ns)
            return None
        choices = self._choices(worker, staging_ns, now_ns)
        for _, line, seal in choices:
            run = self._close(worker, line, seal, now_ns)
            if run is not None:
                return run
        return self._run_anyway(worker, choices, now_ns) if choices and not early else None

    def _staging_from_ns(self, worker: WorkerState) -> int:
        """From when on a busy worker may be given any second batch."""
        leads_ns = [line.lead_ns for line in self._busy if line.ready_count and line.index in worker.profiles]
        return placement.staging_from_ns(worker, max(leads_ns, default=0))

    def _choices(self, worker: WorkerState, staging_ns: int, now_ns: int) -> list[Choice]:
        """The lines of which a batch may be closed now, the most urgent first.

        Before `staging_ns` the worker is still busy, and only a full batch may wait in its own queue.
        """
        early = now_ns < staging_ns
        choices: list[Choice] = []
        for line in tuple(self._busy):  # whose last image is late is busy no more
            profile = worker.profiles.get(line.index)
            if profile is None or not line.ready_count:
                continue
            start_ns = _start_ns(worker, profile, profile.sizes[0], now_ns)
            while (
                not early
                and (late := batcher.late_head(line, profile, start_ns)) is not None
                and not self._another_could(line, late, now_ns)
            ):
                self._on_late(late)
            decision = batcher.decide(line, now_ns)
            if early and (decision is not Seal.FULL or batcher.late_head(line, profile, start_ns) is not None):
                # Not yet: a better batch may come, and the late head may still find another worker.
                self._wake(staging_ns)
                continue
            if isinstance(decision, int):
                decision = self._wait(line, decision, now_ns)
            if decision is not None:
                head = line.ready.peek() or line.ready_batch.peek()
                assert head is not None
                choices.append(((not line.ready, min(head.due_ns, line.slotless_due_ns)), line, decision))
        choices.sort(key=lambda choice: choice[0])
        return choices

    def _another_could(self, line: Line, ticket: Ticket, now_ns: int) -> bool:
        """Whether some worker could still answer a ticket in time, at its quickest."""
        for worker in self._workers:
            if worker.ready and (profile := worker.profiles.get(line.index)) is not None:
                start_ns = max(now_ns + profile.leads_ns[profile.sizes[0]], worker.free_at_ns)
                if start_ns + profile.least_ns <= ticket.deadline_ns:
                    return True
        return False

    def _close(self, worker: WorkerState, line: Line, seal: Seal, now_ns: int) -> RunBatch | None:
        """Make up a batch in the first way that keeps every promise; None when there is none."""
        profile = worker.profiles[line.index]
        free_ns = worker.free_at_ns if worker.batches else now_ns
        for way in batcher.WAYS:
            tickets, size = batcher.take(line, profile, free_ns, way, now_ns)
            start_ns = _start_ns(worker, profile, size, now_ns)
            if tickets and start_ns + profile.least_ns > tickets[0].deadline_ns:
                batcher.put_back(line, tickets)
                return None  # another one could do it in time
            if tickets and self._keeps_promises(worker, line, tickets, start_ns + profile.times_ns[size], now_ns):
                return self._send(worker, line, tickets, size, seal, now_ns)
            batcher.put_back(line, tickets)
        return None

    def _keeps_promises(self, worker: WorkerState, line: Line, tickets: list[Ticket], end_ns: int, now_ns: int) -> bool:
        """Whether the plan holds for everybody else once these run on `worker` until `end_ns`."""
        filled = any(ticket.priority for ticket in tickets)
        if not filled and self._in_order(line, tickets):
            return True
        for ticket in tickets:
            line.forget(ticket)
        free_at_ns, worker.free_at_ns = worker.free_at_ns, end_ns
        self._plan.changed()
        kept = self._plan.slack_ns(now_ns, line) >= 0 and not (filled and self._plan.crowds(now_ns, line))
        worker.free_at_ns = free_at_ns
        self._plan.changed()
        for ticket in tickets:
            line.promise(ticket)
        return kept

    def _in_order(self, line: Line, tickets: list[Ticket]) -> bool:
        """Whether these are just what the plan runs next."""
        count = len(tickets)
        if sum(len(other.dues) for other in self._busy) == count:
            return True
        if count < line.pace.size or any(other is not line for other in self._busy):
            return False
        return [ticket.due_ns for ticket in tickets] == line.dues[:count]

    def _run_anyway(self, worker: WorkerState, choices: list[Choice], now_ns: int) -> RunBatch | None:
        """No batch keeps every promise: hold it back while that may help, else run what is due first."""
        slack_ns = self._plan.slack_ns(now_ns, choices[0][1])
        if slack_ns > 0:
            self._wake(now_ns + min(slack_ns, HOLD_NS))
            return None
        _, line, seal = min(choices, key=lambda choice: batcher.first(choice[1]).due_ns)
        profile = worker.profiles[line.index]
        free_ns = worker.free_at_ns if worker.batches else now_ns
        tickets, size = batcher.take(line, profile, free_ns, batcher.WAYS[-1], now_ns)
        start_ns = _start_ns(worker, profile, size, now_ns)
        assert tickets  # `take` tries the first one, whatever is expected
        if start_ns + profile.least_ns > tickets[0].deadline_ns:
            batcher.put_back(line, tickets)
            return None
        return self._send(worker, line, tickets, size, seal, now_ns)

    def _wait(self, line: Line, until_ns: int, now_ns: int) -> Seal | None:
        """None: a window stays open, until then or until a promise could not be kept any more; the timer is set."""
        slack_ns = self._plan.slack_ns(now_ns, line) - 2 * batcher.TIMER_NS
        if slack_ns <= 0:
            return Seal.DEADLINE
        self._wake(min(until_ns, now_ns + slack_ns))
        return None

    def _send(
        self,
        worker: WorkerState,
        line: Line,
        tickets: list[Ticket],
        size: int,
        seal: Seal,
        now_ns: int,
    ) -> RunBatch:
        profile = worker.profiles[line.index]
        took_ns, start_ns = profile.times_ns[size], _start_ns(worker, profile, size, now_ns)
        # What is staged is gathered while the batch before it runs. An idle worker takes that time as well.
        lead_ns = 0 if worker.batches else profile.leads_ns[size]
        self._number += 1
        latest_ns = min(ticket.deadline_ns for ticket in tickets) - took_ns - lead_ns
        if latest_ns < start_ns - lead_ns:
            latest_ns += took_ns - profile.least_ns  # one that is expected to be late, and may be lucky
        batch = Batch(self._number, line, tickets, size, seal, latest_ns)
        batch.expected_ns = took_ns
        batch.ready_ns = now_ns + profile.leads_ns[size]
        if not worker.batches:
            batch.started_ns = now_ns
        worker.batches.append(batch)
        worker.free_at_ns = start_ns + took_ns
        self._plan.changed()
        move = line.arena.move
        for ticket in tickets:
            line.forget(ticket)
            ticket.stage = _RUNNING
            ticket.run_ns = now_ns
            ticket.runs += 1
            move(ticket.slot, _SLOT_RUNNING)
        line.after_seal()
        return RunBatch(worker.index, batch)

    def _wake(self, at_ns: int) -> None:
        if self.wake_ns is None or at_ns < self.wake_ns:
            self.wake_ns = at_ns


def _start_ns(worker: WorkerState, profile: Profile, size: int, now_ns: int) -> int:
    """When the device begins with a batch of `size` that is sent now, behind what the worker has."""
    ready_ns = now_ns + profile.leads_ns[size]
    return max(ready_ns, worker.free_at_ns) if worker.batches else ready_ns
