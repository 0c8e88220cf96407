"""The only door of the core: inputs are methods that take `now_ns`, outputs are effects from `advance`.

State: a ticket is in exactly one place: a line's waiting queue, a decoder's `held`, a line's `ready` queue, a worker's
batch, or with the caller (DONE, until `release`). Inputs change state and ask for nothing; `advance` decides. It may
be called at any time, as often as one likes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.scheduling import refusals
from gateway.scheduling.dispatcher import Dispatcher
from gateway.scheduling.feeder import Feeder
from gateway.scheduling.placement import WorkerState
from gateway.scheduling.profile import Profile
from gateway.scheduling.ticket import (
    TENSOR,
    Batch,
    Body,
    Effect,
    Finish,
    Role,
    Stage,
    Ticket,
    TicketQueue,
)
from gateway.scheduling.watch import Watch
from shm.arena import BodyArena, SlotState
from shm.wire import ItemStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway import errors
    from gateway.scheduling.line import Line
    from shm.wire import Encoding, ProfilePoint

# Python 3.11 looks an enum's member up in 77 ns, a module's name in 7; a ticket takes forty of them.
_WAITING, _FILLING, _QUEUED, _RUNNING, _DONE, _ENDED = Stage
_SLOT_DONE = SlotState.DONE
_SLOT_FREE = SlotState.FREE
_SLOT_QUEUED = SlotState.QUEUED
_SLOT_ZOMBIE = SlotState.ZOMBIE
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
        self._watch = Watch(self.feeder.decoders, self.workers, start_timeout_ns=start_timeout_ns)
        self._dispatcher = Dispatcher(self.lines, self.workers, lambda late: self._finish(late, refusals.late()))
        self.draining = False
        self.live_count = 0
        """Tickets that were accepted and not yet answered."""
        self._deadlines = TicketQueue(_WAITING, _RUNNING)
        self._effects: list[Effect] = []
        self._number = 0
        self._now_ns = 0

    # -- requests ------------------------------------------------------------------------------------------------

    def precheck(self, line: Line, deadline_ns: int, now_ns: int) -> None:
        """Refuse what cannot succeed, before a byte of the body is read.

        Raises: Draining, ModelNotReady, DeadlineExceeded, Overloaded.
        """
        if self.draining:
            raise refusals.draining()
        if not line.serving:
            raise self._not_serving(line)
        if now_ns >= deadline_ns:
            raise refusals.too_late()
        if line.held_count >= line.queue_max:
            raise refusals.full(line)

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
    ) -> list[Ticket]:
        """Accept one request's images, all or none: (offset in the segment, size, encoding or TENSOR) each.

        Every ticket holds the body; the caller's own hold stays the caller's. Raises Overloaded, Draining.
        """
        if self.draining:
            raise refusals.draining()
        if len(parts) > line.queue_max:
            raise refusals.never_fits(line, len(parts))
        if line.held_count + len(parts) > line.queue_max:
            raise refusals.full(line)
        now_ns = self._at(now_ns)
        tickets = []
        for offset, size, encoding in parts:
            self._number += 1
            ticket = Ticket(self._number, line, body, offset, size, encoding, priority, deadline_ns, top_k, now_ns)
            body.hold()
            self.feeder.enqueue(ticket)
            self._deadlines.push(deadline_ns, ticket)
            tickets.append(ticket)
        line.held_count += len(tickets)
        self.live_count += len(tickets)
        return tickets

    def _not_serving(self, line: Line) -> errors.ModelNotReady:
        """With a Retry-After while a worker is still loading; not when trying again would be no use."""
        still_loading = any(not worker.was_ready and not worker.restarts.failing for worker in self.workers)
        return refusals.loading(line) if still_loading else refusals.not_served(line)

    def cancel(self, ticket: Ticket, now_ns: int) -> None:
        """The client is gone: queued work is dropped, running work is thrown away when it comes back."""
        self._at(now_ns)
        if ticket.stage < _DONE:
            self._end(ticket)
            return
        if ticket.stage is _DONE:
            self.release(ticket)
        # Its answer may have been decided and not been handed over: nobody is there to read it.
        self._effects = [e for e in self._effects if not (isinstance(e, Finish) and e.ticket is ticket)]

    def release(self, ticket: Ticket) -> None:
        """Its output was read: the slot is free."""
        assert ticket.stage is _DONE
        ticket.stage = _ENDED
        _free_slot(ticket)

    # -- decoders ------------------------------------------------------------------------------------------------

    def decoder_ready(self, index: int, now_ns: int) -> None:
        """A decoder is sandboxed and waits for work."""
        decoder = self.feeder.decoders[index]
        if decoder.condemned:
            return
        decoder.ready = True
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
            _free_slot(ticket)
        elif refusal is not None:
            self._finish(ticket, refusal, returned=True)
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
                self._finish(ticket, refusals.undecodable(), returned=True)
            else:
                ticket.stage = _WAITING
                self.feeder.enqueue(ticket)

    # -- workers -------------------------------------------------------------------------------------------------

    def worker_ready(self, index: int, profiles: Mapping[int, Sequence[ProfilePoint]], now_ns: int) -> None:
        """A worker has warmed these models (by index) and waits for batches."""
        worker = self.workers[index]
        if worker.condemned:
            return
        worker.ready = worker.was_ready = True
        worker.free_at_ns = self._at(now_ns)
        worker.restarts.ready(now_ns)
        worker.profiles = {
            model: Profile(points, deadline_ns=self.lines[model].deadline_ns, worker_count=len(self.workers))
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
        worker.free_at_ns = now_ns
        if worker.batches:
            staged = worker.batches[0]
            staged.started_ns = now_ns
            worker.free_at_ns = now_ns + staged.expected_ns
        for ticket, status in zip(batch.tickets, statuses, strict=True):
            ticket.done_ns = now_ns
            if ticket.stage is _ENDED:
                _free_slot(ticket)
            elif status is _ITEM_OK:
                ticket.stage = _DONE
                self._deadlines.discard()
                self.live_count -= 1
                ticket.line.arena.move(ticket.slot, _SLOT_DONE)
                self._effects.append(Finish(ticket, None))
            elif status is _ITEM_LATE:
                # The batch was not run because its most urgent image would have been late. The others may still do.
                ticket.runs -= 1
                ticket.done_ns = 0
                self._requeue(ticket, now_ns)
            else:
                self._finish(ticket, refusals.failed(), returned=True)
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
                    _free_slot(ticket)
                elif ticket.runs >= RUNS_MAX:
                    self._finish(ticket, refusals.lost(), returned=True)
                else:
                    self._requeue(ticket, now_ns)

    @staticmethod
    def _requeue(ticket: Ticket, now_ns: int) -> None:
        """Its batch was not run: back to its line, pixels and all."""
        ticket.stage = _QUEUED
        ticket.line.arena.move(ticket.slot, _SLOT_QUEUED)
        ticket.line.held_count += 1
        ticket.line.enqueue(ticket, now_ns)

    def broken(self, role: Role, index: int, reason: str) -> None:
        """A child broke the protocol: it is never believed again."""
        self._effects.append(self._watch.kill(role, index, reason, broken=True))

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
        self.draining = True

    def refuse_rest(self, now_ns: int) -> None:
        """The drain took too long: whoever still waits is told to ask another server, which a reset would not say."""
        self._at(now_ns)
        while (ticket := self._deadlines.peek()) is not None:
            self._finish(ticket, refusals.gone_down())

    def advance(self, now_ns: int) -> list[Effect]:
        """Decide everything that can be decided at `now_ns`, and hand over all effects since the last call."""
        now_ns = self._at(now_ns)
        self._expire(now_ns)
        effects = self._effects
        effects += self._watch.look(now_ns)
        effects += self._dispatcher.dispatch(now_ns)
        # After the batches: a head that was too late for one has just given its slot back.
        effects += self.feeder.feed(self.lines, now_ns)
        self._effects = []
        return effects

    def wake_at_ns(self) -> int | None:
        """When `advance` must be called again at the latest, if no input comes first."""
        first = self._deadlines.peek()
        times = (self._dispatcher.wake_ns, self._watch.wake_at_ns(), first.deadline_ns if first is not None else None)
        return min((time for time in times if time is not None), default=None)

    def _review(self) -> None:
        """A child came or went: which models would be served, by children that are up or are expected back?"""
        decoding = not all(decoder.restarts.failing for decoder in self.feeder.decoders)
        for line in self.lines:
            line.serving = decoding and any(worker.serves(line.index) for worker in self.workers)

    def _at(self, now_ns: int) -> int:
        """Time never goes back."""
        self._now_ns = max(self._now_ns, now_ns)
        return self._now_ns

    def _expire(self, now_ns: int) -> None:
        while (ticket := self._deadlines.peek()) is not None and ticket.deadline_ns <= now_ns:
            self._finish(ticket, refusals.late())

    # -- ends ----------------------------------------------------------------------------------------------------

    def _finish(self, ticket: Ticket, refusal: errors.Refusal, *, returned: bool = False) -> None:
        self._end(ticket, returned=returned)
        self._effects.append(Finish(ticket, refusal))

    def _end(self, ticket: Ticket, *, returned: bool = False) -> None:
        """Take a live ticket out of wherever it is. Its slot is freed, or left to the child that holds its bytes.

        `returned`: that child has just answered, or is dead and reaped.
        """
        stage, line = ticket.stage, ticket.line
        ticket.stage = _ENDED
        self._deadlines.discard()
        self.live_count -= 1
        if stage is not _RUNNING:
            line.held_count -= 1
        if stage is _WAITING:
            self.feeder.queue_of(ticket).discard()
            ticket.let_go_of_body()
            return
        if stage is _QUEUED:
            line.ready.discard()
            line.after_seal()
        elif not returned and not (stage is _FILLING and ticket.encoding is TENSOR):
            line.arena.move(ticket.slot, _SLOT_ZOMBIE)
            return
        ticket.let_go_of_body()
        _free_slot(ticket)


def _free_slot(ticket: Ticket) -> None:
    """Nobody holds the ticket's bytes any more. A lost decoder's slots are free already."""
    if ticket.slot >= 0:
        ticket.line.arena.move(ticket.slot, _SLOT_FREE)
        ticket.slot = -1
