"""Which child is to be started, which is to be killed, and when to look again. Does neither itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.scheduling.ticket import Kill, Role, Spawn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gateway.scheduling.feeder import DecoderState
    from gateway.scheduling.placement import WorkerState
    from gateway.scheduling.ticket import Effect

NEVER_NS = 1 << 62


class Watch:
    """The clock over every child. Its state is theirs."""

    __slots__ = ("_decoders", "_owing_ns_min", "_start_timeout_ns", "_workers", "next_ns")

    def __init__(
        self,
        decoders: Sequence[DecoderState],
        workers: Sequence[WorkerState],
        *,
        start_timeout_ns: int,
        owing_ns_min: int,
    ) -> None:
        """A child that is not ready `start_timeout_ns` after its spawn is killed. Whoever is given work has at least
        `owing_ns_min` to answer.
        """
        self.next_ns = 0
        """When to look again; `NEVER_NS` while nobody owes anything. Looking costs a step for each child."""
        self._owing_ns_min = owing_ns_min
        self._decoders = decoders
        self._workers = workers
        self._start_timeout_ns = start_timeout_ns

    def kill(self, role: Role, index: int, reason: str, *, broken: bool = False) -> Kill:
        """Condemn a child: from now on it is not believed, and it gets nothing more."""
        child = self._decoders[index] if role is Role.DECODER else self._workers[index]
        child.ready = False
        child.broken = broken
        child.condemned = True
        child.started_ns = 0
        return Kill(role, index, reason)

    def look(self, now_ns: int) -> list[Effect]:
        """Start the dead whose time has come, kill what hangs or does not come up."""
        effects: list[Effect] = []
        self.next_ns = NEVER_NS
        for role, child in self._children():
            if child.spawn_at_ns is not None and now_ns >= child.spawn_at_ns:
                child.spawn_at_ns = None
                child.condemned = child.broken = False
                child.started_ns = now_ns
                effects.append(Spawn(role, child.index))
            due_ns = self._due_ns(child)
            if due_ns is not None and now_ns >= due_ns:
                effects.append(self.kill(role, child.index, "hung" if child.ready else "did not start in time"))
            elif due_ns is not None and due_ns < self.next_ns:
                self.next_ns = due_ns
            if child.spawn_at_ns is not None and child.spawn_at_ns < self.next_ns:
                self.next_ns = child.spawn_at_ns
        return effects

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
        """When a running child must have come up, or answered what it works on; None: it owes nothing."""
        if not child.ready:
            return child.started_ns + self._start_timeout_ns if child.started_ns else None
        return child.owes_by_ns()
