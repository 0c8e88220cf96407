"""What an accepted request is while it runs, and what comes of each of its images. Data; decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway import errors

if TYPE_CHECKING:
    import asyncio

    from gateway.scheduling.ticket import Ticket


class Classes:
    """A classified image: class indices, best first, and their probabilities."""

    __slots__ = ("indices", "probabilities")

    def __init__(self, indices: list[int], probabilities: list[float]) -> None:
        self.indices = indices
        self.probabilities = probabilities


Outputs = dict[str, Any]
"""An image's raw outputs: name → a copy of its array."""

Outcome = Classes | Outputs | errors.Refusal

_PENDING = errors.Refusal("not answered yet")


class Call:
    """One request that was accepted: its tickets, and an outcome for each as they end."""

    __slots__ = ("_first", "_left", "answered", "last", "outcomes", "tickets")

    def __init__(self, tickets: list[Ticket], future: asyncio.Future[None]) -> None:
        self.tickets = tickets
        self.outcomes: list[Outcome] = [_PENDING] * len(tickets)
        self.last = tickets[0]
        """The ticket that gave a result last: its stages are the request's."""
        self._first = tickets[0].number
        self._left = len(tickets)
        self.answered = future
        """Done once every image has an outcome."""
        for ticket in tickets:
            ticket.owner = self

    def end(self, ticket: Ticket, outcome: Outcome) -> None:
        """One image has its outcome; with the last one the waiter wakes. The ticket lets go of the call.

        They know each other, and what forms a ring is freed by the garbage collector alone: so every request was, and
        each full collection looks at all that lives. With 10,000 silent connections it stopped the loop for 0.3 s.
        """
        ticket.owner = None
        self.outcomes[ticket.number - self._first] = outcome
        if ticket.done_ns:
            self.last = ticket
        self._left -= 1
        if not self._left and not self.answered.done():
            self.answered.set_result(None)
