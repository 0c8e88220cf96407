"""A virtual machine room: the real Scheduler, a virtual clock, and fakes for the driver, the decoders and the workers.

A seed draws everything. The fakes behave as the real ones do: they answer in order, a worker refuses what is late, a
dead child's last words arrive before its obituary, and bytes are really there: decoders leave a ticket's number in its
slot, workers look for it, so that a slot that was freed too early shows as somebody else's picture.

World keeps records of its own about who holds what; tests.support.checkers compares them with what the core does.
"""

from __future__ import annotations

import heapq
from random import Random
from typing import TYPE_CHECKING

from gateway import errors
from gateway.scheduling.line import Line
from gateway.scheduling.scheduler import Scheduler
from gateway.scheduling.ticket import TENSOR, Fill, Finish, Kill, Role, RunBatch, Send, Spawn
from shm.arena import BodyArena
from tests.support import checkers
from tests.support.checkers import require
from tests.support.children import FakeDecoder, FakeWorker
from tests.support.plan import MS, Plan
from tests.support.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.scheduling.ticket import Body, Effect, Ticket
    from tests.support.children import FakeChild

START_NS = 1_000_000_000_000
SETTLE_NS = 30_000_000_000
REST_NS_MAX = 60_000_000_000
EVENTS_MAX = 60_000
ADVANCES_MAX = 40
"""Calls of `advance` that a timer may cause in one virtual millisecond."""


class World:
    """One seed's world. `run` plays it to the end or raises."""

    def __init__(self, seed: int, *, calm: bool = False) -> None:
        """`calm`: a world without faults, in which every promise must be kept."""
        self.draw = Random(seed)
        self.plan = plan = Plan(self.draw, calm=calm)
        self.faults = set(plan.faults)
        self.core = Scheduler(
            [
                Line(
                    index,
                    f"m{index}",
                    slot_count=model.slot_count,
                    queue_max=model.queue_max,
                    window_ns=model.window_ns,
                    deadline_ns=model.deadline_ns,
                )
                for index, model in enumerate(plan.models)
            ],
            bodies=BodyArena(plan.bodies_size),
            worker_count=plan.worker_count,
            decoder_count=plan.decoder_count,
            frame_count_max=plan.frame_count_max,
            decoder_hang_ns=plan.decoder_hang_ns,
            start_timeout_ns=plan.start_timeout_ns,
        )
        self.now = self.arrived_ns = START_NS
        self.trace: list[tuple[object, ...]] = []
        self.records: dict[int, Record] = {}
        self.live: dict[int, Record] = {}
        self.ready: list[dict[int, Record]] = [{} for _ in plan.models]
        self.holders: dict[tuple[int, int], FakeChild] = {}
        self.owners: dict[tuple[int, int], Record] = {}
        self.pixels: dict[tuple[int, int], int] = {}
        self.outputs: dict[tuple[int, int], int] = {}
        self.decoders = [FakeDecoder(self, index) for index in range(plan.decoder_count)]
        self.workers = [FakeWorker(self, index) for index in range(plan.worker_count)]
        self.counts: dict[str, int] = {}
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._dirty = True
        self._pump_due = False
        self._filled: list[Record] = []
        self._timer = 0
        self._timer_millisecond = self._timer_advances = 0

    # -- clock -------------------------------------------------------------------------------------------------------

    def after(self, delay_ns: int, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (self.now + delay_ns, self._sequence, action))

    def uniform(self, low: float, high: float) -> int:
        return int(self.draw.uniform(low, high))

    def chance(self, share: float) -> bool:
        return self.draw.random() < share

    def touch(self) -> None:
        """An input was given: the driver will call `advance`, soon."""
        self._dirty = True

    @property
    def is_quiet(self) -> bool:
        """Whether no request came for a second."""
        return self.now - self.arrived_ns > 1_000 * MS

    def note(self, *what: object) -> None:
        self.trace.append((self.now, *what))

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def play(self) -> None:
        """Until nothing is left to happen."""
        budget = EVENTS_MAX
        while self._events or self._dirty:
            budget -= 1
            require(budget > 0, "the world does not come to rest")
            if self._dirty and not self._pump_due:
                if "lazy_pump" in self.faults and self.chance(0.5):
                    self._pump_due = True
                    self.after(self.uniform(0, 300_000), self._late_pump)
                else:
                    self.pump()
                continue
            self.now, _, action = heapq.heappop(self._events)
            action()

    def _late_pump(self) -> None:
        self._pump_due = False
        self.pump()

    def pump(self) -> None:
        """The driver's turn: effects until there are none, then the timer."""
        while True:
            self._dirty = False
            for effect in self.core.advance(self.now):
                self.perform(effect)
            # What was filled meanwhile could not have been in the batches that this `advance` decided.
            filled, self._filled = self._filled, []
            for record in filled:
                self.becomes_ready(record)
            if not self._dirty:
                break
        checkers.bounded(self)
        checkers.timer(self)
        checkers.busy(self)
        self._arm()

    def _arm(self) -> None:
        self._timer += 1
        wake_ns = self.core.wake_at_ns()
        if wake_ns is None:
            return
        generation = self._timer
        late_ns = self.uniform(-MS, 2 * MS) if "bad_timers" in self.faults else self.uniform(0, 100_000)
        at_ns = max(-(-wake_ns // MS) * MS + late_ns, self.now + 1000)
        self.after(at_ns - self.now, lambda: self._ring(generation))

    def _ring(self, generation: int) -> None:
        if generation != self._timer:
            return
        if self.now // MS != self._timer_millisecond:
            self._timer_millisecond, self._timer_advances = self.now // MS, 0
        self._timer_advances += 1
        require(self._timer_advances <= ADVANCES_MAX, "the timer spins")
        self.pump()

    # -- effects -----------------------------------------------------------------------------------------------------

    def record(self, ticket: Ticket) -> Record:
        return self.records[ticket.number]

    def perform(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self.note("send", effect.decoder, *(ticket.number for ticket in effect.tickets))
            self.decoders[effect.decoder].receive(effect.tickets)
        elif isinstance(effect, Fill):
            self._fill(effect.ticket)
        elif isinstance(effect, RunBatch):
            batch = effect.batch
            self.note("run", effect.worker, batch.seal.value, batch.size, *(ticket.number for ticket in batch.tickets))
            self.count(f"seal_{batch.seal.value}")
            self.workers[effect.worker].receive(batch)
        elif isinstance(effect, Finish):
            self._answer(effect.ticket, effect.refusal)
        elif isinstance(effect, Spawn):
            self.note("spawn", effect.role.value, effect.index)
            self._child(effect.role, effect.index).spawn()
        elif isinstance(effect, Kill):
            self.note("kill", effect.role.value, effect.index, effect.reason)
            self.count(f"kill_{effect.reason}")
            self._child(effect.role, effect.index).kill()

    def _child(self, role: Role, index: int) -> FakeChild:
        return self.decoders[index] if role is Role.DECODER else self.workers[index]

    def grant(self, ticket: Ticket, holder: FakeChild | None) -> Record:
        checkers.slot_granted(self, ticket)
        record = self.record(ticket)
        key = record.line, ticket.slot
        self.owners[key] = record
        self.pixels.pop(key, None)
        self.outputs.pop(key, None)
        if holder is not None:
            self.holders[key] = holder
        record.place = "decoding"
        return record

    def _fill(self, ticket: Ticket) -> None:
        self.note("fill", ticket.number)
        record = self.grant(ticket, None)
        require(ticket.encoding == TENSOR, "an image is copied as if it were a tensor")
        require(ticket.body is not None and ticket.body._holders > 0, "a tensor is copied from freed memory")
        self.pixels[record.line, ticket.slot] = record.number
        self.core.filled(ticket, self.now)
        self._filled.append(record)
        self.touch()

    def becomes_ready(self, record: Record) -> None:
        if not record.gone:
            record.place = "ready"
            record.ready_ns = self.now
            self.ready[record.line][record.number] = record

    def _over(self, record: Record) -> None:
        record.place = "over"
        self.live.pop(record.number, None)
        self.ready[record.line].pop(record.number, None)

    def _answer(self, ticket: Ticket, refusal: errors.Refusal | None) -> None:
        record = self.record(ticket)
        code = "ok" if refusal is None else refusal.code
        self.note("finish", record.number, code)
        self.count(code)
        checkers.answered(self, record, refusal)
        record.answer = code
        self.live.pop(record.number)
        if refusal is not None:
            self._over(record)
        elif "slow_reader" in self.faults and self.chance(0.5):
            self.after(self.uniform(0, 20 * MS), lambda: self._release(record))
        else:
            self._release(record)

    def _release(self, record: Record) -> None:
        if not record.gone:
            self._over(record)
            self.core.release(record.ticket)
            self.touch()

    # -- clients -----------------------------------------------------------------------------------------------------

    def arrive(self, line_index: int, *, deadline_ns: int | None = None, priority: int = 0) -> None:
        """A request's headers are here: precheck, then room for its body, then its body, then its tickets."""
        draw, line = self.draw, self.core.lines[line_index]
        self.arrived_ns = self.now
        if deadline_ns is None:
            tight = self.chance(self.plan.tight_share)
            deadline_ns = self.now + int(
                line.deadline_ns * (draw.uniform(0.05, 0.6) if tight else draw.uniform(0.8, 3))
            )
            priority = int(self.chance(self.plan.batch_share))
        images = draw.randint(2, 12) if self.chance(self.plan.many_share) else 1
        tensor = self.chance(self.plan.tensor_share)
        parts = []
        total = 0
        for _ in range(images):
            large = self.chance(self.plan.large_share)
            size = self.uniform(1_500_000, 4_000_000) if large else self.uniform(0, 60_000) * (draw.random() < 0.99)
            parts.append((total, size, TENSOR if tensor else draw.randint(0, 1)))
            total += size
        try:
            self.core.precheck(line, deadline_ns, self.now, priority=priority, size=total)
            body = self.core.allocate_body(total + draw.choice((0, 1000)))
        except errors.Refusal as refusal:
            self.note("refused", refusal.code)
            self.count(f"pre_{refusal.code}")
            return
        at = body.region.offset
        parts = [(at + offset, size, encoding) for offset, size, encoding in parts]
        reading_ns = self.uniform(0, 2 * MS)
        self.after(reading_ns, lambda: self._submit(line, body, parts, priority, deadline_ns))

    def _submit(
        self, line: Line, body: Body, parts: list[tuple[int, int, int]], priority: int, deadline_ns: int
    ) -> None:
        cancels = "cancel" in self.faults
        try:
            if cancels and self.chance(0.1):
                return
            if body.region.size > parts[-1][0] + parts[-1][1] - body.region.offset > 0:
                body.shrink(parts[-1][0] + parts[-1][1] - body.region.offset)
            tickets = self.core.submit(
                line, body, parts, priority=priority, deadline_ns=deadline_ns, top_k=5, now_ns=self.now
            )
        except errors.Refusal as refusal:
            self.note("refused", refusal.code)
            self.count(f"submit_{refusal.code}")
            return
        finally:
            body.release()
            self.touch()
        self.note("submit", line.index, deadline_ns, *(ticket.number for ticket in tickets))
        for ticket, (_, _, encoding) in zip(tickets, parts, strict=True):
            claim = (priority, ticket.due_ns, ticket.number)
            record = Record(ticket, line.index, claim, deadline_ns, self.now)
            self.records[ticket.number] = self.live[ticket.number] = record
            record.tensor = encoding == TENSOR
            for role in ("decoder", "worker"):
                if f"{role}_poison" in self.faults and self.chance(0.05):
                    record.poison = role
        if cancels and self.chance(0.4):
            wait_ns = self.uniform(0, self.draw.choice((1, 5, 40)) * MS)
            self.after(wait_ns, lambda: self._leave([self.records[ticket.number] for ticket in tickets]))

    def _leave(self, records: list[Record]) -> None:
        """The client hangs up."""
        for record in records:
            self.cancel(record)

    def cancel(self, record: Record) -> None:
        self.note("cancel", record.number, record.place)
        self.count(f"cancel_{record.place}")
        if record.answer is None:
            record.cancelled = True
        self._over(record)
        self.core.cancel(record.ticket, self.now)
        self.touch()

    # -- the story -----------------------------------------------------------------------------------------------------

    def run(self) -> World:
        """Safety phase with faults, then a phase in which everything must come to an end and serve again."""
        plan, draw = self.plan, self.draw
        burst_ns = 0
        for _ in range(plan.request_count):
            if self.chance(0.6):
                burst_ns = self.uniform(0, plan.length_ns)
            line = draw.randrange(len(plan.models))
            self.after(45 * MS + burst_ns + self.uniform(0, MS), lambda line=line: self.arrive(line))
        for fault in sorted(self.faults):
            self._schedule(fault)
        self.after(45 * MS + plan.length_ns, self._heal)
        self.play()
        checkers.empty(self)
        rest_ns = self.now - START_NS - 45 * MS - plan.length_ns
        require(rest_ns <= REST_NS_MAX, f"the world comes to rest {rest_ns} ns after its last fault")
        self._probe()
        return self

    def _schedule(self, fault: str) -> None:
        role, _, what = fault.partition("_")
        span_ns = 45 * MS + self.plan.length_ns
        if what in ("kill", "hang", "slow") and role in ("worker", "decoder"):
            children = self.workers if role == "worker" else self.decoders
            for _ in range(self.draw.randint(1, 4)):
                child = self.draw.choice(children)
                self.after(self.uniform(0, span_ns), getattr(child, "die" if what == "kill" else what))
        elif fault == "pokes":
            for _ in range(40):
                self.after(self.uniform(0, span_ns), self.touch)
        elif fault == "drain" and self.chance(0.5):
            self.after(self.uniform(span_ns // 2, span_ns), self._drain)

    def _drain(self) -> None:
        self.note("drain")
        self.core.drain()

    def _heal(self) -> None:
        """No fault from here on. What hangs without work is killed: nobody could ever have noticed."""
        self.note("heal")
        self.faults.clear()
        for child in (*self.workers, *self.decoders):
            child.factor = 1.0
            if child.hung and child.announced and not child.owes:
                child.die()

    def _probe(self) -> None:
        """Long after the last fault every model serves every kind of request."""
        for _ in range(2):
            self.now += SETTLE_NS
            before = dict(self.counts)
            for line in range(len(self.plan.models)):
                deadline_ns = self.now + SETTLE_NS
                self.after(line * MS, lambda line=line, at_ns=deadline_ns: self.arrive(line, deadline_ns=at_ns))
            self.play()
            checkers.empty(self)
            gained = {name: count - before.get(name, 0) for name, count in self.counts.items()}
            refused = sorted(name for name, count in gained.items() if count and name.startswith(("pre_", "submit_")))
            if self.core.draining:
                require(refused == ["pre_draining"], f"while draining, requests meet {refused}")
                continue
            # More images at once than a queue takes is what a request may ask for here, and is refused for good.
            bad = [name for name in refused if "overloaded" not in name and "payload_too_large" not in name]
            bad += [name for name in ("deadline_exceeded", "worker_lost", "undecodable_image") if gained.get(name)]
            require(not bad, f"a quiet and healthy server says {bad}")
