"""When a batch is closed, and which tickets are in it. Chosen when a worker can take it, never earlier."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.scheduling.ticket import Seal

if TYPE_CHECKING:
    from gateway.scheduling.line import Line
    from gateway.scheduling.profile import Profile
    from gateway.scheduling.ticket import Ticket

TIMER_NS = 1_000_000
"""Timers come this late (the event loop's are whole milliseconds): what waits for one is woken so much earlier."""


def decide(line: Line, now_ns: int) -> Seal | int | None:
    """Whether a batch of `line` should be closed now.

    Returns the reason to close it, or when its window ends, or None (nothing to run).
    """
    count = line.ready_count
    if not count:
        return None
    if count >= line.pace.size:
        return Seal.FULL
    if not line.window_ns or not line.ready:
        return Seal.IDLE
    window_end_ns = line.window_from_ns + line.window_ns
    return Seal.WINDOW if now_ns >= window_end_ns else window_end_ns


def late_head(line: Line, profile: Profile, start_ns: int) -> Ticket | None:
    """The first ticket that waits, left in place, if not even the quickest batch that starts at `start_ns` could answer
    it in time.
    """
    for queue in (line.ready, line.ready_batch):
        head = queue.peek()
        if head is not None and start_ns + profile.least_ns > head.deadline_ns:
            return head
    return None


class Way(NamedTuple):
    """A way to make up a batch."""

    fill: float
    """This share of the room up to B* goes to the batch class."""
    split: bool
    """What does not fill a warmed size may wait, if that wastes less than running at the next one."""
    by_due: bool = False
    """Whatever is due first, whatever its class, as the plan has it; else real time first."""


WAYS = (
    Way(fill=1.0, split=True),
    Way(fill=1.0, split=False),
    Way(fill=0.5, split=True),
    Way(fill=0.25, split=True),
    Way(fill=0.0, split=False),
    Way(fill=0.0, split=False, by_due=True),
)
"""The best first; the last one is the plan's own."""


def take(line: Line, profile: Profile, free_ns: int, way: Way, sent_ns: int = 0) -> tuple[list[Ticket], int]:
    """Take the tickets of the next batch out of their queues: (tickets, warmed size). `put_back` undoes it.

    The batch is sent at `sent_ns`, and starts no earlier than the device is free, at `free_ns`.
    """
    count, urgent = _count(line, profile, free_ns, way)
    if way.by_due:
        tickets = [line.queue_of(first(line)).pop() for _ in range(count)]
    else:
        tickets = [line.ready.pop() for _ in range(urgent)]
        tickets += [line.ready_batch.pop() for _ in range(count - urgent)]
    size = profile.size_above(count)
    end_ns = max(free_ns, sent_ns + profile.leads_ns[size]) + profile.times_ns[size]
    if any(end_ns > ticket.deadline_ns for ticket in tickets):
        tickets, size = _most_in_time(line, profile, free_ns, sent_ns, tickets)
    return tickets, size


def _most_in_time(
    line: Line, profile: Profile, free_ns: int, sent_ns: int, tickets: list[Ticket]
) -> tuple[list[Ticket], int]:
    """The batch that answers most of these in time; the others go back. Cutting it down for the sake of an old head
    alone would collapse under overload. Where nothing is expected to be in time, the first one is tried alone.
    """
    best: list[Ticket] = []
    best_size = profile.sizes[0]
    for size in profile.sizes:
        end_ns = max(free_ns, sent_ns + profile.leads_ns[size]) + profile.times_ns[size]
        fit = [ticket for ticket in tickets if end_ns <= ticket.deadline_ns][:size]
        if len(fit) > len(best):
            best, best_size = fit, size
    best = best or tickets[:1]
    taken = set(map(id, best))
    put_back(line, [ticket for ticket in tickets if id(ticket) not in taken])
    return best, best_size


def put_back(line: Line, tickets: list[Ticket]) -> None:
    """Back into the queues they came from."""
    for ticket in tickets:
        line.queue_of(ticket).push(ticket.due_ns, ticket)


def _count(line: Line, profile: Profile, free_ns: int, way: Way) -> tuple[int, int]:
    """How many to take, and how many of them from the real-time class (meaningless by due time)."""
    if way.by_due:
        return min(line.ready_count, line.pace.size), 0
    urgent = min(len(line.ready), line.pace.size)
    room = max(0, int(way.fill * line.pace.best_size) - urgent)
    count = urgent + min(room, len(line.ready_batch))
    below = profile.size_below(count)
    if not count or (below >= max(1, urgent) and (urgent or way.split)):
        return below, urgent  # Only the batch class waits, and that has time.
    if way.split and below and not profile.padding_pays(count):
        # Whoever is left behind must not be what keeps the next batch small.
        next_end_ns = free_ns + profile.times_ns[below] + profile.times_ns[line.pace.best_size]
        if not urgent or line.dues[below] >= next_end_ns:
            return below, min(urgent, below)
    return count, urgent


def first(line: Line) -> Ticket:
    """The ticket that is due first, of either class."""
    urgent, other = line.ready.peek(), line.ready_batch.peek()
    if urgent is None or (other is not None and other.due_ns < urgent.due_ns):
        urgent = other
    assert urgent is not None
    return urgent
