"""When a batch is closed, and which tickets are in it. Chosen when a worker can take it, never earlier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.scheduling.ticket import Seal, Stage, Ticket

if TYPE_CHECKING:
    from gateway.scheduling.line import Line
    from gateway.scheduling.profile import Profile

# Python 3.11 looks an enum's member up in 77 ns, a module's name in 7; a ticket takes forty of them.
_RUNNING = Stage.RUNNING

TIMER_NS = 1_000_000
"""Timers come this late (the event loop's are whole milliseconds): a window is cut this long before it is too late."""


def decide(line: Line, profile: Profile, start_ns: int, now_ns: int) -> Seal | int | None:
    """Whether a batch of `line` should be closed now for a worker that is free at `start_ns`.

    Returns the reason to close it, or the time at which to ask again (a window is open), or None (nothing to run).
    """
    head = line.ready.peek()
    if head is None:
        return None
    count = len(line.ready)
    if count >= profile.best_size:
        return Seal.FULL
    if not line.window_ns:
        return Seal.IDLE
    window_end_ns = line.window_from_ns + line.window_ns
    if now_ns >= window_end_ns:
        return Seal.WINDOW
    _, size = profile.size_for(count)
    latest_ns = head.deadline_ns - profile.times_ns[size] - 2 * TIMER_NS
    if max(now_ns, start_ns) >= latest_ns:
        return Seal.DEADLINE
    return min(window_end_ns, latest_ns)


def late_head(line: Line, profile: Profile, start_ns: int) -> Ticket | None:
    """The first ticket of `ready`, left in place, if a batch that starts at `start_ns` cannot answer it in time.

    With a full batch waiting, that is what a full batch would answer late (cutting batches down to save old heads
    collapses under overload); with less, what would be late even alone.
    """
    head = line.ready.peek()
    if head is None:
        return None
    size = profile.best_size if len(line.ready) >= profile.best_size else profile.sizes[0]
    return head if start_ns + profile.times_ns[size] > head.deadline_ns else None


def take(line: Line, profile: Profile, start_ns: int) -> tuple[list[Ticket], int, int]:
    """Take the tickets of the next batch out of `ready`: (tickets, warmed size to run, latest start in ns).

    `late_head` has found nothing more. A partial batch is cut to the size that still answers its head in time. A ticket
    of a lower class may stand behind the head with a nearer deadline: if it would be late it is left where it is, or
    its deadline would become the whole batch's.
    """
    count, size = profile.size_for(len(line.ready))
    head = line.ready.peek()
    assert head is not None
    while size > profile.sizes[0] and start_ns + profile.times_ns[size] > head.deadline_ns:
        size = max(s for s in profile.sizes if s < size)
        count = min(count, size)
    end_ns = start_ns + profile.times_ns[size]
    tickets: list[Ticket] = []
    late: list[Ticket] = []
    while len(tickets) < count and len(line.ready):
        ticket = line.ready.pop()
        (tickets if end_ns <= ticket.deadline_ns else late).append(ticket)
    for ticket in tickets:
        ticket.stage = _RUNNING
    for ticket in late:
        line.ready.push(ticket.key, ticket)
    line.after_seal()
    latest_ns = min(ticket.deadline_ns for ticket in tickets) - profile.times_ns[size]
    return tickets, size, latest_ns
