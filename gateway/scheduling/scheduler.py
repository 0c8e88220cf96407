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
from gateway.scheduling.crew import Crew
from gateway.scheduling.dispatcher import Dispatcher
from gateway.scheduling.feeder import Feeder
from gateway.scheduling.ledger import Ledger, free_slot
from gateway.scheduling.placement import HANG_NS_MIN
from gateway.scheduling.plan import Plan
from gateway.scheduling.restarts import State
from gateway.scheduling.roster import Roster
from gateway.scheduling.ticket import (
    TENSOR,
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
    from collections.abc import Hashable, Sequence

    from gateway.scheduling.line import Line
    from shm.wire import Encoding

# Python 3.11 looks an enum's member up in 77 ns, a module's name in 7; a ticket takes forty of them.
_WAITING, _FILLING, _QUEUED, _ENDED = Stage.WAITING, Stage.FILLING, Stage.QUEUED, Stage.ENDED
_SLOT_QUEUED = SlotState.QUEUED
_ITEM_LATE = ItemStatus.LATE
_ITEM_OK = ItemStatus.OK
_ITEM_RAN_MAX = ItemStatus.FAILED

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
        build_timeout_ns: int = 1_800_000_000_000,
        restarts_max: int = 5,
        restarts_window_ns: int = 60_000_000_000,
    ) -> None:
        """`frame_count_max` images go in one frame to a decoder, which is hung when it answers nothing for
        `decoder_hang_ns`; a child that is not ready `start_timeout_ns` after its spawn is killed, with up to
        `build_timeout_ns` more for each engine that it builds. A worker is restarted at most `restarts_max` times in
        any `restarts_window_ns`; 0: as often as it dies.

        There are `worker_count` workers to begin with, one on each seat, with all of `lines`.
        """
        self._roster = Roster(lines, restarts_max=restarts_max, restarts_window_ns=restarts_window_ns)
        self.lines = self._roster.lines
        self.workers = self._roster.workers
        self.bodies = bodies
        for seat in range(worker_count):
            self._roster.add_worker(seat, frozenset(line.index for line in self.lines), 0)
        self.feeder = Feeder(decoder_count, frame_count_max=frame_count_max, hang_ns=decoder_hang_ns)
        self._watch = Watch(
            self.feeder.decoders,
            self.workers,
            start_timeout_ns=start_timeout_ns,
            build_timeout_ns=build_timeout_ns,
            owing_ns_min=min(decoder_hang_ns, HANG_NS_MIN),
        )
        self._plan = Plan(self.lines, self.workers, self._roster.busy)
        self._ledger = Ledger(self.feeder)
        self._dispatcher = Dispatcher(self._roster.busy, self.workers, self._plan, self._ledger.give_up)
        self._admission = Admission(self.lines, self.workers, self.feeder, self._plan)
        self._crew = crew = Crew(self._roster, self._ledger, self._plan, self._watch, at=self._at, review=self._review)
        self.blame = crew.blame
        # The crew's inputs are this door's, too.
        self.add_worker, self.retire_worker, self.worker = crew.add_worker, crew.retire_worker, crew.worker
        self.worker_building, self.worker_loading = crew.worker_building, crew.worker_loading
        self.worker_ready, self.worker_lost = crew.worker_ready, crew.worker_lost
        self.batch_done, self.convict = crew.batch_done, crew.convict
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

        Raises: Draining, ModelNotReady, DeadlineExceeded, Overloaded, RateLimited.
        """
        now_ns = self._at(now_ns)
        self.blame.check(client, now_ns)
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
        expendable: bool = False,
    ) -> list[Ticket]:
        """Accept one request's images, all or none: (offset in the segment, size, encoding or TENSOR) each.

        Every ticket holds the body; the caller's own hold stays the caller's. `expendable`: images that are given up
        with the first worker that dies of them, and teach nothing about how long decoding takes.
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
            ticket.expected_ns = 0 if expendable else promise.ready_ns
            ticket.client = client
            ticket.expendable = expendable
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
        decoder.move(State.READY)
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

    def filled(self, ticket: Ticket, now_ns: int, refusal: errors.Refusal | None = None) -> None:
        """A tensor row was copied into its slot."""
        if ticket.stage is not _FILLING:
            return
        ticket.let_go_of_body()
        if refusal is None:
            self._enqueue(ticket, self._at(now_ns))
        else:
            self._ledger.finish(ticket, refusal, returned=True)

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

    def broken(self, role: Role, index: int, reason: str, now_ns: int) -> None:
        """A child broke the protocol: it is never believed again."""
        child = self.feeder.decoders[index] if role is Role.DECODER else self._crew.worker(index)
        self._ledger.effects.append(self._watch.kill(role, child, reason, self._at(now_ns), broken=True))

    def gone(self, role: Role, index: int, now_ns: int) -> None:
        """A child closed its socket: it is dead, or as good as. What it holds stays its own until it is reaped."""
        child = self.feeder.decoders[index] if role is Role.DECODER else self._crew.worker(index)
        child.condemn(self._at(now_ns), broken=child.broken)
        self.feeder.count_ready()
        self._review()

    def stopped(self, role: Role, index: int, now_ns: int) -> None:
        """A child was stopped from outside, and stays so: it is killed. A worker with a batch has a closer clock."""
        child = self.feeder.decoders[index] if role is Role.DECODER else self._crew.worker(index)
        if child.condemned or (role is Role.WORKER and self._crew.worker(index).batches):
            return
        self._ledger.effects.append(self._watch.kill(role, child, "stopped", self._at(now_ns)))
        self.feeder.count_ready()
        self._review()

    def not_started(self, role: Role, index: int, now_ns: int) -> None:
        """A child could not be started; it is tried again soon."""
        child = self.feeder.decoders[index] if role is Role.DECODER else self._crew.worker(index)
        child.postpone(self._at(now_ns))
        self._watch.child_changed()

    # -- models --------------------------------------------------------------------------------------------------

    def add_line(self, line: Line) -> None:
        """One more model; it is served once a worker has it, and nobody waits for that to call the gateway ready."""
        line.awaited = False
        self._roster.add_line(line)

    def close_line(self, line: Line, *, closed: bool = True) -> None:
        """It takes nothing new; what it has is finished. Or, not `closed`, it does again."""
        line.closed = closed
        self._review()

    def is_empty(self, line: Line) -> bool:
        """Whether none of its images waits, and nobody holds a slot of it."""
        return self._roster.is_empty(line)

    def remove_line(self, line: Line) -> None:
        """It was closed and is empty (`is_empty`): it is forgotten."""
        self._roster.remove_line(line)
        self.blame.forget(line)
        self._plan.forget(line)

    # -- time ----------------------------------------------------------------------------------------------------

    def is_up(self, line: Line) -> bool:
        """Whether a worker that is up now has the model."""
        return any(worker.ready and line.index in worker.profiles for worker in self.workers)

    @property
    def is_ready(self) -> bool:
        """Whether every model is up, and a decoder."""
        return any(decoder.ready for decoder in self.feeder.decoders) and all(
            self.is_up(line) for line in self.lines if line.awaited
        )

    @property
    def is_building(self) -> bool:
        """Whether a worker builds an engine."""
        return any(worker.state is State.BUILDING for worker in self.workers)

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
        self._look(now_ns)
        effects += self._dispatcher.dispatch(now_ns)
        # After the batches: a head that was too late for one has just given its slot back.
        effects += self.feeder.feed(self._roster.busy, now_ns)
        if self._roster.retiring_count:
            self._look(now_ns)  # that head may have been all that a retired worker was kept for
        if effects:
            self._watch.work_sent(now_ns)
            self._ledger.effects = []
        return effects

    def _look(self, now_ns: int) -> None:
        """After the children: whose time has come, and who is done?"""
        if self._roster.retiring_count:
            self._crew.see_off(now_ns)
        if now_ns >= self._watch.next_ns:
            looked = self._watch.look(now_ns)
            if looked:
                self._judge()
            self._ledger.effects += looked

    def wake_at_ns(self) -> int | None:
        """When `advance` must be called again at the latest, if no input comes first."""
        first = self._ledger.first()
        wake_ns = min(self._watch.next_ns, first.deadline_ns if first is not None else NEVER_NS)
        if self._dispatcher.wake_ns is not None:
            wake_ns = min(wake_ns, self._dispatcher.wake_ns)
        return wake_ns if wake_ns < NEVER_NS else None

    def _review(self) -> None:
        """A child came or went."""
        self._judge()
        self._watch.child_changed()

    def _judge(self) -> None:
        """Which models would be served, by children that are up or are expected back?"""
        decoding = not all(decoder.is_hopeless for decoder in self.feeder.decoders)
        for line in self.lines:
            line.serving = not line.closed and decoding and any(worker.serves(line.index) for worker in self.workers)
        self._plan.changed()
        self._admission.review(self._now_ns)

    def _at(self, now_ns: int) -> int:
        """Time never goes back."""
        self._now_ns = max(self._now_ns, now_ns)
        return self._now_ns
