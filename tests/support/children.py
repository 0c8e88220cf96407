"""What all fake children of the virtual machine room have in common, and the decoders; see `workers` for the others.

One object for each index, across its incarnations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import errors
from gateway.scheduling.ticket import Role
from tests.support import checkers
from tests.support.checkers import require
from tests.support.plan import MS, S

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.scheduling.ticket import Body, Ticket
    from tests.support.record import Record
    from tests.support.world import World


class FakeChild:
    """A process that starts, works in order, hangs, and dies. Everything that it had dies with it.

    `alive`: the process runs. `exists`: it was not reaped yet. `announced`: the core was told that it is ready.
    `muted`: it broke the protocol, and nothing more is read from it. `condemned`: the core asked for its death.
    """

    role: Role

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.incarnation = 0
        self.alive = self.exists = self.announced = self.muted = self.condemned = self.hung = self.busy = False
        self.crashed = self.stuck = False
        self.killed_ns = 0
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
        require(not self.exists, f"{self} is started beside itself")
        self.incarnation += 1
        self.alive = self.exists = True
        self.announced = self.muted = self.condemned = self.hung = self.busy = self.crashed = self.stuck = False
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
        """SIGSTOP; somebody looks for such children now and then."""
        self.hung = True
        self._look_later(self.incarnation)

    def _look_later(self, incarnation: int) -> None:
        self.world.after(self.world.uniform(500 * MS, 1000 * MS), lambda: self._look(incarnation))

    def _look(self, incarnation: int) -> None:
        if self.alive and self.hung and self.incarnation == incarnation:
            self.world.core.stopped(self.role, self.index, self.world.now)
            self.world.touch()
            self._look_later(incarnation)

    def slow(self) -> None:
        self.factor = self.world.draw.choice((3.0, 10.0, 40.0))

    def heal(self) -> None:
        """No fault from here on. One that hangs without work is killed: nobody could ever have noticed."""
        self.factor = 1.0
        if self.hung and self.announced and not self.owes:
            self.die()

    def kill(self) -> None:
        """SIGKILL by the driver."""
        self.condemned = True
        self.killed_ns = self.world.now
        self.die()

    def die(self) -> None:
        """The process runs no more; the driver hears of it a little later, after its last words, or much later."""
        if self.alive:
            self.alive = False
            self.world.note("died", self.role.value, self.index)
            stuck = f"{self.role.value}_stuck" in self.world.faults and self.world.chance(0.4)
            delay_ns = self.world.uniform(MS, 12 * S) if stuck else self.world.uniform(100_000, 3 * MS)
            if not stuck:
                self.tell(self._close)
            self.world.after(delay_ns, self._bury)

    def _close(self) -> None:
        """Its socket is closed, behind its last words."""
        self.world.note("gone", self.role.value, self.index)
        self.condemned = True
        self.killed_ns = self.world.now
        self.world.core.gone(self.role, self.index, self.world.now)

    def crash(self) -> None:
        """A death by its own fault."""
        self.crashed = self.crashed or self.alive
        self.die()

    def _bury(self) -> None:
        self.announced = self.exists = self.stuck = False
        self.world.note("lost", self.role.value, self.index)
        self.world.holders = {key: child for key, child in self.world.holders.items() if child is not self}
        self.bury()
        self.world.touch()

    def bury(self) -> None:
        raise NotImplementedError

    def break_protocol(self) -> None:
        """The driver found nonsense in a message."""
        self.muted = True
        self.condemned = True
        self.killed_ns = self.world.now
        self.world.core.broken(self.role, self.index, "broke the protocol", self.world.now)


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
        if not refused:
            refusal = world.refusal(record)
        require(world.core.decoded(self.index, number, refusal, cost_ns, world.now), f"{record} is not known")
        if refusal is None:
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
