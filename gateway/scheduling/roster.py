"""Which models are served by which workers, while both come and go. Indexes grow and are never used twice.

A change of what a device serves is a change of workers: a new one with the new models is added, and once it is up the
old one is retired. A model that was taken out of service is a closed line: it takes nothing new, and goes when it is
empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.scheduling.placement import WorkerState
from gateway.scheduling.restarts import Restarts, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.scheduling.line import Line


class Roster:
    """`lines` and `workers` are the core's own lists, in order of their indexes; everybody looks at the same two."""

    __slots__ = (
        "_by_index",
        "_next_index",
        "_restarts_max",
        "_restarts_window_ns",
        "busy",
        "lines",
        "retiring_count",
        "workers",
    )

    def __init__(self, lines: Iterable[Line], *, restarts_max: int, restarts_window_ns: int) -> None:
        self.busy: list[Line] = []
        """The lines of which images wait, by index; they keep it themselves."""
        self.lines: list[Line] = []
        self.workers: list[WorkerState] = []
        self.retiring_count = 0
        """Workers that are on their way out."""
        self._by_index: dict[int, WorkerState] = {}
        self._next_index = 0
        self._restarts_max = restarts_max
        self._restarts_window_ns = restarts_window_ns
        for line in lines:
            self.add_line(line)

    def worker(self, index: int) -> WorkerState:
        """One that was added and is not gone. Raises LookupError."""
        return self._by_index[index]

    # -- lines ---------------------------------------------------------------------------------------------------

    def add_line(self, line: Line) -> None:
        """From now on there is this model; it is served once a worker has it."""
        assert not self.lines or line.index > self.lines[-1].index
        line.busy = self.busy
        if line.dues:
            self.busy.append(line)
        self.lines.append(line)

    @staticmethod
    def is_empty(line: Line) -> bool:
        """Whether none of its images waits, and nobody holds a slot of it."""
        return not line.dues and line.arena.free_count == line.arena.count

    def remove_line(self, line: Line) -> None:
        """It was closed and is empty: nobody knows it any more."""
        assert line.closed
        assert self.is_empty(line)
        self.lines.remove(line)
        for worker in self.workers:
            worker.profiles.pop(line.index, None)

    # -- workers -------------------------------------------------------------------------------------------------

    def add_worker(
        self, seat: int, models: frozenset[int], now_ns: int, heir_of: WorkerState | None = None
    ) -> WorkerState:
        """One more worker on a seat, to be started now, or, as an heir, when its predecessor is gone."""
        restarts = Restarts(self._restarts_max, self._restarts_window_ns)
        worker = WorkerState(self._next_index, seat, models, restarts)
        worker.spawn_at_ns = now_ns
        if heir_of is not None:
            assert heir_of in self.workers
            assert heir_of.heir is None
            heir_of.heir = worker
            worker.spawn_at_ns = None
            worker.was_ready, worker.start_ns = heir_of.was_ready, heir_of.start_ns
            worker.profiles = {model: profile for model, profile in heir_of.profiles.items() if model in models}
        self._next_index += 1
        self.workers.append(worker)
        self._by_index[worker.index] = worker
        return worker

    def retire(self, worker: WorkerState, finish: Iterable[int]) -> None:
        """It takes no batches but of the models `finish`, and goes as soon as those have nothing left to run."""
        assert not worker.retiring
        worker.retiring = True
        self.retiring_count += 1
        kept = frozenset(finish)
        worker.profiles = {model: profile for model, profile in worker.profiles.items() if model in kept}
        if worker.state is State.READY:
            worker.move(State.DRAINING)

    def is_done(self, worker: WorkerState) -> bool:
        """Whether a retiring worker has nothing left to do."""
        if worker.batches:
            return False
        return not any(line.dues for line in self.lines if line.index in worker.profiles)

    @staticmethod
    def has_process(worker: WorkerState) -> bool:
        """Whether it was started and was not reaped yet."""
        return worker.state is not State.DEAD or worker.condemned

    def remove_worker(self, worker: WorkerState, now_ns: int) -> None:
        """It is retired, dead and reaped. Its heir, if there is one, may start."""
        assert worker.retiring
        self.retiring_count -= 1
        self.workers.remove(worker)
        del self._by_index[worker.index]
        before = next((other for other in self.workers if other.heir is worker), None)
        if before is not None:
            # It never had its turn: its own heir waits for whom it waited for.
            before.heir = worker.heir
        elif worker.heir is not None:
            worker.heir.spawn_at_ns = now_ns
