"""Fake decoders and workers for the virtual machine room: one object per child index, across its incarnations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import errors
from gateway.scheduling.ticket import Role
from shm.wire import ItemStatus
from tests.support import checkers
from tests.support.checkers import require
from tests.support.plan import MS

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.scheduling.ticket import Batch, Body, Ticket
    from tests.support.record import Record
    from tests.support.world import World


class FakeChild:
    """A process that starts, works in order, hangs, and dies. Everything that it had dies with it.

    `alive`: the process exists. `announced`: the core was told that it is ready. `muted`: it broke the protocol, and
    the driver reads nothing more from it. `condemned`: the core asked for its death.
    """

    role: Role

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.incarnation = 0
        self.alive = self.announced = self.muted = self.condemned = self.hung = self.busy = False
        self.factor = 1.0
        self._inbox_ns = self._outbox_ns = 0
        self.owed_ns = 0
        """Since when it owes the answer that is due next."""

    def __repr__(self) -> str:
        return f"<{self.role.value} {self.index}.{self.incarnation}>"

    def later(self, delay_ns: int, action: Callable[[], None]) -> None:
        """What this incarnation does later, unless it is dead or hung by then."""
        incarnation = self.incarnation
        self.world.after(delay_ns, lambda: action() if self.lives(incarnation) else None)

    def lives(self, incarnation: int) -> bool:
        return self.alive and not self.hung and self.incarnation == incarnation

    def send(self, arrive: Callable[[], None]) -> None:
        """A message on its way to the child; a socket keeps the order."""
        self._inbox_ns = max(self._inbox_ns, self.world.now + self.world.uniform(5_000, 60_000))
        self.later(self._inbox_ns - self.world.now, arrive)

    def tell(self, deliver: Callable[[], None]) -> None:
        """A message on its way to the driver: it arrives even if its sender dies now."""
        incarnation = self.incarnation
        self._outbox_ns = max(self._outbox_ns, self.world.now + self.world.uniform(5_000, 90_000))

        def arrive() -> None:
            if self.incarnation == incarnation and not self.muted:
                deliver()
                self.world.touch()

        self.world.after(self._outbox_ns - self.world.now, arrive)

    def spawn(self) -> None:
        world = self.world
        require(not self.alive, f"{self} is started beside itself")
        self.incarnation += 1
        self.alive = True
        self.announced = self.muted = self.condemned = self.hung = self.busy = False
        self.factor = 1.0
        start_ns = world.uniform(MS, 40 * MS)
        if "start_hang" in world.faults and world.chance(0.4):
            self.hung = True
            if world.chance(0.5):
                self.hung = False
                # Ready in the very moment in which the core loses patience.
                killed_ns = -(-(world.now + world.plan.start_timeout_ns) // MS) * MS
                start_ns = killed_ns - world.now + world.uniform(-60_000, 40_000)
        if f"{self.role.value}_start_death" in world.faults and world.chance(0.5):
            self.later(world.uniform(0, start_ns), self.die)
        self.later(start_ns, lambda: self.tell(self._announce))

    def _announce(self) -> None:
        self.world.note("ready", self.role.value, self.index)
        self.announced = True
        self.announce()

    @property
    def owes(self) -> bool:
        """Whether it was given work that it has not answered."""
        raise NotImplementedError

    @property
    def due_ns(self) -> int:
        """When the core must lose patience."""
        raise NotImplementedError

    def announce(self) -> None:
        raise NotImplementedError

    def hang(self) -> None:
        self.hung = True

    def slow(self) -> None:
        self.factor = self.world.draw.choice((3.0, 10.0, 40.0))

    def kill(self) -> None:
        """SIGKILL by the driver."""
        self.condemned = True
        self.die()

    def die(self) -> None:
        """The process is gone; the driver hears of it a little later, after its last words."""
        if self.alive:
            self.alive = False
            self.world.note("died", self.role.value, self.index)
            self.world.after(self.world.uniform(100_000, 3 * MS), self._bury)

    def _bury(self) -> None:
        self.announced = False
        self.world.note("lost", self.role.value, self.index)
        self.world.holders = {key: child for key, child in self.world.holders.items() if child is not self}
        self.bury()
        self.world.touch()

    def bury(self) -> None:
        raise NotImplementedError

    def break_protocol(self) -> None:
        """The driver found nonsense in a message."""
        self.muted = True
        self.world.core.broken(self.role, self.index, "broke the protocol")


class FakeDecoder(FakeChild):
    """Writes an image's number into its slot when it is done, not before."""

    role = Role.DECODER

    def __init__(self, world: World, index: int) -> None:
        super().__init__(world, index)
        self.held: dict[int, tuple[Record, tuple[int, int], Body]] = {}
        self._inbox: list[int] = []
        self._current = 0

    @property
    def owes(self) -> bool:
        return bool(self.held)

    @property
    def due_ns(self) -> int:
        return self.owed_ns + self.world.plan.decoder_hang_ns

    def announce(self) -> None:
        self.world.core.decoder_ready(self.index, self.world.now)

    def receive(self, tickets: list[Ticket]) -> None:
        if not self.held:
            self.owed_ns = self.world.now
        for ticket in tickets:
            self.world.grant(ticket, self)
        checkers.sent(self.world, self, tickets)
        for ticket in tickets:
            record = self.world.record(ticket)
            assert ticket.body is not None
            self.held[record.number] = record, (record.line, ticket.slot), ticket.body
        numbers = [ticket.number for ticket in tickets]
        self.send(lambda: self._take(numbers))

    def _take(self, numbers: list[int]) -> None:
        self._inbox += numbers
        self._work()

    def _work(self) -> None:
        if self._current or not self._inbox:
            return
        number = self._current = self._inbox.pop(0)
        record, _, body = self.held[number]
        require(body._holders > 0, f"{record} is decoded from freed memory")
        world = self.world
        if record.poison == "decoder":
            self.die()
            return
        cost_ns = world.uniform(60_000, 120_000) + record.ticket.size * world.uniform(4, 12)
        self.later(int(cost_ns * self.factor), lambda: self._done(number, cost_ns))

    def _done(self, number: int, cost_ns: int) -> None:
        world = self.world
        record, key, body = self.held[number]
        require(body._holders > 0, f"{record} is decoded from freed memory")
        world.pixels[key] = number
        self._current = 0
        refused = "decoder_refuse" in world.faults and world.chance(0.3)
        broken = "decoder_broken" in world.faults and world.chance(0.03)
        self.tell(lambda: self._report(number + 10**9 if broken else number, refused, cost_ns))
        self._work()

    def _report(self, number: int, refused: bool, cost_ns: int) -> None:  # noqa: FBT001 -- an outcome, not a switch
        world = self.world
        refusal = errors.UndecodableImage("not an image") if refused else None
        if number not in self.held:
            known = world.core.decoded(self.index, number, refusal, cost_ns, world.now)
            require(not known, "the core believes an answer about an image that was never sent")
            self.break_protocol()
            return
        record, key, _ = self.held.pop(number)
        self.owed_ns = world.now
        world.note("decoded", number, refused)
        world.holders.pop(key)
        record.refused = refused
        require(world.core.decoded(self.index, number, refusal, cost_ns, world.now), f"{record} is not known")
        if not refused:
            world.becomes_ready(record)

    def bury(self) -> None:
        world = self.world
        true_blame = self._current
        blamed = world.draw.choice((true_blame, true_blame, 0, 10**9))
        guilty = blamed == true_blame and blamed != 0 and world.chance(0.4)
        held, self.held = self.held, {}
        self._inbox, self._current = [], 0
        for number, (record, key, _) in held.items():
            del world.owners[key]
            record.decoder_deaths += 1
            record.attempts += number == blamed or blamed not in held
            record.guilty = record.guilty or (guilty and number == blamed)
            if not record.gone:
                record.place = "waiting"
        world.core.decoder_lost(self.index, blamed, guilty=guilty, now_ns=world.now)


class FakeBatch:
    """A batch as its worker sees it."""

    def __init__(self, batch: Batch, records: list[Record]) -> None:
        self.number = batch.number
        self.model = batch.line.index
        self.size = batch.size
        self.expected_ns = batch.expected_ns
        self.latest_start_ns = batch.latest_start_ns
        self.items = [(record, (record.line, record.ticket.slot)) for record in records]
        self.arrived = False


class FakeWorker(FakeChild):
    """Looks for each image's number in its slot, and leaves it in the output slot."""

    role = Role.WORKER

    def __init__(self, world: World, index: int) -> None:
        super().__init__(world, index)
        self.batches: list[FakeBatch] = []
        """Sent and not answered, as the driver knows it."""
        self.free_at_ns = 0
        self._inbox: list[FakeBatch] = []

    @property
    def owes(self) -> bool:
        return bool(self.batches)

    @property
    def due_ns(self) -> int:
        batch = self.batches[0]
        return self.owed_ns + max(1_000 * MS, 5 * self.world.plan.models[batch.model].times_ns[batch.size])

    def announce(self) -> None:
        world = self.world
        self.free_at_ns = world.now
        profiles = {index: model.points for index, model in enumerate(world.plan.models)}
        world.core.worker_ready(self.index, profiles, world.now)

    def receive(self, batch: Batch) -> None:
        world = self.world
        records = [world.record(ticket) for ticket in batch.tickets]
        checkers.ran(world, self, batch)
        for record in records:
            world.ready[record.line].pop(record.number)
            record.place = "running"
            world.holders[record.line, record.ticket.slot] = self
        mine = FakeBatch(batch, records)
        if not self.batches:
            self.owed_ns = world.now
        start_ns = max(world.now, self.free_at_ns) if self.batches else world.now
        self.free_at_ns = start_ns + batch.expected_ns
        checkers.ordered(world, batch, self.free_at_ns)
        self.batches.append(mine)
        self.send(lambda: self._take(mine))

    def _take(self, batch: FakeBatch) -> None:
        self._inbox.append(batch)
        self._work()

    def _work(self) -> None:
        if self.busy or not self._inbox:
            return
        world = self.world
        self.busy = True
        batch = self._inbox.pop(0)
        if world.now > batch.latest_start_ns:
            self.later(5_000, lambda: self._done(batch, [ItemStatus.LATE] * len(batch.items)))
            return
        for record, key in batch.items:
            found = world.pixels.get(key)
            require(found == record.number, f"{record} is run on the pixels of {found}")
            record.runs += 1
            require(record.runs <= 2, f"{record} runs a third time")
        if any(record.poison == "worker" for record, _ in batch.items):
            self.die()
            return
        model = world.plan.models[batch.model]
        cost_ns = world.uniform(model.quick_ns[batch.size], model.times_ns[batch.size] + 1)
        fails = "worker_failed" in world.faults
        statuses = [ItemStatus.FAILED if fails and world.chance(0.2) else ItemStatus.OK for _ in batch.items]
        self.later(int(cost_ns * self.factor), lambda: self._done(batch, statuses))

    def _done(self, batch: FakeBatch, statuses: list[ItemStatus]) -> None:
        world = self.world
        for record, key in batch.items:
            world.outputs[key] = record.number
        self.busy = False
        number = batch.number
        if "worker_broken" in world.faults and world.chance(0.05):
            number += 1
        elif "worker_broken" in world.faults and world.chance(0.05):
            statuses = [*statuses, ItemStatus.OK]
        self.tell(lambda: self._report(batch, number, statuses))
        self._work()

    def _report(self, batch: FakeBatch, number: int, statuses: list[ItemStatus]) -> None:
        world = self.world
        if number != batch.number or len(statuses) != len(batch.items):
            require(
                world.core.batch_done(self.index, number, statuses, world.now) is None, "a senseless reply is believed"
            )
            self.break_protocol()
            return
        world.note("ran", number, *statuses)
        require(self.batches.pop(0) is batch, "the fake worker answers out of order")
        self.owed_ns = world.now
        staged = self.batches[0] if self.batches else None
        self.free_at_ns = world.now + (staged.expected_ns if staged else 0)
        for (record, key), status in zip(batch.items, statuses, strict=True):
            world.holders.pop(key)
            record.status = status
            if status is ItemStatus.LATE:
                world.becomes_ready(record)
            elif not record.gone:
                record.place = "done" if status is ItemStatus.OK else "failed"
        done = world.core.batch_done(self.index, number, statuses, world.now)
        require(done is not None and done.number == number, "a right reply is not believed")

    def bury(self) -> None:
        world = self.world
        batches, self.batches, self._inbox = self.batches, [], []
        for place, batch in enumerate(batches):
            for record, _ in batch.items:
                record.worker_deaths += 1 if place == 0 or self.muted else 0
                world.becomes_ready(record)
        world.core.worker_lost(self.index, world.now)
