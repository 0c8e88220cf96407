"""How a world goes: load and faults first, then a phase in which everything must come to an end and serve again."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.support import checkers
from tests.support.checkers import require
from tests.support.plan import MS, S

if TYPE_CHECKING:
    from tests.support.world import World

SETTLE_NS = 30 * S
REST_NS_MAX = 60 * S


class Story:
    """One world's."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.begin_ns = world.now

    def play(self) -> None:
        """Safety phase with faults, then a phase in which everything must come to an end and serve again."""
        world, plan, draw = self.world, self.world.plan, self.world.draw
        burst_ns = 0
        for _ in range(plan.request_count):
            if world.chance(0.6):
                burst_ns = world.uniform(0, plan.length_ns)
            arrive = partial(world.clients.arrive, draw.randrange(len(plan.models)))
            world.after(45 * MS + burst_ns + world.uniform(0, MS), arrive)
        for fault in sorted(world.faults):
            self._schedule(fault)
        world.after(45 * MS + plan.length_ns, self._heal)
        world.play()
        checkers.empty(world)
        rest_ns = world.now - self.begin_ns - 45 * MS - plan.length_ns
        require(rest_ns <= REST_NS_MAX, f"the world comes to rest {rest_ns} ns after its last fault")
        for _ in range(2):
            self._probe()

    def _schedule(self, fault: str) -> None:
        world, draw = self.world, self.world.draw
        role, _, what = fault.partition("_")
        span_ns = 45 * MS + world.plan.length_ns
        if what in ("kill", "crash", "hang", "slow", "spin") and role in ("worker", "decoder"):
            for _ in range(draw.randint(1, 4)):
                act = partial(self._befall, role, "die" if what == "kill" else what)
                world.after(world.uniform(0, span_ns), act)
        elif fault == "changes":
            for _ in range(world.plan.change_count):
                world.after(world.uniform(0, span_ns), world.operator.change)
        elif fault == "pokes":
            for _ in range(40):
                world.after(world.uniform(0, span_ns), world.touch)
        elif fault == "drain" and world.chance(0.5):
            world.after(world.uniform(span_ns // 2, span_ns), self._drain)

    def _befall(self, role: str, what: str) -> None:
        """Something happens to one of the children that there are by then."""
        world = self.world
        children = world.decoders if role == "decoder" else [world.workers[each.index] for each in world.core.workers]
        if children:
            getattr(world.draw.choice(children), what)()

    def _drain(self) -> None:
        self.world.note("drain")
        self.world.core.drain()

    def _heal(self) -> None:
        """No fault from here on; whatever was unloaded is loaded."""
        world = self.world
        world.note("heal")
        world.faults.clear()
        world.after(0, world.operator.load_all)
        for child in (*world.workers.values(), *world.decoders):
            child.heal()

    def _probe(self) -> None:
        """Long after the last fault every model serves every kind of request."""
        world = self.world
        world.now += SETTLE_NS
        before = dict(world.counts)
        for service in range(len(world.plan.models)):
            arrive = partial(world.clients.arrive, service, deadline_ns=world.now + SETTLE_NS)
            world.after(service * MS, arrive)
        world.play()
        checkers.empty(world)
        gained = {name: count - before.get(name, 0) for name, count in world.counts.items()}
        refused = sorted(name for name, count in gained.items() if count and name.startswith(("pre_", "submit_")))
        if world.core.draining:
            require(refused == ["pre_draining"], f"while draining, requests meet {refused}")
            return
        # More images at once than a queue takes is what a request may ask for here, and is refused for good.
        bad = [name for name in refused if "overloaded" not in name and "payload_too_large" not in name]
        answers = ("deadline_exceeded", "worker_lost", "undecodable_image", "inference_failed", "poisoned")
        bad += [name for name in answers if gained.get(name)]
        require(not bad, f"a quiet and healthy server says {bad}")
