"""The clients of the virtual machine room, and the front that takes what they send: headers, bodies, then images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import errors
from gateway.scheduling.blame import CONVICTION_NS, CONVICTIONS_MAX
from gateway.scheduling.ticket import TENSOR
from tests.support import checkers
from tests.support.checkers import require
from tests.support.plan import MS, POISONS
from tests.support.record import Record

if TYPE_CHECKING:
    from gateway.scheduling.line import Line
    from gateway.scheduling.ticket import Body, Ticket
    from tests.support.world import World


class Request:
    """What one client asks for. `parts`: (offset, size, encoding or TENSOR) each."""

    def __init__(self, service: int, priority: int, deadline_ns: int, client: str | None) -> None:
        self.service = service
        self.priority = priority
        self.deadline_ns = deadline_ns
        self.client = client
        self.expendable = False
        self.parts: list[tuple[int, int, int | None]] = []


class Clients:
    """All of them, and what the front does for each."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.convictions: dict[str | None, list[int]] = {}
        """When images of a client were convicted."""

    def arrive(self, service: int, *, deadline_ns: int | None = None) -> None:
        """A request's headers are here: precheck, then room for its body, then its body, then its tickets.

        One with a deadline of its own has no client, and no class.
        """
        world, draw, plan = self.world, self.world.draw, self.world.plan
        world.arrived_ns = world.now
        line = world.served(service)
        priority, client = 0, None
        if deadline_ns is None:
            tight = world.chance(plan.tight_share)
            duration_ns = plan.models[service].deadline_ns
            deadline_ns = world.now + int(duration_ns * (draw.uniform(0.05, 0.6) if tight else draw.uniform(0.8, 3)))
            priority = int(world.chance(plan.batch_share))
            client = f"client {draw.randrange(plan.client_count)}" if plan.client_count else None
        request = Request(service, priority, deadline_ns, client)
        request.expendable = "shadow" in world.faults and world.chance(0.2)
        total = self._draw_parts(request)
        if line is None:
            world.count("pre_unknown")
            return
        try:
            self._precheck(line, request, total)
            body = world.core.allocate_body(total + draw.choice((0, 1000)))
        except errors.Refusal as refusal:
            world.note("refused", refusal.code)
            world.count(f"pre_{refusal.code}")
            return
        at = body.region.offset
        request.parts = [(at + offset, size, encoding) for offset, size, encoding in request.parts]
        reading_ns = world.uniform(0, draw.choice((2, 2, 40)) * MS)
        world.after(reading_ns, lambda: self._submit(line, body, request))

    def _draw_parts(self, request: Request) -> int:
        world, draw, plan = self.world, self.world.draw, self.world.plan
        images = draw.randint(2, 12) if world.chance(plan.many_share) else 1
        tensor = world.chance(plan.tensor_share)
        total = 0
        for _ in range(images):
            large = world.chance(plan.large_share)
            size = world.uniform(1_500_000, 4_000_000) if large else world.uniform(0, 60_000) * (draw.random() < 0.99)
            request.parts.append((total, size, TENSOR if tensor else draw.randint(0, 1)))
            total += size
        return total

    def _precheck(self, line: Line, request: Request, size: int) -> None:
        world = self.world
        times_ns = [at_ns for at_ns in self.convictions.get(request.client, []) if at_ns > world.now - CONVICTION_NS]
        banned = request.client is not None and len(times_ns) >= CONVICTIONS_MAX
        try:
            world.core.precheck(
                line, request.deadline_ns, world.now, priority=request.priority, size=size, client=request.client
            )
        except errors.RateLimited:
            require(banned, f"{request.client} is refused after {len(times_ns)} convictions")
            raise
        except errors.ModelNotReady:
            checkers.not_ready(world, line)
            raise
        finally:
            world.touch()
        require(not banned, f"{request.client} goes on after {len(times_ns)} convictions")

    def _submit(self, line: Line, body: Body, request: Request) -> None:
        world, draw = self.world, self.world.draw
        cancels = "cancel" in world.faults
        last_offset, last_size, _ = request.parts[-1]
        try:
            if cancels and world.chance(0.1):
                return
            if body.region.size > last_offset + last_size - body.region.offset > 0:
                body.shrink(last_offset + last_size - body.region.offset)
            tickets = self._accepted(line, body, request)
        except errors.Refusal as refusal:
            world.note("refused", refusal.code)
            world.count(f"submit_{refusal.code}")
            return
        finally:
            body.release()
            world.touch()
        if not tickets:
            return
        for ticket, (_, _, encoding) in zip(tickets, request.parts, strict=True):
            self._keep(ticket, request, tensor=encoding is TENSOR)
        if cancels and world.chance(0.4):
            wait_ns = world.uniform(0, draw.choice((1, 5, 40)) * MS)
            world.after(wait_ns, lambda: self._leave([world.records[ticket.number] for ticket in tickets]))

    def _accepted(self, line: Line, body: Body, request: Request) -> list[Ticket]:
        """A line that was closed while the body came takes nothing: its successor does, if there is one."""
        world = self.world
        if line.closed and world.chance(0.5):
            try:
                self._offer(line, body, request)
            except errors.Refusal:
                pass
            else:
                require(condition=False, text="a closed line takes images")
        if line.closed:
            successor = world.served(request.service)
            world.count("resolved_again")
            if successor is None:
                return []
            line = successor
        try:
            tickets = self._offer(line, body, request)
        except errors.ModelNotReady:
            checkers.not_ready(world, line)
            raise
        checkers.accepted(world, line)
        world.note("submit", line.index, request.deadline_ns, *(ticket.number for ticket in tickets))
        return tickets

    def _offer(self, line: Line, body: Body, request: Request) -> list[Ticket]:
        return self.world.core.submit(
            line,
            body,
            request.parts,
            priority=request.priority,
            deadline_ns=request.deadline_ns,
            top_k=5,
            now_ns=self.world.now,
            client=request.client,
            expendable=request.expendable,
        )

    def _keep(self, ticket: Ticket, request: Request, *, tensor: bool) -> None:
        world = self.world
        claim = (request.priority, ticket.due_ns, ticket.number)
        record = Record(ticket, ticket.line.index, claim, request.deadline_ns, world.now)
        world.records[ticket.number] = world.live[ticket.number] = record
        record.tensor = tensor
        if "decoder_poison" in world.faults and world.chance(0.05):
            record.poison = "decoder"
        if "worker_poison" in world.faults and world.chance(world.plan.poison_share):
            record.poison = world.draw.choice(POISONS)
            if world.chance(0.4):
                record.digest = b"the same %d" % world.draw.randrange(2)

    def _leave(self, records: list[Record]) -> None:
        """The client hangs up."""
        for record in records:
            self.cancel(record)

    def cancel(self, record: Record) -> None:
        world = self.world
        world.note("cancel", record.number, record.place)
        world.count(f"cancel_{record.place}")
        if record.answer is None:
            record.cancelled = True
        world.over(record)
        world.core.cancel(record.ticket, world.now)
        world.touch()
