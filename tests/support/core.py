"""A small scheduler with literal times for unit tests: children up, bodies at hand, effects in short words.

Words name tickets by the order in which they were submitted: 1, 2, ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.scheduling.line import Line
from gateway.scheduling.scheduler import Scheduler
from gateway.scheduling.ticket import Fill, Finish, Kill, RunBatch, Send, Spawn
from shm.arena import BodyArena
from shm.wire import ItemStatus, ProfilePoint

if TYPE_CHECKING:
    from gateway.errors import Refusal
    from gateway.scheduling.ticket import Effect, Ticket

MS = 1_000_000
S = 1_000 * MS
NOW = 100 * S
"""Tests begin here."""

FLAT = ((1, 10 * MS), (2, 10 * MS), (4, 10 * MS))


def line(index: int = 0, **settings: int) -> Line:
    settings = {"slot_count": 8, "queue_max": 16, "window_ns": 0, "deadline_ns": 1 * S} | settings
    return Line(index, f"m{index}", **settings)


class Core:
    """`do(...)` advances and returns what was asked for, e.g. ["send 0: 1 2", "run 0: 1 2 at 2", "finish 3: ok"]."""

    def __init__(self, *lines: Line, workers: int = 1, decoders: int = 1, points=FLAT, up: bool = True) -> None:
        self.lines = list(lines) or [line()]
        self.bodies = BodyArena(1 << 20)
        self.s = Scheduler(
            self.lines,
            bodies=self.bodies,
            worker_count=workers,
            decoder_count=decoders,
            frame_count_max=8,
            decoder_hang_ns=2 * S,
            start_timeout_ns=20 * S,
        )
        self.points = [ProfilePoint(size, ns, ns) for size, ns in points]
        self.tickets: list[Ticket] = []
        if up:
            self.do(NOW)
            for index in range(decoders):
                self.s.decoder_ready(index, NOW)
            for index in range(workers):
                self.worker_up(index, NOW)
            assert self.do(NOW) == []

    def worker_up(self, index: int, now_ns: int) -> None:
        self.s.worker_ready(index, dict.fromkeys(range(len(self.lines)), self.points), now_ns)

    def submit(
        self, *, at: int = NOW, count: int = 1, encoding: int = 0, size: int = 1000, model: int = 0, **named: int
    ) -> list[Ticket]:
        """`count` images of `size` bytes in one request, due one second later unless `deadline_ns` says otherwise."""
        body = self.s.allocate_body(size * count)
        parts = [(body.region.offset + i * size, size, encoding) for i in range(count)]
        named = {"deadline_ns": at + 1 * S, "priority": 0} | named
        try:
            tickets = self.s.submit(self.lines[model], body, parts, top_k=5, now_ns=at, **named)
        finally:
            body.release()
        self.tickets += tickets
        return tickets

    def queued(self, *, at: int = NOW, **named: int) -> Ticket:
        """An image that was decoded, with the worker not yet asked."""
        ticket = self.submit(at=at, **named)[0]
        assert self.do(at)[-1] == f"send 0: {len(self.tickets)}"
        self.decoded(len(self.tickets), at=at)
        return ticket

    def decoded(
        self, which: int, *, at: int, decoder: int = 0, refusal: Refusal | None = None, decode_ns: int = MS
    ) -> None:
        """A decoder answers the image that was submitted as the `which`th."""
        assert self.s.decoded(decoder, self.tickets[which - 1].number, refusal, decode_ns, at)

    def ran(self, index: int = 0, *, at: int, status: ItemStatus = ItemStatus.OK) -> None:
        """A worker answers its first batch."""
        batch = self.s.workers[index].batches[0]
        assert self.s.batch_done(index, batch.number, [status] * len(batch.tickets), at) is batch

    def do(self, at: int) -> list[str]:
        return [self.words(effect) for effect in self.s.advance(at)]

    def quiet(self) -> bool:
        """Nobody waits, and every slot and body is free."""
        slots = all(each.arena.free_count == each.arena.count and not each.held_count for each in self.lines)
        return slots and self.bodies.held_size == 0 and self.s.live_count == 0

    def words(self, effect: Effect) -> str:
        if isinstance(effect, Send):
            return f"send {effect.decoder}: {self.names(effect.tickets)}"
        if isinstance(effect, Fill):
            return f"fill {self.names([effect.ticket])}"
        if isinstance(effect, RunBatch):
            tickets = self.names(effect.batch.tickets)
            return f"run {effect.worker}: {tickets} at {effect.batch.size}, {effect.batch.seal.value}"
        if isinstance(effect, Finish):
            return f"finish {self.names([effect.ticket])}: {'ok' if effect.refusal is None else effect.refusal.code}"
        if isinstance(effect, Spawn):
            return f"spawn {effect.role.value} {effect.index}"
        assert isinstance(effect, Kill)
        return f"kill {effect.role.value} {effect.index}: {effect.reason}"

    def names(self, tickets: list[Ticket]) -> str:
        return " ".join(str(self.tickets.index(ticket) + 1) for ticket in tickets)
