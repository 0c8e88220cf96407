"""What the virtual machine room knows about one ticket, by its own observation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.scheduling.ticket import Ticket


class Record:
    """What the world knows about one ticket. `place` is where the image really is."""

    def __init__(self, ticket: Ticket, line: int, claim: tuple[int, int, int], deadline_ns: int, now: int) -> None:
        self.digest = b"%d" % ticket.number
        """Of its pixels."""
        self.client = ticket.client
        self.expendable = ticket.expendable
        self.ticket = ticket
        self.number = ticket.number
        self.line = line
        self.claim = claim
        self.deadline_ns = deadline_ns
        self.submitted_ns = now
        self.tensor = False
        self.poison = ""
        """What this image does to its worker (POISONS), or "decoder": it kills that."""
        self.ready_ns = 0
        self.place = "waiting"
        self.answer: str | None = None
        self.cancelled = False
        self.refused = self.guilty = self.convicted = False
        self.status: object = None
        self.attempts = self.decoder_deaths = 0
        self.deaths = self.crashes = 0
        """Of workers that ran it; of those, by themselves."""

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it and nobody reads its output."""
        return self.place == "over"

    @property
    def waits(self) -> bool:
        """Whether it is on its way to a worker."""
        return self.place in ("waiting", "decoding", "ready")

    def __repr__(self) -> str:
        return f"<image {self.number} of model {self.line}, {self.place}>"
