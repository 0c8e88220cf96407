"""What must hold in every world. Each check is a function of the world's own records, never of the core's.

The records are kept by the fakes that play the driver and the children: who physically holds which slot, which images
are decoded, how often a ticket ran, when each worker was last known to be free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import errors
from gateway.scheduling.feeder import DEPTH_NS, TINY_NS
from gateway.scheduling.restarts import STUCK_NS
from gateway.scheduling.ticket import Role
from shm.arena import SlotState
from shm.wire import ItemStatus
from tests.support.plan import ALIBIS, POISONS

if TYPE_CHECKING:
    from gateway.errors import Refusal
    from gateway.scheduling.line import Line
    from gateway.scheduling.ticket import Batch, Ticket
    from tests.support.children import FakeChild
    from tests.support.record import Record
    from tests.support.workers import FakeWorker
    from tests.support.world import World

LATE_NS = 5_000_000
"""An answer may come this long after its deadline: one late timer and one late pump."""


CRASHES_MAX, DEATHS_MAX = 2, 5
"""Workers that one image may crash, and that may die around it in any way."""


class Violation(AssertionError):
    """The core broke a promise."""


def require(condition: object, text: str) -> None:
    if not condition:
        raise Violation(text)


def slot_granted(world: World, ticket: Ticket) -> None:
    """A slot is given out: nobody may hold its bytes, and no live ticket may own it."""
    key = ticket.line.index, ticket.slot
    record = world.record(ticket)
    require(0 <= ticket.slot < ticket.line.arena.count, f"slot {key} does not exist")
    require(key not in world.holders, f"slot {key} is granted while {world.holders.get(key)} holds it")
    owner = world.owners.get(key)
    require(owner is None or owner.gone, f"slot {key} is granted while {owner} owns it")
    require(record.place == "waiting", f"{record} is granted a slot")


def sent(world: World, child: FakeChild, tickets: list[Ticket]) -> None:
    """A frame for a decoder: bounded, of images only, to a decoder that said it was ready."""
    require(0 < len(tickets) <= world.plan.frame_count_max, f"a frame of {len(tickets)} images")
    require(child.announced and not child.condemned, f"work for {child}, which is not ready or was to be killed")
    for ticket in tickets:
        require(not world.record(ticket).tensor, "a tensor goes to a decoder")
        require(world.record(ticket).attempts < 3, "an image goes to a fourth decoder")
        require(ticket.body is not None and ticket.body._holders > 0, "an image is sent without its bytes")


def ran(world: World, child: FakeWorker, batch: Batch) -> None:
    """A batch for a worker: one model, a warmed size, at most two at a time, each ticket live, decoded and in time."""
    times_ns = world.models[batch.line.index].times_ns
    require(child.announced and not child.condemned, f"work for {child}, which is not ready or was to be killed")
    require(len(child.batches) < 2, f"a third batch for {child}")
    require(batch.line.index in child.takes, f"{child} does not have model {batch.line.index}, or has it no more")
    require(batch.size < world.too_large.get(batch.line.index, batch.size + 1), f"size {batch.size} did not fit before")
    require(all(ticket.line is batch.line for ticket in batch.tickets), "a batch mixes lines")
    require(batch.size in times_ns, f"size {batch.size} was never warmed")
    require(0 < len(batch.tickets) <= batch.size, f"{len(batch.tickets)} tickets at size {batch.size}")
    earliest_ns = min(world.record(ticket).deadline_ns for ticket in batch.tickets)
    lead_ns = world.models[batch.line.index].leads_ns[batch.size]
    start_ns = max(world.now + lead_ns, child.free_at_ns) if child.batches else world.now + lead_ns
    require(batch.expected_ns >= times_ns[batch.size] // 3, f"size {batch.size} is expected in {batch.expected_ns} ns")
    expected_ns = batch.expected_ns
    if len(batch.tickets) == 1 and start_ns + expected_ns > earliest_ns:
        # Expected to be late, and tried all the same, as the quickest batch would be in time.
        expected_ns = core_least_ns(world, child, batch)
    late_ns = start_ns + expected_ns - earliest_ns
    require(late_ns <= 0, f"a batch is sent to answer {late_ns} ns too late")
    require(batch.latest_start_ns + expected_ns <= earliest_ns, "the batch's latest start is too late")
    for ticket in batch.tickets:
        record = world.record(ticket)
        require(record.line == batch.line.index, f"{record} runs on another model")
        require(not record.deaths or len(batch.tickets) == 1, f"{record} shares a batch after {record.deaths} deaths")
        require(record.crashes < CRASHES_MAX, f"{record} runs after {record.crashes} crashes")
        require(record.deaths < DEATHS_MAX, f"{record} runs after {record.deaths} deaths")
        require(not (record.expendable and record.deaths), f"{record} is expendable, and runs again")
        require(not record.convicted, f"{record} is convicted and runs")
        require(record.place == "ready", f"{record} is run")
        key = batch.line.index, ticket.slot
        require(key not in world.holders, f"slot {key} is run while {world.holders.get(key)} holds it")
        require(world.owners.get(key) is record, f"slot {key} is run for another ticket")
    require(len({ticket.slot for ticket in batch.tickets}) == len(batch.tickets), "a slot is twice in a batch")


def core_least_ns(world: World, child: FakeWorker, batch: Batch) -> int:
    """What the quickest batch took that this worker ever ran of the model."""
    times_ns = world.models[batch.line.index].quick_ns
    least_ns = world.core.worker(child.index).profiles[batch.line.index].least_ns
    require(least_ns >= min(times_ns.values()) // 3, f"a batch is believed to take {least_ns} ns")
    return least_ns


def ordered(world: World, child: FakeWorker, batch: Batch, end_ns: int) -> None:
    """Within a class earliest due first; real time first, unless what goes before it is due even earlier; and before
    all of them who was there when a worker died.
    """
    records = [world.record(ticket) for ticket in batch.tickets]
    taken = [record.claim for record in records]
    waiting = world.ready[batch.line.index].values()
    if records[0].deaths:
        left = [record.claim[1:] for record in waiting if record.deaths and record.deadline_ns >= end_ns]
        require(all(taken[0][1:] <= claim for claim in left), f"{records[0]} overtakes another suspect")
        return
    for index in child.takes:
        slowest_ns = max(world.core.worker(child.index).profiles[index].times_ns.values())
        suspects = [record for record in world.ready[index].values() if record.deaths]
        kept = [record for record in suspects if record.deadline_ns >= world.now + slowest_ns]
        require(not kept, f"{kept} wait while {child} takes others")
    left = [record.claim for record in waiting if not record.deaths and record.deadline_ns >= end_ns]
    for priority, *_ in set(taken):
        last = max(claim for claim in taken if claim[0] == priority)
        best = min((claim for claim in left if claim[0] <= priority), key=lambda claim: claim[1:], default=last)
        require(last[1:] <= best[1:], f"a batch overtakes a ticket of {best} with one of {last}")


def answered(world: World, record: Record, refusal: Refusal | None) -> None:
    """An answer: the only one, to somebody who is still there, in time, and for a reason that really happened."""
    require(record.answer is None, f"{record} is answered twice")
    require(not record.cancelled, f"{record} was cancelled and is answered")
    limit_ns = max(record.deadline_ns, record.submitted_ns) + LATE_NS
    require(world.now <= limit_ns, f"{record} is answered {world.now - record.deadline_ns} ns after its deadline")
    if refusal is None:
        require(record.place == "done", f"{record} succeeds without a result")
        key = record.line, record.ticket.slot
        require(world.owners.get(key) is record, f"{record} reads slot {key} of another ticket")
        require(world.outputs.get(key) == record.number, f"{record} reads the output of {world.outputs.get(key)}")
    elif isinstance(refusal, errors.DeadlineExceeded):
        _late_for_a_reason(world, record)
        excused = world.plan.faults or not world.plan.is_roomy
        require(excused, f"a promise was broken without any fault: {record}")
    elif isinstance(refusal, errors.UndecodableImage):
        blamed = record.refused or record.guilty or record.decoder_deaths >= 2
        require(blamed, f"{record} is called undecodable without a cause")
    elif isinstance(refusal, errors.WorkerLost):
        deaths_max = 1 if record.expendable else DEATHS_MAX
        require(record.deaths >= deaths_max, f"{record} lost {record.deaths} workers")
    elif isinstance(refusal, errors.Poisoned):
        guilty = record.poison in POISONS or world.plan.faults & ALIBIS or record.convicted
        require(guilty, f"{record} is innocent, and is called poisoned")
        require(record.convicted or record.crashes >= CRASHES_MAX, f"{record} is convicted of {record.crashes} crashes")
    elif isinstance(refusal, errors.InferenceFailed):
        failed = record.status in (ItemStatus.FAILED, ItemStatus.NO_MEMORY)
        require(failed, f"{record} failed without failing")
    else:
        raise Violation(f"{record} is refused with {refusal.code}")


def _late_for_a_reason(world: World, record: Record) -> None:
    """A 504 before the deadline: the worker said LATE, or no batch that may now be formed is quick enough."""
    if record.status is ItemStatus.LATE or world.now >= record.deadline_ns:
        return
    require(record.place == "ready", f"{record} is late before its deadline")
    busy_ns = max([child.free_at_ns - world.now for child in world.workers.values() if child.batches], default=0)
    spare_ns = record.deadline_ns - world.now - max(0, busy_ns)
    profiles = [worker.profiles for worker in world.core.workers if record.line in worker.profiles]
    believed = [each[record.line].times_ns for each in profiles]
    slowest_ns = max(max(times_ns.values()) for times_ns in (world.models[record.line].times_ns, *believed))
    slowest_ns += max(world.models[record.line].leads_ns.values())
    require(spare_ns < slowest_ns, f"{record} is late with {spare_ns} ns to spare")


def timer(world: World) -> None:
    """After `advance`: the next wake lies ahead (no busy spin), and there is one while anybody waits."""
    wake_ns = world.core.wake_at_ns()
    waits = any(record.place != "over" for record in world.live.values())
    require(wake_ns is not None or not waits, "somebody waits and no timer is set")
    require(wake_ns is None or wake_ns > world.now, "the timer is set for now or earlier")
    for child in (*world.workers.values(), *world.decoders):
        if child.exists and child.condemned and not child.stuck:
            limit_ns = child.killed_ns + STUCK_NS
            require(wake_ns is not None and wake_ns <= limit_ns, f"nobody watches whether {child} is gone")
        if child.announced and not child.condemned and child.owes:
            require(wake_ns is not None and wake_ns <= child.due_ns, f"nobody watches whether {child} hangs")
    if wake_ns is not None and world.live:
        soonest_ns = min(record.deadline_ns for record in world.live.values())
        require(wake_ns <= soonest_ns, "the timer is set past a deadline")
        require(soonest_ns > world.now, "somebody is kept waiting past its deadline")


def busy(world: World) -> None:
    """Nobody idles beside work: a free worker and a decoded image, a free decoder and a small image with a slot."""
    core = world.core
    idle = [child for child in world.workers.values() if child.announced and not child.condemned and not child.batches]
    for line in core.lines:
        index, model = line.index, world.models[line.index]
        limit_ns = world.now - model.window_ns - (LATE_NS if model.window_ns else 0)
        able = [child for child in idle if index in child.takes]
        suspects = [record for record in world.ready[index].values() if record.deaths]
        require(not (able and suspects), f"{suspects} wait beside {able}")
        if able and len(world.ready[index]) == len(world.live):
            # With others on their way it may be held back for their sake; the batch class also for those who may come.
            ready = [record for record in world.ready[index].values() if record.claim[0] == 0 or world.is_quiet]
            stuck = [record for record in ready if record.ready_ns <= limit_ns]
            require(not stuck, f"{stuck} wait beside {able}")
            # Beside the batch class each may wait for the other's sake, for a moment.
            mixed = any(record.claim[0] for record in world.ready[index].values())
            require(mixed or len(ready) < line.pace.size, "a full batch waits")
        if len(line.small) and line.arena.free_count:
            lazy = [child for child in world.decoders if child.announced and not child.condemned and not child.held]
            *others, spare = core.feeder.decoders
            tiny = line.small.peek().cost_ns < TINY_NS
            if tiny and any(decoder.ready and decoder.cost_ns < DEPTH_NS for decoder in others):
                lazy = [child for child in lazy if child.index != spare.index]
            require(not lazy, f"an image waits beside {lazy}")


def started(world: World, child: FakeWorker) -> None:
    """A worker is started: never more often than is allowed, and not while one is there whose place it takes."""
    plan, starts_ns = world.plan, child.starts_ns
    restarts_ns = [*starts_ns[1:], world.now] if starts_ns else []
    if plan.restarts_max and len(restarts_ns) > plan.restarts_max:
        span_ns = restarts_ns[-1] - restarts_ns[-1 - plan.restarts_max]
        require(
            span_ns >= plan.restarts_window_ns - LATE_NS,
            f"{child} is restarted {plan.restarts_max + 1} times within {span_ns} ns",
        )
    before = [world.workers[index] for index in world.operator.predecessors.get(child.index, [])]
    beside = [each for each in before if each.exists]
    require(not beside, f"{child} is started beside {beside}, whose place it takes")


def interrupted(world: World, child: FakeWorker) -> None:
    """A worker is asked to give up what it runs: just when that has taken too long, and once."""
    require(child.announced and not child.condemned, f"{child} is interrupted, which is not ready or was to be killed")
    require(bool(child.batches), f"{child} is interrupted and runs nothing")
    require(child.interrupted_ns is None, f"{child} is interrupted twice")
    early_ns = child.due_ns - world.now
    require(-LATE_NS <= early_ns <= 0, f"{child} is interrupted {early_ns} ns too early")


def killed(world: World, child: FakeChild, reason: str) -> None:
    """A child is killed for a reason that is true."""
    if reason == "stopped":
        require(child.hung, f"{child} is killed as stopped, and was not")
        require(child.role is Role.DECODER or not child.owes, f"{child} is killed before its time is over")
    elif child.role is Role.WORKER and reason == "hung":
        require(child.interrupted_ns is not None, f"{child} is killed as hung, and was not interrupted")
        early_ns = child.due_ns - world.now
        require(-LATE_NS <= early_ns <= 0, f"{child} is killed {early_ns} ns too early")
    elif child.role is Role.WORKER and reason == "retired":
        require(child.finish is not None, f"{child} is killed as retired, and was not")
        require(not child.batches, f"{child} is killed with {len(child.batches)} batches")
        left = _left_for(world, child)
        require(not left, f"{child} is killed with {left} left to do")


def _left_for(world: World, child: FakeWorker) -> list[Record]:
    """What waits for a retired worker."""
    assert child.finish is not None
    wanted = child.finish & child.loaded
    return [record for record in world.live.values() if record.line in wanted and record.waits]


def seen_off(world: World) -> None:
    """A retired worker that is up and has nothing left to do was killed."""
    for worker in world.core.workers:
        child = world.workers[worker.index]
        if child.finish is None or child.condemned or child.batches or _left_for(world, child):
            continue
        require(not child.announced, f"{child} is retired, has nothing to do, and lives")


def is_stuck(world: World, child: FakeChild) -> None:
    """A child is given up on: it was killed so long ago, and is not gone."""
    require(child.exists and child.condemned, f"{child} is called stuck, and is gone or was not killed")
    early_ns = child.killed_ns + STUCK_NS - world.now
    require(-LATE_NS <= early_ns <= LATE_NS, f"{child} is called stuck {early_ns} ns too early")


def not_ready(world: World, line: Line) -> None:
    """A model is refused as not being served: there is really nobody."""
    if line.closed or not any(decoder.announced and not decoder.condemned for decoder in world.decoders):
        return
    up = [child for child in world.workers.values() if line.index in child.takes and not child.condemned]
    require(not up, f"model {line.index} is refused beside {up}")


def accepted(world: World, line: Line) -> None:
    """Images are accepted: there is somebody who could run them, or comes back who could."""
    require(not line.closed, "a closed line takes images")
    able = [world.workers[worker.index] for worker in world.core.workers if line.index in worker.models]
    able = [child for child in able if not child.stuck and (child.finish is None or line.index in child.finish)]
    require(bool(able), f"images are accepted for model {line.index}, which nobody has")


def is_empty(world: World, line: Line) -> bool:
    """Whether a line has nothing left, as the core says too."""
    held = any(key[0] == line.index for key in world.holders)
    empty = not held and not any(r.line == line.index and not r.gone for r in world.records.values())
    if world._dirty and not empty:
        return False  # its last answers are given, and wait for the driver's turn
    require(world.core.is_empty(line) == empty, f"model {line.index} is empty: {empty}, and the core says otherwise")
    return empty


def bounded(world: World) -> None:
    """Bounds that hold at any time."""
    core = world.core
    require(core.live_count == len(world.live), f"live_count {core.live_count} of {len(world.live)}")
    dead_max = 65 + sum(line.queue_max + 2 * line.arena.count for line in core.lines)
    for line in core.lines:
        require(0 <= len(line.dues) <= line.queue_max + line.arena.count, f"{len(line.dues)} promised")
        for queue in (line.small, line.large, line.ready, line.ready_batch, core._ledger._deadlines):
            require(len(queue) >= 0 and len(queue._heap) - len(queue) <= dead_max, "dead entries pile up")


def empty(world: World) -> None:
    """At the end nobody waits, nobody holds anything, and nothing is left behind."""
    core = world.core
    require(not world.live, f"{len(world.live)} tickets were never answered: {list(world.live.values())[:3]}")
    require(core.live_count == 0, f"live_count is {core.live_count}")
    require(core.bodies.held_size == 0, f"{core.bodies.held_size} bytes of bodies leak")
    require((core.bodies._starts, core.bodies._ends) == ([0], [core.bodies.size]), "bodies are not one free range")
    require(len(core._ledger._deadlines) == 0, "a deadline is left")
    for line in core.lines:
        free = sum(line.arena.state(slot) is SlotState.FREE for slot in range(line.arena.count))
        require(free == line.arena.count == line.arena.free_count, f"slots leak: {line.arena.statistics()}")
        require((line.dues, line.batch_count) == ([], 0), f"promised: {line.dues}")
        for queue in (line.small, line.large, line.ready, line.ready_batch):
            require(len(queue) == 0 and queue.peek() is None, "a queue is not empty")
    for decoder in core.feeder.decoders:
        require(not decoder.held, "a decoder holds an image")
        require((decoder.cost_ns, decoder.large_count, decoder.due_ns) == (0, 0, 0), "a decoder is owed work")
    require(not any(worker.batches for worker in core.workers), "a worker holds a batch")
    closed = [line.index for line in core.lines if line.closed]
    require(not closed, f"lines {closed} were closed, and are left")
    there = {worker.index for worker in core.workers}
    wanted = {index for index in world.operator.seats.values() if index is not None}
    require(there == wanted, f"workers {there} are left, and {wanted} are wanted")
    beside = [child for child in world.workers.values() if child.exists and child.index not in wanted]
    require(not beside, f"{beside} are left")
    require(not core.blame.accused, "somebody is accused and never tried")
