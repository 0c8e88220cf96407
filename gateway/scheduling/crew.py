"""What workers say, and what their deaths mean: the core's inputs about workers, from birth to burial."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from gateway.scheduling import refusals
from gateway.scheduling.blame import Blame, Verdict
from gateway.scheduling.ledger import Ledger, free_slot
from gateway.scheduling.profile import Profile
from gateway.scheduling.restarts import State
from gateway.scheduling.ticket import Role, Stage
from shm.arena import SlotState
from shm.wire import ItemStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from gateway.scheduling.line import Line
    from gateway.scheduling.placement import WorkerState
    from gateway.scheduling.plan import Plan
    from gateway.scheduling.roster import Roster
    from gateway.scheduling.ticket import Batch, Ticket
    from gateway.scheduling.watch import Watch
    from shm.wire import ProfilePoint

# Python 3.11 looks an enum's member up in 77 ns, a module's name in 7; a ticket takes forty of them.
_QUEUED, _ENDED = Stage.QUEUED, Stage.ENDED
_SLOT_QUEUED = SlotState.QUEUED
_ITEM_OK, _ITEM_LATE, _ITEM_RAN_MAX = ItemStatus.OK, ItemStatus.LATE, ItemStatus.FAILED


class Crew:
    """The workers' side of the scheduler. `at` keeps its clock; `review` is called when a worker comes or goes."""

    __slots__ = ("_at", "_ledger", "_plan", "_review", "_roster", "_watch", "blame")

    def __init__(
        self,
        roster: Roster,
        ledger: Ledger,
        plan: Plan,
        watch: Watch,
        *,
        at: Callable[[int], int],
        review: Callable[[], None],
    ) -> None:
        self.blame = Blame()
        self._roster = roster
        self._ledger = ledger
        self._plan = plan
        self._watch = watch
        self._at = at
        self._review = review

    def worker(self, index: int) -> WorkerState:
        """One that was added and is not gone. Raises LookupError."""
        return self._roster.worker(index)

    def add_worker(
        self, seat: int, models: frozenset[int], now_ns: int, *, heir_of: WorkerState | None = None
    ) -> WorkerState:
        """One more worker on a seat, with these models; it is started at the next `advance`.

        `heir_of`: only once that worker is gone, which is to be retired next; what waits for their common models waits.
        """
        worker = self._roster.add_worker(seat, models, self._at(now_ns), heir_of)
        self._review()
        return worker

    def retire_worker(self, index: int, now_ns: int, finish: Collection[int] = ()) -> None:
        """Another one takes its place: it answers what it has, and what waits for the models `finish`; then it goes."""
        worker = self._roster.worker(index)
        if not worker.retiring:
            self._at(now_ns)
            self._roster.retire(worker, finish)
            self._review()

    def worker_building(self, index: int, model: int, now_ns: int) -> None:
        """A worker that is starting builds the engine of a model, or still does. Who does not say so for
        BUILD_SILENCE_NS is hung.
        """
        worker = self._roster.worker(index)
        if not worker.condemned:
            worker.builds(model, self._at(now_ns))
            self._watch.child_changed()

    def worker_loading(self, index: int, now_ns: int) -> None:
        """A worker that is starting loads a model, and builds nothing now."""
        worker = self._roster.worker(index)
        if not worker.condemned:
            worker.loads(self._at(now_ns))
            self._watch.child_changed()

    def worker_ready(
        self,
        index: int,
        profiles: Mapping[int, Sequence[ProfilePoint]],
        now_ns: int,
        *,
        kind: str = "",
        size_ends: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        """A worker has warmed these models (by index) and waits for batches. Workers of one `kind` of device are
        expected to take equally long. `size_ends`: by model, the smallest batch that did not fit in its memory.
        """
        worker = self._roster.worker(index)
        if worker.condemned:
            return
        now_ns = self._at(now_ns)
        if not worker.ready:
            worker.loads(now_ns)  # whatever it said last
            worker.move(State.READY)
        worker.was_ready = worker.came_up = True
        worker.kind = kind
        worker.free_at_ns = now_ns
        worker.start_ns = now_ns - worker.started_ns - worker.built_ns
        worker.restarts.ready(now_ns)
        alike = [other for other in self._roster.workers if other is not worker and other.ready and other.kind == kind]
        kept = worker.profiles if worker.retiring else profiles
        worker.profiles = {
            line.index: next((o.profiles[line.index] for o in alike if line.index in o.profiles), None)
            or Profile(profiles[line.index]).cut(line.size_end)
            for line in self._roster.lines
            if line.index in profiles and line.index in kept
        }
        for line in self._roster.lines:
            if line.index in size_ends:
                self._cut(line, size_ends[line.index])
        if worker.retiring:
            worker.move(State.DRAINING)
        self._review()

    def batch_done(self, index: int, number: int, statuses: Sequence[ItemStatus], now_ns: int) -> Batch | None:
        """A worker answered its first batch. None: it never held it, or the count is wrong, so it is broken."""
        now_ns = self._at(now_ns)
        worker = self._roster.worker(index)
        if not worker.batches or worker.batches[0].number != number or len(statuses) != len(worker.batches[0].tickets):
            return None
        batch = worker.batches.pop(0)
        first = statuses[0]
        if first <= _ITEM_RAN_MAX:
            # A device that overlaps batches begins behind the answer before this one, and once its pixels are there.
            took_ns = max(1, now_ns - max(batch.started_ns, batch.ready_ns))
            batch.line.pace.ran(batch.expected_ns, took_ns)
            profile = worker.profiles.get(batch.line.index)
            if profile is not None:
                profile.observe(batch.size, took_ns, now_ns)
            worker.worked = True
        asked = worker.interrupted_ns > 0
        worker.interrupted_ns = 0
        worker.free_at_ns = now_ns
        if worker.batches and not worker.condemned and first is not ItemStatus.DEVICE_LOST:
            staged = worker.batches[0]
            staged.started_ns = now_ns
            worker.free_at_ns = max(now_ns, staged.ready_ns) + staged.expected_ns
        self._plan.changed()
        if first > _ITEM_LATE:
            self._gave_up(worker, batch, first, now_ns, asked=asked)
            return batch
        for ticket, status in zip(batch.tickets, statuses, strict=True):
            ticket.done_ns = now_ns
            if ticket.stage is _ENDED:
                free_slot(ticket)
            elif status is _ITEM_OK:
                self._ledger.answer(ticket)
            elif status is _ITEM_LATE:
                # The batch was not run because its most urgent image would have been late. The others may still do.
                ticket.runs -= 1
                ticket.done_ns = 0
                self._requeue(ticket, now_ns)
            else:
                self._ledger.finish(ticket, refusals.failed(), returned=True)
        return batch

    def _gave_up(self, worker: WorkerState, batch: Batch, status: ItemStatus, now_ns: int, *, asked: bool) -> None:
        """A worker could not run a batch, for a reason that is not the model's own. `asked`: it was interrupted."""
        if status is ItemStatus.NO_MEMORY:
            self._did_not_fit(batch, now_ns)
            return
        if status is ItemStatus.INTERRUPTED and not asked:
            # The batch before this one was answered while the interrupt was on its way.
            self._not_run(batch, now_ns)
            return
        if status is ItemStatus.DEVICE_LOST and not worker.condemned:
            self._ledger.effects.append(self._watch.kill(Role.WORKER, worker, "lost its device", now_ns))
        self._strike(batch, now_ns, crashed=True)

    def _did_not_fit(self, batch: Batch, now_ns: int) -> None:
        """A batch was too large for the device's memory: never again such a one; its images run in smaller ones."""
        line = batch.line
        assert line.profile is not None
        smallest = batch.size <= line.profile.points[0].size
        if not smallest:
            self._cut(line, batch.size)
            self._review()
        for ticket in batch.tickets:
            if ticket.stage is _ENDED:
                free_slot(ticket)
            elif smallest:
                self._ledger.finish(ticket, refusals.no_device_memory(), returned=True)
            else:
                self._requeue(ticket, now_ns)

    def _cut(self, line: Line, size_end: int) -> None:
        """Batches of a line stay below this from now on, on whatever worker: plans count with one size for all."""
        line.size_end = min(size_end, line.size_end or size_end)
        for worker in self._roster.workers:
            if line.index in worker.profiles:
                worker.profiles[line.index].cut(line.size_end)
        if line.profile is not None:
            line.pace.cut(line.profile.cut(line.size_end).sizes[-1])

    def worker_lost(self, index: int, now_ns: int, *, guilty: bool = False) -> None:
        """A worker is dead and reaped: its batches run once more, elsewhere or on its successor. `guilty`: it crashed
        by itself, rather than by a kill from outside. Afterwards `blame.accused` wait for `convict`.
        """
        now_ns = self._at(now_ns)
        worker = self._roster.worker(index)
        hung = worker.interrupted_ns > 0
        worker.interrupted_ns = 0
        worker.bury(now_ns)
        self._review()
        batches, worker.batches = worker.batches, []
        for batch in batches:
            # A worker answers a batch before it starts the next: only one that was started can have killed or hung it.
            # One that broke the protocol may have done anything.
            if batch.started_ns or worker.broken:
                self._strike(batch, now_ns, crashed=guilty or hung)
            else:
                self._not_run(batch, now_ns)

    def _not_run(self, batch: Batch, now_ns: int) -> None:
        """A batch comes back as it was sent."""
        for ticket in batch.tickets:
            ticket.runs -= 1
            if ticket.stage is _ENDED:
                free_slot(ticket)
            else:
                self._requeue(ticket, now_ns)

    def _strike(self, batch: Batch, now_ns: int, *, crashed: bool) -> None:
        """A worker died of a batch, or gave it up: each of its images is under suspicion."""
        for ticket in batch.tickets:
            if ticket.stage is _ENDED:
                free_slot(ticket)
                continue
            if ticket.expendable:
                self._ledger.finish(ticket, refusals.not_again(), returned=True)
                continue
            verdict = self.blame.strike(ticket, crashed=crashed)
            if verdict is Verdict.AGAIN:
                self._requeue(ticket, now_ns)
            elif verdict is Verdict.LOST:
                self._ledger.finish(ticket, refusals.lost(), returned=True)

    def convict(self, ticket: Ticket, digest: bytes, now_ns: int) -> None:
        """An accused image, by the digest of its pixels: it is answered, and refused from now on."""
        self.blame.convict(ticket, digest, self._at(now_ns))
        self._ledger.finish(ticket, refusals.poisoned(), returned=True)

    @staticmethod
    def _requeue(ticket: Ticket, now_ns: int) -> None:
        """Its batch was not run: back to its line, pixels and all."""
        ticket.stage = _QUEUED
        ticket.line.arena.move(ticket.slot, _SLOT_QUEUED)
        ticket.line.promise(ticket)
        ticket.line.enqueue(ticket, now_ns)

    def see_off(self, now_ns: int) -> None:
        """Retiring workers that are done are killed, and forgotten once they are gone."""
        for worker in [worker for worker in self._roster.workers if worker.retiring]:
            if worker.condemned or not self._roster.is_done(worker):
                continue
            if not self._roster.has_process(worker):
                self._roster.remove_worker(worker, now_ns)
                self._review()
            else:
                self._ledger.effects.append(self._watch.kill(Role.WORKER, worker, "retired", now_ns))
