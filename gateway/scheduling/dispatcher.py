"""Gives workers their batches, the soonest free worker first, the model with the most urgent head first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.scheduling import batcher, placement
from gateway.scheduling.ticket import Batch, RunBatch, Seal
from shm.arena import SlotState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.scheduling.line import Line
    from gateway.scheduling.placement import WorkerState
    from gateway.scheduling.ticket import Ticket

_SLOT_RUNNING = SlotState.RUNNING


class Dispatcher:
    """`on_late` is called with each ticket that can no longer be answered in time; it takes it out of its line."""

    __slots__ = ("_lines", "_number", "_on_late", "_workers", "wake_ns")

    def __init__(
        self, lines: Sequence[Line], workers: Sequence[WorkerState], on_late: Callable[[Ticket], None]
    ) -> None:
        self._lines = lines
        self._workers = workers
        self._on_late = on_late
        self._number = 0
        self.wake_ns: int | None = None
        """When a window ends or a worker may be staged; as of the last `dispatch`."""

    def dispatch(self, now_ns: int) -> list[RunBatch]:
        """Close as many batches as workers can take."""
        self.wake_ns = None
        sent: list[RunBatch] = []
        while (run := self._next(now_ns)) is not None:
            sent.append(run)
        return sent

    def _next(self, now_ns: int) -> RunBatch | None:
        if not any(line.ready for line in self._lines):
            return None
        for worker in placement.takers(self._workers):
            run = self._next_for(worker, now_ns)
            if run is not None:
                return run
        return None

    def _next_for(self, worker: WorkerState, now_ns: int) -> RunBatch | None:
        """Close one batch for `worker` if its state and some model's line allow it."""
        start_ns = max(now_ns, worker.free_at_ns) if worker.batches else now_ns
        early = bool(worker.batches) and now_ns < placement.staging_from_ns(worker)
        best: tuple[int, Line, Seal] | None = None
        for line in self._lines:
            profile = worker.profiles.get(line.index)
            if profile is None or not line.ready:
                continue
            if not early:
                while (late := batcher.late_head(line, profile, start_ns)) is not None:
                    self._on_late(late)
            decision = batcher.decide(line, profile, start_ns, now_ns)
            if decision is None:
                continue
            if isinstance(decision, int):
                self._wake(decision)
            elif early and (decision is not Seal.FULL or batcher.late_head(line, profile, start_ns) is not None):
                # Not yet: a better batch may come, and the late head may still find another worker.
                self._wake(placement.staging_from_ns(worker))
            else:
                head = line.ready.peek()
                assert head is not None
                if best is None or head.key < best[0]:
                    best = head.key, line, decision
        if best is None:
            return None
        _, line, seal = best
        return self._close(worker, line, seal, start_ns, now_ns)

    def _close(self, worker: WorkerState, line: Line, seal: Seal, start_ns: int, now_ns: int) -> RunBatch:
        profile = worker.profiles[line.index]
        tickets, size, latest_ns = batcher.take(line, profile, start_ns)
        self._number += 1
        batch = Batch(self._number, line, tickets, size, seal, latest_ns)
        batch.expected_ns = profile.times_ns[size]
        if not worker.batches:
            batch.started_ns = now_ns
        worker.batches.append(batch)
        worker.free_at_ns = start_ns + batch.expected_ns
        line.held_count -= len(tickets)
        move = line.arena.move
        for ticket in tickets:
            ticket.run_ns = now_ns
            ticket.runs += 1
            move(ticket.slot, _SLOT_RUNNING)
        return RunBatch(worker.index, batch)

    def _wake(self, at_ns: int) -> None:
        if self.wake_ns is None or at_ns < self.wake_ns:
            self.wake_ns = at_ns
