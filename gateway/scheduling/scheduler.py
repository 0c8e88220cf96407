"""The only door of the core: inputs are methods that take `now_ns`, outputs are effects from `advance`.

State: a ticket is in exactly one place: a line's waiting queue, a decoder's `held`, a line's `ready` queue, a worker's
batch, or with the caller (DONE, until `release`). Inputs change state and ask for nothing; `advance` decides. It may
be called at any time, as often as one likes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import errors
from gateway.scheduling import refusals
from gateway.scheduling.admission import Admission
from gateway.scheduling.dispatcher import Dispatcher
from gateway.scheduling.feeder import Feeder
from gateway.scheduling.ledger import Ledger, free_slot
from gateway.scheduling.placement import HANG_NS_MIN, WorkerState
from gateway.scheduling.plan import Plan
from gateway.scheduling.profile import Profile
from gateway.scheduling.ticket import (
    TENSOR,
    Batch,
    Body,
    Effect,
    Priority,
    Role,
    Stage,
    Ticket,
)
from gateway.scheduling.watch import NEVER_NS, Watch
from shm.arena import BodyArena, SlotState
from shm.wire import ItemStatus

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from gateway.scheduling.line import Line
    from shm.wire import Encoding, ProfilePoint

# Python 3.11 looks an enum's member up in 77 ns, a module's name in 7; a ticket takes forty of them.
_WAITING, _FILLING, _QUEUED, _ENDED = Stage.WAITING, Stage.FILLING, Stage.QUEUED, Stage.ENDED
_SLOT_QUEUED = SlotState.QUEUED
_ITEM_LATE = ItemStatus.LATE
_ITEM_OK = ItemStatus.OK

RUNS_MAX = 2
"""A batch whose worker died is run once more, never twice more."""

DECODE_ATTEMPTS_MAX = 3
"""Decoders that may die around one image that none of them named as the cause."""

BLAMED_ATTEMPTS_MAX = 2
"""Decoders that may be killed from outside (out of memory, an operator) while on one image."""


class Scheduler:
    """The core. `lines` are the models in wire order; children are known by index."""

    def __init__(
        self,
        lines: Sequence[Line],
        *,
        bodies: BodyArena,
        worker_count: int,
        decoder_count: int,
        frame_count_max: int,
        decoder_hang_ns: int,
        start_timeout_ns: int,
    ) -> None:
        """`frame_count_max` images go in one frame to a decoder, which is hung when it answers nothing for
        `decoder_hang_ns`; a child that is not ready `start_timeout_ns` after its spawn is killed.
        """
        self.lines = list(lines)
        self.bodies = bodies
        self.workers = [WorkerState(index) for index in range(worker_count)]
        self.feeder = Feeder(decoder_count, frame_count_max=frame_count_max, hang_ns=decoder_hang_ns)
        self._watch = Watch(
            self.feeder.decoders,
            self.workers,
            start_timeout_ns=start_timeout_ns,
            owing_ns_min=min(decoder_hang_ns, HANG_NS_MIN),
        )
        self._plan = Plan(self.lines, self.workers)
        self._ledger = Ledger(self.feeder)
        self._dispatcher = Dispatcher(self.lines, self.workers, self._plan, self._ledger.give_up)
        self._admission = Admission(self.lines, self.workers, self.feeder, self._plan)
        self._number = 0
        self._now_ns = 0

    # -- requests ------------------------------------------------------------------------------------------------

    @property
    def live_count(self) -> int:
        """Tickets that were accepted and not yet answered."""
        return self._ledger.live_count

    @property
    def draining(self) -> bool:
        """Whether nothing new is accepted."""
        return self._admission.draining

    def precheck(
        self,
        line: Line,
        deadline_ns: int,
        now_ns: int,
        *,
        priority: int = 0,
        size: int = 0,
        client: Hashable = None,
    ) -> None:
        """Refuse what cannot be promised, before a byte of the body is read. `size`: bytes of it, 0 when unknown.

        `client`: whose request it is; one that was told when to come back, and does, goes before others.

        Raises: Draining, ModelNotReady, DeadlineExceeded, Overloaded.
        """
        now_ns = self._at(now_ns)
        try:
            self._admission.check(line, deadline_ns, 1, priority, self.feeder.estimate_ns(size), now_ns, client=client)
        except errors.Refusal:
            self._admission.offered(line, 1, priority, now_ns)
            raise

    def allocate_body(self, size: int) -> Body:
        """Room for `size` bytes of body. Raises Overloaded when the byte budget is used up."""
        region = self.bodies.allocate_nowait(size)
        if region is None:
            raise refusals.no_memory()
        return Body(self.bodies, region)

    def submit(
        self,
        line: Line,
        body: Body,
        parts: Sequence[tuple[int, int, Encoding | None]],
        *,
        priority: int,
        deadline_ns: int,
        top_k: int,
        now_ns: int,
        client: Hashable = None,
    ) -> list[Ticket]:
        """Accept one request's images, all or none: (offset in the segment, size, encoding or TENSOR) each.

        Every ticket holds the body; the caller's own hold stays the caller's.
        Raises: Draining, ModelNotReady, DeadlineExceeded, Overloaded, PayloadTooLarge.
        """
        now_ns = self._at(now_ns)
        feeder = self.feeder
        cost_ns = 0
        for _, size, encoding in parts:
            if encoding is not TENSOR:
                cost_ns += feeder.estimate_ns(size)
        self._admission.offered(line, len(parts), priority, now_ns)
        promise = self._admission.check(line, deadline_ns, len(parts), priority, cost_ns, now_ns, client=client)
        tickets = []
        for offset, size, encoding in parts:
            self._number += 1
            ticket = Ticket(
                self._number, line, body, offset, size, encoding, priority, deadline_ns, promise.due_ns, top_k, now_ns
            )
            ticket.expected_ns = promise.ready_ns
            self._ledger.accept(ticket)
            tickets.append(ticket)
        line.pace.accepted(len(tickets))
        if line.returns and priority == Priority.REALTIME and line.returns.is_due(client, now_ns):
            line.returns.keep(client)
        return tickets

    def cancel(self, ticket: Ticket, now_ns: int) -> None:
        """The client is gone: queued work is dropped, running work is thrown away when it comes back."""
        self._at(now_ns)
        self._ledger.cancel(ticket)

    def release(self, ticket: Ticket) -> None:
        """Its output was read: the slot is free."""
        self._ledger.release(ticket)

    # -- decoders ------------------------------------------------------------------------------------------------

    def decoder_ready(self, index: int, now_ns: int) -> None:
        """A decoder is sandboxed and waits for work."""
        decoder = self.feeder.decoders[index]
        if decoder.condemned:
            return
        decoder.ready = True
        self.feeder.count_ready()
        decoder.restarts.ready(self._at(now_ns))
        self._review()

    def decoded(self, index: int, number: int, refusal: errors.Refusal | None, decode_ns: int, now_ns: int) -> bool:
        """A decoder answered one image. False: it never held it, so it is broken."""
        now_ns = self._at(now_ns)
        ticket = self.feeder.answered(self.feeder.decoders[index], number, decode_ns, now_ns)
        if ticket is None:
            return False
        if refusal is None:
            self.feeder.learn(ticket)
        ticket.let_go_of_body()
        if ticket.stage is _ENDED:
            free_slot(ticket)
        elif refusal is not None:
            self._ledger.finish(ticket, refusal, returned=True)
        else:
            self._enqueue(ticket, now_ns)
        return True

    def filled(self, ticket: Ticket, now_ns: int) -> None:
        """A tensor row was copied into its slot."""
        if ticket.stage is _FILLING:
            ticket.let_go_of_body()
            self._enqueue(ticket, self._at(now_ns))

    def _enqueue(self, ticket: Ticket, now_ns: int) -> None:
        ticket.stage = _QUEUED
        ticket.decoded_ns = now_ns
        ticket.line.arena.move(ticket.slot, _SLOT_QUEUED)
        ticket.line.enqueue(ticket, now_ns)

    def decoder_lost(self, index: int, blamed: int, *, guilty: bool, now_ns: int) -> None:
        """A decoder is dead and reaped. `blamed`: the image it was on, by its recorder (0: none). `guilty`: it died of
        that image (its CPU budget, a crash) rather than of a kill from outside.
        """
        now_ns = self._at(now_ns)
        decoder = self.feeder.decoders[index]
        named = blamed in decoder.held
        held = self.feeder.lost(decoder, now_ns)
        self._review()
        for ticket in held:
            if ticket.stage is _ENDED:
                ticket.let_go_of_body()
                continue
            ticket.attempts += 1 if ticket.number == blamed or not named else 0
            attempts_max = BLAMED_ATTEMPTS_MAX if ticket.number == blamed else DECODE_ATTEMPTS_MAX
            if (ticket.number == blamed and guilty) or ticket.attempts >= attempts_max:
                self._ledger.finish(ticket, refusals.undecodable(), returned=True)
            else:
                ticket.stage = _WAITING
                ticket.expected_ns = 0  # nobody knows, and what a death costs is no slip
                self.feeder.enqueue(ticket)

    # -- workers -------------------------------------------------------------------------------------------------

    def worker_ready(
        self, index: int, profiles: Mapping[int, Sequence[ProfilePoint]], now_ns: int, *, kind: str = ""
    ) -> None:
        """A worker has warmed these models (by index) and waits for batches. Workers of one `kind` of device are
        expected to take equally long.
        """
        worker = self.workers[index]
        if worker.condemned:
            return
        now_ns = self._at(now_ns)
        worker.ready = worker.was_ready = True
        worker.kind = kind
        worker.free_at_ns = now_ns
        worker.start_ns = now_ns - worker.started_ns if worker.started_ns else 0
        worker.restarts.ready(now_ns)
        alike = [other for other in self.workers if other is not worker and other.ready and other.kind == kind]
        worker.profiles = {
            model: next((o.profiles[model] for o in alike if model in o.profiles), None) or Profile(points)
            for model, points in profiles.items()
        }
        self._review()

    def batch_done(self, index: int, number: int, statuses: Sequence[ItemStatus], now_ns: int) -> Batch | None:
        """A worker answered its first batch. None: it never held it, or the count is wrong, so it is broken."""
        now_ns = self._at(now_ns)
        worker = self.workers[index]
        if not worker.batches or worker.batches[0].number != number or len(statuses) != len(worker.batches[0].tickets):
            return None
        batch = worker.batches.pop(0)
        if statuses[0] is not _ITEM_LATE:
            took_ns = now_ns - batch.started_ns
            worker.profiles[batch.line.index].observe(batch.size, took_ns, now_ns)
            batch.line.pace.ran(batch.expected_ns, took_ns)
        worker.free_at_ns = now_ns
        if worker.batches:
            staged = worker.batches[0]
            staged.started_ns = now_ns
            worker.free_at_ns = now_ns + staged.expected_ns
        self._plan.changed()
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

    def worker_lost(self, index: int, now_ns: int) -> None:
        """A worker is dead and reaped: its batches run once more, elsewhere or on its successor."""
        now_ns = self._at(now_ns)
        worker = self.workers[index]
        worker.ready = False
        worker.spawn_at_ns = worker.restarts.died(now_ns)
        self._review()
        batches, worker.batches = worker.batches, []
        for place, batch in enumerate(batches):
            for ticket in batch.tickets:
                # A worker answers a batch before it starts the next: only the first can have killed or hung it. One
                # that broke the protocol may have done anything.
                ticket.runs -= 1 if place and not worker.broken else 0
                if ticket.stage is _ENDED:
                    free_slot(ticket)
                elif ticket.runs >= RUNS_MAX:
                    self._ledger.finish(ticket, refusals.lost(), returned=True)
                else:
                    self._requeue(ticket, now_ns)

    @staticmethod
    def _requeue(ticket: Ticket, now_ns: int) -> None:
        """Its batch was not run: back to its line, pixels and all."""
        ticket.stage = _QUEUED
        ticket.line.arena.move(ticket.slot, _SLOT_QUEUED)
        ticket.line.promise(ticket)
        ticket.line.enqueue(ticket, now_ns)

    def broken(self, role: Role, index: int, reason: str) -> None:
        """A child broke the protocol: it is never believed again."""
        self._ledger.effects.append(self._watch.kill(role, index, reason, broken=True))

    # -- time ----------------------------------------------------------------------------------------------------

    def is_up(self, line: Line) -> bool:
        """Whether a worker that is up now has the model."""
        return any(worker.ready and line.index in worker.profiles for worker in self.workers)

    @property
    def is_ready(self) -> bool:
        """Whether every model is up, and a decoder."""
        return any(decoder.ready for decoder in self.feeder.decoders) and all(map(self.is_up, self.lines))

    def drain(self) -> None:
        """Accept nothing more; finish what was accepted."""
        self._admission.draining = True

    def refuse_rest(self, now_ns: int) -> None:
        """The drain took too long: whoever still waits is told to ask another server, which a reset would not say."""
        self._at(now_ns)
        while (ticket := self._ledger.first()) is not None:
            self._ledger.finish(ticket, refusals.gone_down())

    def advance(self, now_ns: int) -> list[Effect]:
        """Decide everything that can be decided at `now_ns`, and hand over all effects since the last call."""
        now_ns = self._at(now_ns)
        self._ledger.expire(now_ns)
        effects = self._ledger.effects
        if now_ns >= self._watch.next_ns:
            effects += self._watch.look(now_ns)
        effects += self._dispatcher.dispatch(now_ns)
        # After the batches: a head that was too late for one has just given its slot back.
        effects += self.feeder.feed(self.lines, now_ns)
        if effects:
            self._watch.work_sent(now_ns)
            self._ledger.effects = []
        return effects

    def wake_at_ns(self) -> int | None:
        """When `advance` must be called again at the latest, if no input comes first."""
        first = self._ledger.first()
        wake_ns = min(self._watch.next_ns, first.deadline_ns if first is not None else NEVER_NS)
        if self._dispatcher.wake_ns is not None:
            wake_ns = min(wake_ns, self._dispatcher.wake_ns)
        return wake_ns if wake_ns < NEVER_NS else None

    def _review(self) -> None:
        """A child came or went: which models would be served, by children that are up or are expected back?"""
        decoding = not all(decoder.restarts.failing for decoder in self.feeder.decoders)
        for line in self.lines:
            line.serving = decoding and any(worker.serves(line.index) for worker in self.workers)
        self._watch.child_changed()
        self._plan.changed()
        self._admission.review(self._now_ns)

    def _at(self, now_ns: int) -> int:
        """Time never goes back."""
        self._now_ns = max(self._now_ns, now_ns)
        return self._now_ns
