"""One model's waiting line: its slots, the images that wait for one, and the decoded images that wait for a worker."""

from __future__ import annotations

import bisect
import operator
from typing import TYPE_CHECKING, NamedTuple

from gateway.scheduling.pace import NO_QUOTA, Pace
from gateway.scheduling.returns import Returns
from gateway.scheduling.ticket import Priority, Stage, Ticket, TicketQueue
from shm.arena import SlotArena

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.scheduling.profile import Profile


_INDEX = operator.attrgetter("index")


class Batching(NamedTuple):
    """How a line's batches are planned at one moment."""

    size_best: int
    """B*: an image that just missed a batch still makes the next one."""
    size_planned: int
    """B*, or more under overload."""
    margin_ns: int
    """Kept back of the model's own deadline."""
    inflation: float
    """Batches are expected to take this many times what was measured."""
    overrun_ns: int
    """By how much batches take longer than expected, all but very few."""
    quota: int | None
    """Images of the real-time class that may wait while other models are busy; None: the model is alone."""


class Line:
    """State of one (model, version). Bounds: `queue_max` images up to a worker, `arena.count` slots."""

    __slots__ = (
        "alike",
        "arena",
        "awaited",
        "batch_count",
        "busy",
        "closed",
        "deadline_ns",
        "dues",
        "index",
        "large",
        "leads_ns",
        "name",
        "pace",
        "profile",
        "queue_max",
        "ready",
        "ready_batch",
        "returns",
        "review_ns",
        "serving",
        "size_end",
        "small",
        "suspects",
        "weight",
        "window_from_ns",
        "window_ns",
        "worker_count",
    )

    def __init__(
        self,
        index: int,
        name: str,
        *,
        slot_count: int,
        queue_max: int,
        window_ns: int,
        deadline_ns: int,
        weight: float = 1.0,
    ) -> None:
        self.index = index
        self.name = name
        self.arena = SlotArena(slot_count)
        self.queue_max = queue_max
        self.window_ns = window_ns
        self.deadline_ns = deadline_ns
        """A duration: the deadline of a request that names none; batch sizes are chosen for it."""
        self.weight = weight
        """Its part of the workers, against the weights of the other models that are busy."""
        self.pace = Pace(deadline_ns)
        self.profile: Profile | None = None
        """What to expect of its batches; None until a worker has measured it."""
        self.leads_ns: Mapping[int, int] = {}
        """By size: how long before a device begins with a batch it has to be sent, where batches overlap."""
        self.worker_count = 1
        """Workers that serve it."""
        self.alike = True
        """Whether all of them are expected to take equally long. Of unlike ones the slowest may differ by size."""
        self.returns = Returns()
        self.small = TicketQueue(Stage.WAITING, Stage.WAITING)
        self.large = TicketQueue(Stage.WAITING, Stage.WAITING)
        self.ready = TicketQueue(Stage.QUEUED, Stage.QUEUED)
        self.ready_batch = TicketQueue(Stage.QUEUED, Stage.QUEUED)
        """The batch class, which runs in what room the real-time class leaves."""
        self.suspects = TicketQueue(Stage.QUEUED, Stage.QUEUED)
        """Those that were there when a worker died; each of them runs alone."""
        self.dues: list[int] = []
        """When each image in WAITING, FILLING or QUEUED is to be done, margin kept back; ascending."""
        self.busy: list[Line] = []
        """All lines of the core of which images wait (`dues`), by index; this one is put in and taken out here. What is
        done for each request looks at these only: models that nobody asks for cost nothing.
        """
        self.batch_count = 0
        """Of those, how many are of the batch class."""
        self.awaited = True
        """Whether the gateway is not ready without it."""
        self.closed = False
        """Whether it takes nothing new: another version has its place, or it is being unloaded."""
        self.size_end: int | None = None
        """The smallest batch that did not fit in a device's memory; batches stay below."""
        self.review_ns = 0
        """When its share, batch size and inflation are to follow again what was measured, if somebody asks for it."""
        self.serving = False
        """Whether a request would be served: by a worker and a decoder that are up, or expected back."""
        self.window_from_ns = 0
        """When the oldest ticket of `ready` got there; 0 while it is empty. Kept only where there is a window."""

    def statistics(self) -> Batching | None:
        """An immutable snapshot; None until a worker has measured the model."""
        pace = self.pace
        if self.profile is None:
            return None
        margin_ns = pace.margin_ns(self.deadline_ns)
        quota = pace.quota if pace.quota < NO_QUOTA else None
        return Batching(pace.best_size, pace.size, margin_ns, pace.inflation, pace.tail_ns, quota)

    @property
    def batch_ns(self) -> int:
        """What a whole batch of the planned size is expected to take. There must be a profile."""
        assert self.profile is not None
        return self.profile.times_ns[self.pace.size]

    @property
    def lead_ns(self) -> int:
        """How long before its device can begin with a batch of the planned size that has to be sent."""
        return self.leads_ns.get(self.pace.size, 0)

    @property
    def waiting_count(self) -> int:
        """Images that wait for a slot and a decoder."""
        return len(self.small) + len(self.large)

    @property
    def ready_count(self) -> int:
        """Images that wait for a worker."""
        return len(self.ready) + len(self.ready_batch)

    @property
    def slotless_due_ns(self) -> int:
        """When the first image is due that waits for a slot, which only a batch of others can free; else never."""
        if self.arena.free_count:
            return NO_QUOTA
        waiting = (self.small.peek(), self.large.peek())
        return min((ticket.due_ns for ticket in waiting if ticket is not None), default=NO_QUOTA)

    def promise(self, ticket: Ticket) -> None:
        """It is to be done by its `due_ns`: from now on the plan counts with it."""
        dues = self.dues
        if not dues:
            dues.append(ticket.due_ns)
            bisect.insort(self.busy, self, key=_INDEX)
        elif ticket.due_ns >= dues[-1]:
            dues.append(ticket.due_ns)
        else:
            bisect.insort(dues, ticket.due_ns)
        self.batch_count += ticket.priority

    def forget(self, ticket: Ticket) -> None:
        """It was handed to a worker, or is over: the plan counts with it no more."""
        dues = self.dues
        place = 0 if dues[0] == ticket.due_ns else bisect.bisect_left(dues, ticket.due_ns)
        assert dues[place] == ticket.due_ns
        del dues[place]
        if not dues:
            self.busy.remove(self)
        self.batch_count -= ticket.priority

    def queue_of(self, ticket: Ticket) -> TicketQueue:
        """The queue that a QUEUED ticket stands in."""
        if ticket.deaths:
            return self.suspects
        return self.ready if ticket.priority == Priority.REALTIME else self.ready_batch

    def enqueue(self, ticket: Ticket, now_ns: int) -> None:
        """Its pixels are in its slot; it may run (stage is already QUEUED)."""
        if not self.window_from_ns and not ticket.deaths:
            self.window_from_ns = now_ns
        self.queue_of(ticket).push(ticket.due_ns, ticket)

    def after_seal(self) -> None:
        """A batch was taken out of `ready`: the window starts from the oldest that is left."""
        if not self.ready_count:
            self.window_from_ns = 0
        elif self.window_ns:
            waiting = (ticket for queue in (self.ready, self.ready_batch) for ticket in queue)
            self.window_from_ns = min(ticket.decoded_ns for ticket in waiting)
