"""Which child is to be started, interrupted or killed, and when to look again. Does none of it itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.scheduling.restarts import STUCK_NS, State
from gateway.scheduling.ticket import Interrupt, Kill, Role, Spawn, Stuck

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.scheduling.feeder import DecoderState
    from gateway.scheduling.placement import WorkerState
    from gateway.scheduling.ticket import Effect

NEVER_NS = 1 << 62

GRACE_NS = 250_000_000
"""How long a worker that was interrupted has to answer before it is killed."""


class Watch:
    """The clock over every child. Its state is theirs."""

    __slots__ = ("_build_timeout_ns", "_decoders", "_owing_ns_min", "_start_timeout_ns", "_workers", "next_ns")

    def __init__(
        self,
        decoders: Sequence[DecoderState],
        workers: Sequence[WorkerState],
        *,
        start_timeout_ns: int,
        build_timeout_ns: int,
        owing_ns_min: int,
    ) -> None:
        """A child that is not ready `start_timeout_ns` after its spawn is killed; each engine that a worker builds may
        take `build_timeout_ns` besides. Whoever is given work has at least `owing_ns_min` to answer.
        """
        self.next_ns = 0
        """When to look again; `NEVER_NS` while nobody owes anything. Looking costs a step for each child."""
        self._owing_ns_min = owing_ns_min
        self._decoders = decoders
        self._workers = workers
        self._start_timeout_ns = start_timeout_ns
        self._build_timeout_ns = build_timeout_ns

    def kill(
        self, role: Role, child: DecoderState | WorkerState, reason: str, now_ns: int, *, broken: bool = False
    ) -> Kill:
        """Condemn a child: from now on it is not believed, and it gets nothing more."""
        child.condemn(now_ns, broken=broken)
        self.next_ns = min(self.next_ns, now_ns + STUCK_NS)
        return Kill(role, child.index, reason)

    def look(self, now_ns: int) -> list[Effect]:
        """Start the dead whose time has come, interrupt and kill what hangs, kill what does not come up."""
        effects: list[Effect] = []
        self.next_ns = NEVER_NS
        for role, child in self._children():
            if child.spawn_at_ns is not None and now_ns >= child.spawn_at_ns:
                child.begin(now_ns)
                effects.append(Spawn(role, child.index))
            due_ns = self._due_ns(child)
            if due_ns is not None and now_ns >= due_ns:
                effects.append(self._overdue(role, child, now_ns))
                due_ns = self._due_ns(child)
            for time_ns in (due_ns, child.spawn_at_ns):
                if time_ns is not None and time_ns < self.next_ns:
                    self.next_ns = time_ns
        return effects

    def _overdue(self, role: Role, child: DecoderState | WorkerState, now_ns: int) -> Effect:
        if child.condemned:
            child.move(State.STUCK)
            return Stuck(role, child.index)
        if not child.ready:
            return self.kill(role, child, child.lateness(now_ns), now_ns)
        if child.interrupt(now_ns):
            return Interrupt(child.index)
        return self.kill(role, child, "hung", now_ns)

    def work_sent(self, now_ns: int) -> None:
        """Somebody was given work, and will owe an answer."""
        self.next_ns = min(self.next_ns, now_ns + self._owing_ns_min)

    def child_changed(self) -> None:
        """A child died or came up: look at the next opportunity."""
        self.next_ns = 0

    def _children(self) -> Iterator[tuple[Role, DecoderState | WorkerState]]:
        for decoder in self._decoders:
            yield Role.DECODER, decoder
        for worker in self._workers:
            yield Role.WORKER, worker

    def _due_ns(self, child: DecoderState | WorkerState) -> int | None:
        """When a child must have come up, have answered what it works on, or be gone; None: it owes nothing."""
        if child.condemned_ns:
            return child.condemned_ns + STUCK_NS if child.state is State.DEAD else None
        if not child.ready:
            return child.up_by_ns(self._start_timeout_ns, self._build_timeout_ns) if child.started_ns else None
        return child.owes_by_ns()
