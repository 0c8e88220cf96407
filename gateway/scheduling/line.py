"""One model's waiting line: its slots, the images that wait for one, and the decoded images that wait for a worker."""

from __future__ import annotations

from gateway.scheduling.ticket import Stage, Ticket, TicketQueue
from shm.arena import SlotArena


class Line:
    """State of one (model, version). Bounds: `queue_max` images up to a worker, `arena.count` slots."""

    __slots__ = (
        "arena",
        "deadline_ns",
        "held_count",
        "index",
        "large",
        "name",
        "queue_max",
        "ready",
        "serving",
        "small",
        "window_from_ns",
        "window_ns",
    )

    def __init__(
        self, index: int, name: str, *, slot_count: int, queue_max: int, window_ns: int, deadline_ns: int
    ) -> None:
        self.index = index
        self.name = name
        self.arena = SlotArena(slot_count)
        self.queue_max = queue_max
        self.window_ns = window_ns
        self.deadline_ns = deadline_ns
        """A duration: the deadline of a request that names none; the profile's best size is chosen for it."""
        self.small = TicketQueue(Stage.WAITING, Stage.WAITING)
        self.large = TicketQueue(Stage.WAITING, Stage.WAITING)
        self.ready = TicketQueue(Stage.QUEUED, Stage.QUEUED)
        self.serving = False
        """Whether a request would be served: by a worker and a decoder that are up, or expected back."""
        self.held_count = 0
        """Tickets in WAITING, FILLING or QUEUED."""
        self.window_from_ns = 0
        """When the oldest ticket of `ready` got there; 0 while it is empty. Kept only where there is a window."""

    @property
    def waiting_count(self) -> int:
        """Images that wait for a slot and a decoder."""
        return len(self.small) + len(self.large)

    def enqueue(self, ticket: Ticket, now_ns: int) -> None:
        """Its pixels are in its slot; it may run (stage is already QUEUED)."""
        if not self.window_from_ns:
            self.window_from_ns = now_ns
        self.ready.push(ticket.key, ticket)

    def after_seal(self) -> None:
        """A batch was taken out of `ready`: the window starts from the oldest that is left."""
        if not len(self.ready):
            self.window_from_ns = 0
        elif self.window_ns:
            self.window_from_ns = min(ticket.decoded_ns for ticket in self.ready)
