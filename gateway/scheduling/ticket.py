"""What the core keeps about one image, one batch, one body; and the effects it asks for.

Plain slots classes: they are made and dropped thousands of times a second. Times are absolute `time.monotonic_ns()`
values that came in as arguments.
"""

from __future__ import annotations

import enum
import heapq
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

    from gateway.errors import Refusal
    from gateway.scheduling.line import Line
    from shm.arena import BodyArena, Region
    from shm.wire import Encoding


class Priority(enum.IntEnum):
    """Classes of work; a lower number goes first."""

    REALTIME = 0
    BATCH = 1


class Stage(enum.IntEnum):
    """Where a ticket is. The slot's own state (shm.arena) says who holds its bytes.

    WAITING (encoded bytes in the bodies segment, no slot) → FILLING → QUEUED → RUNNING → DONE → ENDED. From every stage
    a cancel, a deadline or a refusal leads to ENDED; a lost decoder leads from FILLING back to WAITING, a lost worker
    from RUNNING back to QUEUED.
    """

    WAITING = 0
    FILLING = 1
    QUEUED = 2
    RUNNING = 3
    DONE = 4
    ENDED = 5


class Body:
    """One request body in the bodies segment; freed when the last image that still needs its bytes lets go."""

    __slots__ = ("_arena", "_holders", "region")

    def __init__(self, arena: BodyArena, region: Region) -> None:
        self._arena = arena
        self.region = region
        self._holders = 1

    def hold(self) -> None:
        """One more holder."""
        self._holders += 1

    def shrink(self, size: int) -> None:
        """Give back all but the first `size` bytes."""
        self.region = self._arena.shrink(self.region, size)

    def release(self) -> None:
        """One holder less; with the last one the region is free."""
        self._holders -= 1
        assert self._holders >= 0
        if self._holders == 0:
            self._arena.free(self.region)


class Ticket:
    """The scheduler's record of one image (or one row of a tensor).

    `deadline_ns` is the client's; `due_ns` is when it is planned to be done, a margin earlier: the order of service.
    `expected_ns` is when it was to be decoded. `deaths` counts workers that died or hung while they ran it, `crashes`
    those of them that did it by themselves; from the first one on it runs alone. `expendable`: nobody waits for it.
    """

    __slots__ = (
        "attempts",
        "body",
        "client",
        "cost_ns",
        "crashes",
        "deadline_ns",
        "deaths",
        "decode_ns",
        "decoded_ns",
        "done_ns",
        "due_ns",
        "encoding",
        "expected_ns",
        "expendable",
        "line",
        "number",
        "offset",
        "owner",
        "priority",
        "run_ns",
        "runs",
        "sent_ns",
        "size",
        "slot",
        "stage",
        "submitted_ns",
        "top_k",
    )

    def __init__(
        self,
        number: int,
        line: Line,
        body: Body,
        offset: int,
        size: int,
        encoding: Encoding | None,
        priority: int,
        deadline_ns: int,
        due_ns: int,
        top_k: int,
        now_ns: int,
    ) -> None:
        self.number = number
        self.line = line
        self.body: Body | None = body
        self.offset = offset
        self.size = size
        self.encoding = encoding
        self.priority = priority
        self.deadline_ns = deadline_ns
        self.due_ns = due_ns
        self.top_k = top_k
        self.stage = Stage.WAITING
        self.slot = -1
        self.attempts = 0
        self.runs = 0
        self.deaths = self.crashes = 0
        self.client: Hashable = None
        self.expendable = False
        self.cost_ns = 0
        self.submitted_ns = now_ns
        self.expected_ns = 0
        self.sent_ns = self.decoded_ns = self.run_ns = self.done_ns = 0
        self.decode_ns = 0
        self.owner: Any = None

    def __repr__(self) -> str:
        return f"<Ticket {self.number} {self.stage.name} slot={self.slot} attempts={self.attempts} runs={self.runs}>"

    def let_go_of_body(self) -> None:
        """The encoded bytes are not needed any more."""
        if self.body is not None:
            self.body.release()
            self.body = None


TENSOR = None
"""`Ticket.encoding` of a row that is already pixels: it is copied, not decoded."""


class TicketQueue:
    """A heap of tickets with lazy removal: a ticket that left the stages `first` to `last` is skipped, then swept.

    `len()` counts live tickets only. Whoever changes a queued ticket's stage other than by `pop` calls `discard`.
    """

    __slots__ = ("_first", "_heap", "_last", "_live")

    def __init__(self, first: Stage, last: Stage) -> None:
        self._heap: list[tuple[int, int, Ticket]] = []
        self._first = first
        self._last = last
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def push(self, key: int, ticket: Ticket) -> None:
        """Add a ticket that is in one of the queue's stages."""
        heapq.heappush(self._heap, (key, ticket.number, ticket))
        self._live += 1

    def discard(self) -> None:
        """One queued ticket has just left the queue's stages; sweep when most entries are dead."""
        self._live -= 1
        if len(self._heap) > 2 * self._live + 64:
            self._heap = [entry for entry in self._heap if self._first <= entry[2].stage <= self._last]
            heapq.heapify(self._heap)

    def peek(self) -> Ticket | None:
        """The first live ticket, left in place."""
        heap = self._heap
        while heap:
            ticket = heap[0][2]
            if self._first <= ticket.stage <= self._last:
                return ticket
            heapq.heappop(heap)
        return None

    def pop(self) -> Ticket:
        """Take the first live ticket; there must be one."""
        ticket = self.peek()
        assert ticket is not None
        heapq.heappop(self._heap)
        self._live -= 1
        return ticket

    def __iter__(self) -> Any:
        """Live tickets, in no order."""
        return (entry[2] for entry in self._heap if self._first <= entry[2].stage <= self._last)


class Seal(enum.Enum):
    """Why a batch was closed."""

    FULL = "full"
    WINDOW = "window"
    IDLE = "idle"
    DEADLINE = "deadline"
    SUSPECT = "suspect"
    """It was there when a worker died, so it runs alone."""


class Batch:
    """Tickets that run together, padded to a warmed `size`.

    `started_ns`: when it became the worker's first one; 0 while it is staged. `ready_ns`: when a device that overlaps
    batches can begin with it at the earliest. `expected_ns`: how long it then takes.
    """

    __slots__ = (
        "expected_ns",
        "latest_start_ns",
        "line",
        "number",
        "ready_ns",
        "seal",
        "size",
        "started_ns",
        "tickets",
    )

    def __init__(
        self, number: int, line: Line, tickets: list[Ticket], size: int, seal: Seal, latest_start_ns: int
    ) -> None:
        self.number = number
        self.line = line
        self.tickets = tickets
        self.size = size
        self.seal = seal
        self.latest_start_ns = latest_start_ns
        self.started_ns = 0
        self.ready_ns = 0
        self.expected_ns = 0


class Role(enum.Enum):
    """The two kinds of children."""

    DECODER = "decoder"
    WORKER = "worker"


class Send:
    """Effect: hand these tickets (all FILLING) to a decoder."""

    __slots__ = ("decoder", "tickets")

    def __init__(self, decoder: int, tickets: list[Ticket]) -> None:
        self.decoder = decoder
        self.tickets = tickets


class Fill:
    """Effect: copy a tensor row into the ticket's slot, then report `filled`."""

    __slots__ = ("ticket",)

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket


class RunBatch:
    """Effect: hand a batch to a worker."""

    __slots__ = ("batch", "worker")

    def __init__(self, worker: int, batch: Batch) -> None:
        self.worker = worker
        self.batch = batch


class Finish:
    """Effect: answer a ticket. `refusal` None means: read its output slot now, then call `release`."""

    __slots__ = ("refusal", "ticket")

    def __init__(self, ticket: Ticket, refusal: Refusal | None) -> None:
        self.ticket = ticket
        self.refusal = refusal


class Spawn:
    """Effect: start this child."""

    __slots__ = ("index", "role")

    def __init__(self, role: Role, index: int) -> None:
        self.role = role
        self.index = index


class Interrupt:
    """Effect: ask this worker to give up the batch that it runs; it answers INTERRUPTED, or is killed."""

    __slots__ = ("worker",)

    def __init__(self, worker: int) -> None:
        self.worker = worker


class Kill:
    """Effect: SIGKILL this child; its death comes back as `decoder_lost` or `worker_lost`."""

    __slots__ = ("index", "reason", "role")

    def __init__(self, role: Role, index: int, reason: str) -> None:
        self.role = role
        self.index = index
        self.reason = reason


class Stuck:
    """Effect: say that this child was killed and is not gone: it hangs in the kernel, with all that it holds."""

    __slots__ = ("index", "role")

    def __init__(self, role: Role, index: int) -> None:
        self.role = role
        self.index = index


Effect = Send | Fill | RunBatch | Finish | Spawn | Interrupt | Kill | Stuck
