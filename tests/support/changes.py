"""The operator of the virtual machine room: loads, unloads and reloads models while everything else goes on.

Where a successor may start beside its predecessor, traffic moves once all successors are up; where not, one follows the
other, and if that fails the way leads back. Now and then the next change comes before the last one is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.scheduling.line import Line
from tests.support import checkers
from tests.support.checkers import require
from tests.support.plan import MS, S
from tests.support.workers import FakeWorker

if TYPE_CHECKING:
    from gateway.scheduling.placement import WorkerState
    from tests.support.world import World

POLL_NS = 2 * MS
PATIENCE_NS = 2 * S
DEATHS_MAX = 3


class Change:
    """One that is in progress: from which lines and workers to which."""

    def __init__(self, target: dict[int, int | None], *, overlap: bool, until_ns: int) -> None:
        self.target = target
        self.overlap = overlap
        self.until_ns = until_ns
        self.before: dict[int, int | None] = {}
        """Lines that were served, by service."""
        self.new_lines: list[int] = []
        self.old_lines: list[int] = []
        self.old_workers: dict[int, int | None] = {}
        self.new_workers: dict[int, int | None] = {}
        """By seat."""


class Operator:
    """`services`: the line that serves each of the plan's models now. `seats`: the worker that counts on each."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.services: dict[int, int | None] = {}
        self.seats: dict[int, int | None] = {}
        self.predecessors: dict[int, list[int]] = {}
        """Of workers that are to be started after others: those."""
        self._change: Change | None = None
        self._next_line = 0

    def new_line(self, service: int) -> Line:
        """A version that nobody has loaded."""
        world, model = self.world, self.world.plan.models[service]
        index = self._next_line
        self._next_line += 1
        line = Line(
            index,
            f"m{service}",
            slot_count=model.slot_count,
            queue_max=model.queue_max,
            window_ns=model.window_ns,
            deadline_ns=model.deadline_ns,
        )
        world.add_line(line, model)
        return line

    def add_worker(self, seat: int, models: frozenset[int], heir_of: int | None = None) -> int:
        world = self.world
        predecessor = None if heir_of is None else world.core.worker(heir_of)
        state = world.core.add_worker(seat, models, world.now, heir_of=predecessor)
        self._keep(state)
        if heir_of is not None:
            self.predecessors[state.index] = [heir_of, *self.predecessors.get(heir_of, [])]
            world.workers[state.index].loaded = world.workers[heir_of].loaded & models
        return state.index

    def _keep(self, state: WorkerState) -> None:
        require(state.index not in self.world.workers, "an index is used twice")
        self.world.workers[state.index] = FakeWorker(self.world, state.index, state.seat, state.models)
        self.world.note("worker", state.index, state.seat, *sorted(state.models))

    def begin_with(self, workers: list[WorkerState]) -> None:
        """Those that the core was made with."""
        for state in workers:
            self._keep(state)
            self.seats[state.seat] = state.index

    # -- a change ------------------------------------------------------------------------------------------------

    def change(self) -> None:
        """Something is to be loaded, unloaded, or loaded anew."""
        world = self.world
        if "changes" not in world.faults:
            return
        if self._change is not None:
            if not world.chance(0.4):
                world.after(20 * MS, self.change)
                return
            world.count("change_superseded")
            self._back()
        service = world.draw.choice(sorted(self.services))
        kind = world.draw.choice(("reload", "reload", "unload", "restart"))
        self.begin(service, kind)

    def load_all(self) -> None:
        """Whatever was unloaded is loaded; what is going on comes to its end before."""
        if self._change is not None:
            self.world.after(20 * MS, self.load_all)
            return
        missing = [service for service, line in self.services.items() if line is None]
        if missing:
            self.begin(missing[0], "reload")
            self.world.after(20 * MS, self.load_all)

    def begin(self, service: int, kind: str) -> None:
        world = self.world
        world.note("change", kind, service)
        overlap = world.chance(world.plan.overlap_share)
        change = Change(dict(self.services), overlap=overlap, until_ns=world.now + PATIENCE_NS)
        change.before = dict(self.services)
        if kind == "unload":
            change.target[service] = None
        elif kind == "reload" or change.target[service] is None:
            line = self.new_line(service)
            if world.faults and world.chance(world.plan.bad_version_share):
                world.bad_lines.add(line.index)
            change.target[service] = line.index
            change.new_lines.append(line.index)
        gone = self.services[service]
        if gone is not None and change.target[service] != gone:
            change.old_lines.append(gone)
        models = frozenset(line for line in change.target.values() if line is not None)
        change.old_workers = dict(self.seats)
        self._change = change
        world.count(f"change_{kind}_{'beside' if overlap else 'after'}")
        if not overlap:
            self._serve(change.target)
        for seat, old in self.seats.items():
            heir_of = None if overlap else old
            change.new_workers[seat] = self.add_worker(seat, models, heir_of) if models else None
            if heir_of is not None:
                self._retire(heir_of, change.old_lines)
        self.seats = dict(change.new_workers)
        world.touch()
        self._look(change)

    def _look(self, change: Change) -> None:
        """Whether all successors are up with all that they should have, or one of them never will."""
        if self._change is not change:
            return
        world = self.world
        ready = True
        for index in change.new_workers.values():
            if index is None:
                continue
            fake, state = world.workers[index], world.core.worker(index)
            refused = fake.announced and not fake.condemned and not set(change.new_lines) <= fake.takes
            if refused or state.restarts.total >= DEATHS_MAX:
                world.count("change_failed")
                self._back()
                return
            ready &= fake.announced and not fake.condemned
        if ready:
            self._settle(change)
        elif world.now > change.until_ns:
            world.count("change_failed")
            self._back()
        else:
            world.after(POLL_NS, lambda: self._look(change))

    def _settle(self, change: Change) -> None:
        self._change = None
        if change.overlap:
            self._serve(change.target)
            for index in change.old_workers.values():
                if index is not None:
                    self._retire(index, change.old_lines)
        self.world.note("settled")
        self.world.touch()
        self._sweep()

    def _back(self) -> None:
        """As it was before."""
        change, self._change = self._change, None
        assert change is not None
        world = self.world
        world.note("back")
        self._serve(change.before)
        if change.overlap:
            self.seats = change.old_workers
            for index in change.new_workers.values():
                if index is not None:
                    self._retire(index, [])
        else:
            models = frozenset(line for line in change.before.values() if line is not None)
            for seat, heir in change.new_workers.items():
                # Where the new set was empty, the old worker may still be on its way out.
                last = heir if heir is not None else change.old_workers[seat]
                self.seats[seat] = None
                follows = last if last is not None and self._is_known(last) else None
                if models:
                    self.seats[seat] = self.add_worker(seat, models, follows)
                if heir is not None:
                    self._retire(heir, change.new_lines)
        world.touch()
        self._sweep()

    def _is_known(self, worker: int) -> bool:
        return any(state.index == worker for state in self.world.core.workers)

    def _serve(self, services: dict[int, int | None]) -> None:
        """These lines are open, all others are closed."""
        self.services = dict(services)
        wanted = set(services.values())
        for line in self.world.core.lines:
            if line.closed == (line.index in wanted):
                self.world.core.close_line(line, closed=line.index not in wanted)

    def _retire(self, index: int, finish: list[int]) -> None:
        world = self.world
        world.note("retire", index, *finish)
        fake = world.workers[index]
        if fake.finish is None:
            fake.finish = frozenset(finish)
            fake.takes &= fake.finish
        world.core.retire_worker(index, world.now, set(finish))

    def _sweep(self) -> None:
        """Closed lines that are empty, and that no worker has, are given back."""
        world = self.world
        if self._change is None:
            kept = {index for worker in world.core.workers for index in worker.models}
            for line in [line for line in world.core.lines if line.closed]:
                if checkers.is_empty(world, line) and line.index not in kept:
                    world.core.remove_line(line)
                    world.remove_line(line)
        if any(line.closed for line in world.core.lines):
            world.after(5 * MS, self._sweep)
