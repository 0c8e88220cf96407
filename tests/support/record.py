"""What the virtual machine room knows about one ticket, by its own observation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.scheduling.ticket import Ticket


class Record:
    """What the world knows about one ticket. `place` is where the image really is."""

    def __init__(self, ticket: Ticket, line: int, claim: tuple[int, int, int], deadline_ns: int, now: int) -> None:
        self.ticket = ticket
        self.number = ticket.number
        self.line = line
        self.claim = claim
        self.deadline_ns = deadline_ns
        self.submitted_ns = now
        self.tensor = False
        self.poison = ""
        """The role of the children that this image kills."""
        self.ready_ns = 0
        self.place = "waiting"
        self.answer: str | None = None
        self.cancelled = False
        self.refused = self.guilty = False
        self.status: object = None
        self.attempts = self.runs = self.decoder_deaths = self.worker_deaths = 0

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it and nobody reads its output."""
        return self.place == "over"

    def __repr__(self) -> str:
        return f"<image {self.number} of model {self.line}, {self.place}>"
