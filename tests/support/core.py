"""The core's parts in small, with literal times: lines, profiles, workers, tickets, and a whole scheduler.

`Core`: children up, bodies at hand, effects in short words, which name tickets by the order in which they were
submitted: 1, 2, ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import errors
from gateway.scheduling.line import Line
from gateway.scheduling.placement import WorkerState
from gateway.scheduling.profile import Profile
from gateway.scheduling.restarts import State
from gateway.scheduling.scheduler import Scheduler
from gateway.scheduling.ticket import (
    TENSOR,
    Body,
    Fill,
    Finish,
    Interrupt,
    Kill,
    RunBatch,
    Send,
    Spawn,
    Stage,
    Stuck,
    Ticket,
)
from shm.arena import BodyArena, Region
from shm.wire import ItemStatus, ProfilePoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.scheduling.ticket import Effect

MS = 1_000_000
S = 1_000 * MS
NOW = 100 * S
"""Tests begin here."""

ROOM = {"slot_count": 256, "queue_max": 256}
ONE = ((1, 10 * MS),)

FLAT = ((1, 10 * MS), (2, 10 * MS), (4, 10 * MS))
FLAT_NS = 10_200_000
"""What the scheduler expects of a batch of any of FLAT's sizes: two in a hundred more than was measured."""


def line(index: int = 0, **settings: float) -> Line:
    settings = {"slot_count": 8, "queue_max": 16, "window_ns": 0, "deadline_ns": 1 * S} | settings
    return Line(index, f"m{index}", **settings)


def profile(*points: tuple[int, float]) -> Profile:
    """(size, ms) each; expected of them is just that."""
    return Profile([ProfilePoint(size, int(ms * MS), int(ms * MS)) for size, ms in points])


def worker(index: int, profiles: dict[int, Profile], *, free_at_ns: int = 0) -> WorkerState:
    """A worker that is up, with these models by index."""
    state = WorkerState(index)
    state.ready = state.was_ready = True
    state.profiles = profiles
    state.free_at_ns = free_at_ns
    return state


def ticket(
    number: int,
    of: Line,
    *,
    due_ns: int = NOW + 1 * S,
    deadline_ns: int | None = None,
    priority: int = 0,
    stage: Stage = Stage.WAITING,
    at: int = NOW,
) -> Ticket:
    """One image that nobody queued, with a body of its own."""
    body = Body(BodyArena(64), Region(0, 64))
    deadline_ns = due_ns if deadline_ns is None else deadline_ns
    made = Ticket(number, of, body, 0, 64, 0, priority, deadline_ns, due_ns, 5, at)
    made.stage = stage
    made.decoded_ns = at
    return made


def promised(of: Line, *dues_ns: int) -> Line:
    """The line, with images that are to be done by then."""
    for number, due_ns in enumerate(dues_ns, 1000 + len(of.dues)):
        of.promise(ticket(number, of, due_ns=due_ns))
    return of


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
        self.points = [ProfilePoint(size, ns, ns, *lead_ns) for size, ns, *lead_ns in points]
        self.tickets: list[Ticket] = []
        if up:
            self.do(NOW)
            for index in range(decoders):
                self.s.decoder_ready(index, NOW)
            for index in range(workers):
                self.worker_up(index, NOW)
            assert self.do(NOW) == []

    def worker_up(self, index: int, now_ns: int, *, models: Sequence[int] | None = None) -> None:
        """It comes up with these models, by index; with all of them when none are named."""
        self.begun(index, now_ns)
        loaded = range(len(self.lines)) if models is None else models
        self.s.worker_ready(index, dict.fromkeys(loaded, self.points), now_ns)

    def begun(self, index: int, now_ns: int) -> None:
        """A dead worker has been started, whatever its back-off."""
        worker = self.s.worker(index)
        if worker.state is State.DEAD and not worker.condemned:
            worker.begin(now_ns)

    def add_line(self, **settings: float) -> Line:
        """One more model, which nobody has."""
        self.lines.append(line(len(self.lines), **settings))
        self.s.add_line(self.lines[-1])
        return self.lines[-1]

    def worker_with(self, index: int, now_ns: int, *, kind: str = "", **points: Sequence[tuple[int, float]]) -> None:
        """It comes up with models m0, m1, ... by name, each of these (size, ms)."""
        shapes = {
            int(name[1:]): [ProfilePoint(size, int(ms * MS), int(ms * MS)) for size, ms in shape]
            for name, shape in points.items()
        }
        self.begun(index, now_ns)
        self.s.worker_ready(index, shapes, now_ns, kind=kind)

    def worker_fails(self, index: int, now_ns: int) -> None:
        """It dies until nothing is expected of it any more."""
        while not self.s.worker(index).restarts.failing:
            self.begun(index, now_ns)
            self.s.worker_lost(index, now_ns)

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

    def tensor(self, *, at: int = NOW, **named: int) -> Ticket:
        """A row of pixels that was copied into its slot, with the worker not yet asked."""
        return self.tensors(1, at=at, **named)[0]

    def tensors(self, count: int, *, at: int = NOW, **named: int) -> list[Ticket]:
        """Rows of one request, copied into their slots, with the worker not yet asked."""
        tickets = self.submit(at=at, count=count, encoding=TENSOR, **named)
        self.fill(at)
        return tickets

    def fill(self, at: int = NOW) -> None:
        """Copy what waits to be copied; what could run already is asked for."""
        for effect in self.s.advance(at):
            if isinstance(effect, Fill):
                self.s.filled(effect.ticket, at)

    def decoded(
        self, which: int, *, at: int, decoder: int = 0, refusal: errors.Refusal | None = None, decode_ns: int = MS
    ) -> None:
        """A decoder answers the image that was submitted as the `which`th."""
        assert self.s.decoded(decoder, self.tickets[which - 1].number, refusal, decode_ns, at)

    def ran(self, index: int = 0, *, at: int, status: ItemStatus = ItemStatus.OK) -> None:
        """A worker answers its first batch."""
        batch = self.s.worker(index).batches[0]
        assert self.s.batch_done(index, batch.number, [status] * len(batch.tickets), at) is batch

    def do(self, at: int) -> list[str]:
        return [self.words(effect) for effect in self.s.advance(at)]

    def play(self, *, at: int = NOW, until: int = NOW + 10 * S) -> list[tuple[float, str]]:
        """What is asked for, and when, in ms from NOW, while every batch takes just what is expected of it."""
        story: list[tuple[float, str]] = []
        while at <= until:
            story += [((at - NOW) / MS, word) for word in self.do(at)]
            running = {each.index: each.batches[0] for each in self.s.workers if each.batches}
            ends = {batch.started_ns + batch.expected_ns: index for index, batch in running.items()}
            wake_ns = self.s.wake_at_ns()
            at = min([*ends, *([] if wake_ns is None else [wake_ns])], default=until + 1)
            if at in ends and at <= until:
                self.ran(ends[at], at=at)
        return story

    def quiet(self) -> bool:
        """Nobody waits, and every slot and body is free."""
        slots = all(each.arena.free_count == each.arena.count and not each.dues for each in self.lines)
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
        if isinstance(effect, Interrupt):
            return f"interrupt {effect.worker}"
        assert isinstance(effect, Spawn | Stuck | Kill)
        words = f"{type(effect).__name__.lower()} {effect.role.value} {effect.index}"
        return f"{words}: {effect.reason}" if isinstance(effect, Kill) else words

    def names(self, tickets: list[Ticket]) -> str:
        return " ".join(str(self.tickets.index(ticket) + 1) for ticket in tickets)


def refused(core: Core, *, in_ms: float = 1000, at: int = NOW, **named: int) -> errors.Refusal | None:
    """Rows of a tensor that are asked for; what is answered at once."""
    try:
        core.submit(at=at, deadline_ns=at + int(in_ms * MS), encoding=TENSOR, **named)
    except errors.Refusal as refusal:
        return refusal
    return None


def accepted_count(core: Core, *, in_ms: float, at: int = NOW, **named: int) -> int:
    """How many rows are accepted one by one until one is refused."""
    count = 0
    while refused(core, in_ms=in_ms, at=at, **named) is None:
        count += 1
    return count
