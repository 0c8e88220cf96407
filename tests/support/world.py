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

from gateway.scheduling import refusals
from gateway.scheduling.blame import CONVICTION_NS
from gateway.scheduling.scheduler import Scheduler
from gateway.scheduling.ticket import TENSOR, Fill, Finish, Interrupt, Kill, Role, RunBatch, Send, Spawn, Stuck
from shm.arena import BodyArena
from tests.support import checkers
from tests.support.changes import Operator
from tests.support.checkers import require
from tests.support.children import FakeDecoder
from tests.support.clients import Clients
from tests.support.plan import MS, Plan
from tests.support.story import Story

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from gateway import errors
    from gateway.scheduling.line import Line
    from gateway.scheduling.ticket import Effect, Ticket
    from tests.support.children import FakeChild
    from tests.support.plan import ModelPlan
    from tests.support.record import Record
    from tests.support.workers import FakeWorker

START_NS = 1_000_000_000_000
EVENTS_MAX = 60_000
ADVANCES_MAX = 40
"""Calls of `advance` that a timer may cause in one virtual millisecond."""


class World:
    """One seed's world. `run` plays it to the end or raises."""

    def __init__(self, seed: int, *, calm: bool = False, faults: Collection[str] = ()) -> None:
        """`calm`: a world without faults, in which every promise must be kept. `faults`: of just these classes."""
        self.draw = Random(seed)
        self.plan = plan = Plan(self.draw, calm=calm, faults=faults)
        self.faults = set(plan.faults)
        self.models: dict[int, ModelPlan] = {}
        """What a batch costs, by line; as all that follows, also of lines that are gone."""
        self.lines: dict[int, Line] = {}
        self.ready: dict[int, dict[int, Record]] = {}
        self.workers: dict[int, FakeWorker] = {}
        self.bad_lines: set[int] = set()
        """Lines that no worker can load."""
        self.too_large: dict[int, int] = {}
        """The smallest batch that is known not to fit in memory, by line."""
        self.convicted: dict[tuple[int, bytes], int] = {}
        """Pixels that are refused, by line and digest, and until when."""
        self.trace: list[tuple[object, ...]] = []
        self.operator = Operator(self)
        self.clients = Clients(self)
        for service in range(len(plan.models)):
            self.operator.services[service] = self.operator.new_line(service).index
        self.core = Scheduler(
            list(self.lines.values()),
            bodies=BodyArena(plan.bodies_size),
            worker_count=plan.worker_count,
            decoder_count=plan.decoder_count,
            frame_count_max=plan.frame_count_max,
            decoder_hang_ns=plan.decoder_hang_ns,
            start_timeout_ns=plan.start_timeout_ns,
            restarts_max=plan.restarts_max,
            restarts_window_ns=plan.restarts_window_ns,
        )
        self.now = self.arrived_ns = START_NS
        self.records: dict[int, Record] = {}
        self.live: dict[int, Record] = {}
        self.holders: dict[tuple[int, int], FakeChild] = {}
        self.owners: dict[tuple[int, int], Record] = {}
        self.pixels: dict[tuple[int, int], int] = {}
        self.outputs: dict[tuple[int, int], int] = {}
        self.decoders = [FakeDecoder(self, index) for index in range(plan.decoder_count)]
        self.operator.begin_with(self.core.workers)
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
        checkers.seen_off(self)
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

    # -- models ------------------------------------------------------------------------------------------------------

    def add_line(self, line: Line, model: ModelPlan) -> None:
        """One more; the first ones are what the core is made with."""
        self.lines[line.index] = line
        self.models[line.index] = model
        self.ready[line.index] = {}
        if hasattr(self, "core"):
            self.core.add_line(line)

    def remove_line(self, line: Line) -> None:
        """The core has forgotten it."""
        self.note("removed", line.index)
        self.count("line_removed")
        del self.lines[line.index]
        self.convicted = {key: until_ns for key, until_ns in self.convicted.items() if key[0] != line.index}

    def served(self, service: int) -> Line | None:
        """The line that serves one of the plan's models now."""
        index = self.operator.services[service]
        return None if index is None else self.lines[index]

    # -- poison ------------------------------------------------------------------------------------------------------

    def refusal(self, record: Record) -> errors.Refusal | None:
        """What the gateway says of pixels that are about to wait for a worker."""
        blame, line = self.core.blame, record.ticket.line
        known = blame.covers(line) and blame.is_convicted(line, record.digest, self.now)
        must = self.convicted.get((line.index, record.digest), 0) > self.now
        require(known == must, f"{record} is convicted: {known}, and should be: {must}")
        record.convicted = known
        if known:
            self.count("poison_known")
        return refusals.poisoned() if known else None

    def convict(self) -> None:
        """As the gateway does behind every death and every batch that was given up."""
        for ticket in list(self.core.blame.accused):
            record = self.record(ticket)
            require(record.crashes >= 2, f"{record} is accused of {record.crashes} crashes")
            self.note("convict", record.number, record.digest)
            self.convicted[record.line, record.digest] = self.now + CONVICTION_NS
            self.clients.convictions.setdefault(record.client, []).append(self.now)
            self.core.convict(ticket, record.digest, self.now)

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
            if "spawn_fails" in self.faults and self.chance(0.3):
                self.count("not_started")
                self.core.not_started(effect.role, effect.index, self.now)
                self.touch()
            else:
                self._child(effect.role, effect.index).spawn()
        elif isinstance(effect, Kill):
            self.note("kill", effect.role.value, effect.index, effect.reason)
            self.count(f"kill_{effect.reason}")
            child = self._child(effect.role, effect.index)
            checkers.killed(self, child, effect.reason)
            child.kill()
        elif isinstance(effect, Interrupt):
            self.note("interrupt", effect.worker)
            self.count("interrupt")
            self.workers[effect.worker].interrupt()
        elif isinstance(effect, Stuck):
            self.note("stuck", effect.role.value, effect.index)
            self.count(f"stuck_{effect.role.value}")
            child = self._child(effect.role, effect.index)
            checkers.is_stuck(self, child)
            child.stuck = True

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
        refusal = self.refusal(record)
        self.core.filled(ticket, self.now, refusal)
        if refusal is None:
            self._filled.append(record)
        self.touch()

    def becomes_ready(self, record: Record) -> None:
        if not record.gone:
            record.place = "ready"
            record.ready_ns = self.now
            self.ready[record.line][record.number] = record

    def over(self, record: Record) -> None:
        """Nobody waits for it any more."""
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
            self.over(record)
        elif "slow_reader" in self.faults and self.chance(0.5):
            self.after(self.uniform(0, 20 * MS), lambda: self._release(record))
        else:
            self._release(record)

    def _release(self, record: Record) -> None:
        if not record.gone:
            self.over(record)
            self.core.release(record.ticket)
            self.touch()

    def run(self) -> World:
        """Play it to the end. Raises when something is not as it should be."""
        Story(self).play()
        return self
