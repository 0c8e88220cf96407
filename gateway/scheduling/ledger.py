"""Every accepted ticket until its end: its deadline, its one answer, and who holds its slot and its body meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.scheduling import refusals
from gateway.scheduling.ticket import TENSOR, Effect, Finish, Stage, Ticket, TicketQueue
from shm.arena import SlotState

if TYPE_CHECKING:
    from gateway import errors
    from gateway.scheduling.feeder import Feeder

# Python 3.11 looks an enum's member up in 77 ns, a module's name in 7; a ticket takes forty of them.
_WAITING, _FILLING, _QUEUED, _RUNNING, _DONE, _ENDED = Stage
_SLOT_DONE = SlotState.DONE
_SLOT_FREE = SlotState.FREE
_SLOT_ZOMBIE = SlotState.ZOMBIE


class Ledger:
    """The live tickets, and the effects that nobody has fetched yet."""

    __slots__ = ("_deadlines", "_feeder", "effects", "live_count")

    def __init__(self, feeder: Feeder) -> None:
        self._feeder = feeder
        self._deadlines = TicketQueue(_WAITING, _RUNNING)
        self.effects: list[Effect] = []
        self.live_count = 0
        """Tickets that were accepted and not yet answered."""

    def accept(self, ticket: Ticket) -> None:
        """From now on it will be answered, once. It holds the body, and counts in the plan."""
        assert ticket.body is not None
        ticket.body.hold()
        self._feeder.enqueue(ticket)
        ticket.line.promise(ticket)
        self._deadlines.push(ticket.deadline_ns, ticket)
        self.live_count += 1

    def first(self) -> Ticket | None:
        """The live ticket with the nearest deadline."""
        return self._deadlines.peek()

    def expire(self, now_ns: int) -> None:
        """Answer whoever's deadline has passed."""
        while (ticket := self._deadlines.peek()) is not None and ticket.deadline_ns <= now_ns:
            self.give_up(ticket)

    def answer(self, ticket: Ticket) -> None:
        """Its outputs are in its slot: they are to be read, then `release` is to be called."""
        ticket.stage = _DONE
        self._deadlines.discard()
        self.live_count -= 1
        ticket.line.arena.move(ticket.slot, _SLOT_DONE)
        self.effects.append(Finish(ticket, None))

    def give_up(self, ticket: Ticket) -> None:
        """It was accepted and cannot be answered in time any more."""
        if not ticket.attempts and ticket.runs <= 1:
            ticket.line.pace.late()  # unless a child's death is to blame, the plan was too bold
        self.finish(ticket, refusals.late())

    def finish(self, ticket: Ticket, refusal: errors.Refusal, *, returned: bool = False) -> None:
        """Answer a live ticket with a refusal. `returned`: see `end`."""
        self.end(ticket, returned=returned)
        self.effects.append(Finish(ticket, refusal))

    def cancel(self, ticket: Ticket) -> None:
        """Its client is gone: nobody reads its answer, not even one that was decided already."""
        if ticket.stage < _DONE:
            self.end(ticket)
            return
        if ticket.stage is _DONE:
            self.release(ticket)
        self.effects = [e for e in self.effects if not (isinstance(e, Finish) and e.ticket is ticket)]

    def end(self, ticket: Ticket, *, returned: bool = False) -> None:
        """Take a live ticket out of wherever it is. Its slot is freed, or left to the child that holds its bytes.

        `returned`: that child has just answered, or is dead and reaped.
        """
        stage, line = ticket.stage, ticket.line
        ticket.stage = _ENDED
        self._deadlines.discard()
        self.live_count -= 1
        if stage is not _RUNNING:
            line.forget(ticket)
        if stage is _WAITING:
            self._feeder.leave(ticket)
            ticket.let_go_of_body()
            return
        if stage is _QUEUED:
            line.queue_of(ticket).discard()
            line.after_seal()
        elif not returned and not (stage is _FILLING and ticket.encoding is TENSOR):
            line.arena.move(ticket.slot, _SLOT_ZOMBIE)
            return
        ticket.let_go_of_body()
        free_slot(ticket)

    @staticmethod
    def release(ticket: Ticket) -> None:
        """Its output was read: the slot is free."""
        assert ticket.stage is _DONE
        ticket.stage = _ENDED
        free_slot(ticket)


def free_slot(ticket: Ticket) -> None:
    """Nobody holds the ticket's bytes any more. A lost decoder's slots are free already."""
    if ticket.slot >= 0:
        ticket.line.arena.move(ticket.slot, _SLOT_FREE)
        ticket.slot = -1
