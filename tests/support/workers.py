"""Fake workers for the virtual machine room: they run batches in order, hang, crash, are interrupted, and die."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.scheduling.placement import HANG_FACTOR, HANG_NS_MIN
from gateway.scheduling.ticket import Role
from gateway.scheduling.watch import GRACE_NS
from shm.wire import ItemStatus
from tests.support import checkers
from tests.support.checkers import require
from tests.support.children import FakeChild
from tests.support.plan import MS, POISONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.scheduling.ticket import Batch
    from tests.support.record import Record
    from tests.support.world import World

HANG_BOUND_NS = HANG_NS_MIN, HANG_FACTOR
"""As they are, whatever bug was planted there."""


class FakeBatch:
    """A batch as its worker sees it. `started`: the driver knows that it runs."""

    def __init__(self, batch: Batch, records: list[Record], *, started: bool) -> None:
        self.number = batch.number
        self.model = batch.line.index
        self.size = batch.size
        self.expected_ns = batch.expected_ns
        self.expected_ready_ns = 0
        self.latest_start_ns = batch.latest_start_ns
        self.begun = False
        """Whether it has left the queue: it will not be late any more."""
        self.prepared_ns = 0
        """When its device has its pixels."""
        self.items = [(record, (record.line, record.ticket.slot)) for record in records]
        self.started = started


class FakeWorker(FakeChild):
    """Looks for each image's number in its slot, and leaves it in the output slot."""

    role = Role.WORKER

    def __init__(self, world: World, index: int, seat: int, models: frozenset[int]) -> None:
        super().__init__(world, index)
        self.seat = seat
        self.models = models
        self.takes: frozenset[int] = frozenset()
        """Models that it has loaded, and may be given."""
        self.loaded: frozenset[int] = frozenset()
        """Models that it, or whose heir it is, had when it was up last."""
        self.finish: frozenset[int] | None = None
        """Of a retired one: all that it may still be given."""
        self.starts_ns: list[int] = []
        self.batches: list[FakeBatch] = []
        """Sent and not answered, as the driver knows it."""
        self.free_at_ns = 0
        self.interrupted_ns: int | None = None
        """When it was asked to give up; None unless it owes the answer."""
        self._inbox: list[FakeBatch] = []
        self._current: FakeBatch | None = None
        self._spins = False

    @property
    def owes(self) -> bool:
        return bool(self.batches)

    @property
    def due_ns(self) -> int:
        """When the core must do something about what it runs."""
        if self.interrupted_ns is not None:
            return self.interrupted_ns + GRACE_NS
        least_ns, factor = HANG_BOUND_NS
        return self.owed_ns + max(least_ns, factor * self.batches[0].expected_ns)

    def spawn(self) -> None:
        world = self.world
        checkers.started(world, self)
        super().spawn()
        self.starts_ns.append(world.now)
        self.takes = frozenset()
        self.interrupted_ns, self._current, self._spins = None, None, False
        self.later(world.uniform(0, MS), lambda: self.tell(self._load))

    def _load(self) -> None:
        if not self.announced:
            self.world.core.worker_loading(self.index, self.world.now)

    def announce(self) -> None:
        world = self.world
        self.free_at_ns = world.now
        profiles = {index: world.models[index].points for index in self.models if index not in world.bad_lines}
        if not self.condemned:
            kept = frozenset(profiles) if self.finish is None else self.finish & self.loaded & frozenset(profiles)
            self.takes = self.loaded = kept
        world.core.worker_ready(self.index, profiles, world.now)

    # -- batches -------------------------------------------------------------------------------------------------

    def receive(self, batch: Batch) -> None:
        world = self.world
        records = [world.record(ticket) for ticket in batch.tickets]
        checkers.ran(world, self, batch)
        for record in records:
            world.ready[record.line].pop(record.number)
            record.place = "running"
            world.holders[record.line, record.ticket.slot] = self
        mine = FakeBatch(batch, records, started=not self.batches)
        if not self.batches:
            self.owed_ns = world.now
        start_ns = world.now + world.models[mine.model].leads_ns[batch.size]
        if self.batches:
            start_ns = max(start_ns, self.free_at_ns)
        mine.expected_ready_ns = world.now + world.models[mine.model].leads_ns[batch.size]
        self.free_at_ns = start_ns + batch.expected_ns
        checkers.ordered(world, self, batch, self.free_at_ns)
        self.batches.append(mine)
        self.send(lambda: self._take(mine))

    def _take(self, batch: FakeBatch) -> None:
        self._inbox.append(batch)
        if self.busy and self._current is not None and self._overlaps(batch):
            # Gathered and copied beside the one that runs, unless that seems to take too long.
            head = self._current
            if max(self.world.now, head.prepared_ns + head.expected_ns) <= batch.latest_start_ns:
                self._prepare(batch)
                self.world.count("overlapped")
        self._work()

    def _overlaps(self, batch: FakeBatch) -> bool:
        return self.world.models[batch.model].leads_ns[batch.size] > 0

    def _prepare(self, batch: FakeBatch) -> None:
        """Its pixels are on their way: from now on it runs in its turn."""
        batch.begun = True
        lead_ns = self.world.models[batch.model].leads_ns[batch.size]
        batch.prepared_ns = self.world.now + int(self.world.uniform(lead_ns // 2, lead_ns + 1) * self.factor)

    def _work(self) -> None:
        if self.busy or not self._inbox:
            return
        world = self.world
        self.busy = True
        batch = self._current = self._inbox.pop(0)
        if not batch.begun and world.now > batch.latest_start_ns:
            self.later(5_000, lambda: self._done(batch, ItemStatus.LATE))
            return
        for record, key in batch.items:
            found = world.pixels.get(key)
            require(found == record.number, f"{record} is run on the pixels of {found}")
        model = world.models[batch.model]
        if "worker_memory" in world.faults and batch.size > model.fits_size:
            self.later(20_000, lambda: self._done(batch, ItemStatus.NO_MEMORY))
            return
        poison = next((record.poison for record, _ in batch.items if record.poison in POISONS), "")
        if poison:
            world.count(f"poison_{poison}")
            act = {"crash": self.crash, "kill": self.die, "stop": self.hang, "spin": self.spin}[poison]
            self.later(world.uniform(0, MS), act)
            return
        if not batch.begun and self._overlaps(batch):
            self._prepare(batch)
        waits_ns = max(0, batch.prepared_ns - world.now)
        batch.prepared_ns = max(batch.prepared_ns, world.now)
        cost_ns = world.uniform(model.quick_ns[batch.size], model.times_ns[batch.size] + 1)
        lost = "worker_device" in world.faults and world.chance(0.1)
        status = ItemStatus.DEVICE_LOST if lost else ItemStatus.OK
        self.later(waits_ns + int(cost_ns * self.factor), lambda: self._done(batch, status))

    def _done(self, batch: FakeBatch, status: ItemStatus) -> None:
        """It has a status for all, except that some of many may have failed."""
        if self._current is not batch or (self._spins and status is ItemStatus.OK):
            return
        world = self.world
        statuses = [status] * len(batch.items)
        if status is ItemStatus.OK and "worker_failed" in world.faults:
            statuses = [ItemStatus.FAILED if world.chance(0.2) else status for status in statuses]
        for record, key in batch.items:
            world.outputs[key] = record.number
        self._current, self.busy = None, False
        number = batch.number
        if "worker_broken" in world.faults and world.chance(0.05):
            number += 1
        elif "worker_broken" in world.faults and world.chance(0.05):
            statuses = [*statuses, ItemStatus.OK]
        self.tell(lambda: self._report(batch, number, statuses))
        if status is ItemStatus.DEVICE_LOST:
            self.crash()
        self._work()

    def _report(self, batch: FakeBatch, number: int, statuses: Sequence[ItemStatus]) -> None:
        world = self.world
        if number != batch.number or len(statuses) != len(batch.items):
            known = world.core.batch_done(self.index, number, statuses, world.now)
            require(known is None, "a senseless reply is believed")
            self.break_protocol()
            return
        world.note("ran", number, *statuses)
        require(self.batches.pop(0) is batch, "the fake worker answers out of order")
        first = statuses[0]
        asked, self.interrupted_ns = self.interrupted_ns is not None, None
        self.owed_ns = world.now
        staged = self.batches[0] if self.batches else None
        self.free_at_ns = world.now
        if staged is not None:
            self.free_at_ns = max(world.now, staged.expected_ready_ns) + staged.expected_ns
        if staged is not None:
            staged.started = not self.condemned and first is not ItemStatus.DEVICE_LOST
        if first > ItemStatus.LATE:
            self._gave_up(batch, first, asked=asked)
        for (record, key), status in zip(batch.items, statuses, strict=True):
            world.holders.pop(key)
            record.status = status
            if status >= ItemStatus.LATE:
                world.becomes_ready(record)
            elif not record.gone:
                record.place = "done" if status is ItemStatus.OK else "failed"
        done = world.core.batch_done(self.index, number, statuses, world.now)
        require(done is not None and done.number == number, "a right reply is not believed")
        world.convict()

    def _gave_up(self, batch: FakeBatch, status: ItemStatus, *, asked: bool) -> None:
        """It says why it did not run a batch: what the world makes of that."""
        world = self.world
        world.count(f"gave_up_{status.name.lower()}")
        if status is ItemStatus.NO_MEMORY:
            known = world.too_large.get(batch.model, batch.size)
            if batch.size > min(world.models[batch.model].times_ns):
                world.too_large[batch.model] = min(known, batch.size)
        elif status is ItemStatus.DEVICE_LOST or asked:
            self.strike(batch, crashed=True)
        else:
            world.count("interrupt_misses")

    def strike(self, batch: FakeBatch, *, crashed: bool) -> None:
        """A death, or next to one, in the midst of a batch: each image that is still wanted is under suspicion."""
        for record, _ in batch.items:
            if not record.gone:
                record.deaths += 1
                record.crashes += crashed

    # -- hanging and dying ---------------------------------------------------------------------------------------

    def spin(self) -> None:
        """What it runs, or runs next, never ends."""
        self._spins = True

    def interrupt(self) -> None:
        """SIGUSR1: it gives up what it runs just then, soon, or too late, or not at all."""
        world, batch = self.world, self._current
        checkers.interrupted(world, self)
        self.interrupted_ns = world.now
        delay_ns = world.uniform(0, 100_000)
        if batch is not None and world.chance(0.3) and not any(record.poison for record, _ in batch.items):
            # It is done just then, and the signal meets what is next.
            delay_ns = world.uniform(0, MS)
            self.later(0, lambda: self._end_spin(batch))
        self.later(delay_ns, self._interrupted)

    def _end_spin(self, batch: FakeBatch) -> None:
        self._spins = False
        self._done(batch, ItemStatus.OK)

    def _interrupted(self) -> None:
        world, batch = self.world, self._current
        if batch is None or not world.chance(0.8):
            return
        delay_ns = world.uniform(0, 400 * MS if world.chance(0.2) else 20 * MS)
        self.later(delay_ns, lambda: self._stop_running(batch))

    def _stop_running(self, batch: FakeBatch) -> None:
        if self._current is batch:
            self._spins = False
            self._done(batch, ItemStatus.INTERRUPTED)

    def heal(self) -> None:
        super().heal()
        if self._current is None:
            self._spins = False

    def bury(self) -> None:
        world = self.world
        batches, self.batches, self._inbox = self.batches, [], []
        crashed = self.crashed or self.interrupted_ns is not None
        for batch in batches:
            if batch.started or self.muted:
                self.strike(batch, crashed=crashed)
            for record, _ in batch.items:
                world.becomes_ready(record)
        self.interrupted_ns = None
        self.takes = frozenset()
        world.core.worker_lost(self.index, world.now, guilty=self.crashed)
        world.convict()
