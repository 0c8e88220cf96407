"""How workers with one set of models follow workers with another: start, wait, hand over; or undo.

::

    beside   old ───serves────────────────────┐retired        a device with memory for both
             new ──────starting──warming──────┴serves─────

    after    old ──serves──┐retired                           a device without
             new           └──starting──warming──serves───    what is for common models waits in their lines

Nothing that serves is touched before every new model was loaded, but for the workers that have to go first; `undo`
starts those again. State: who follows whom.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

from gateway import errors
from gateway.patience import Patience
from gateway.scheduling.restarts import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.driver import Driver
    from gateway.scheduling.line import Line
    from gateway.scheduling.placement import WorkerState

LOOK_S = 0.25
"""How long to wait at most for news of children before looking all the same."""

DEATHS_MAX = 2
"""Deaths of a successor before it was ready; after so many the change has failed."""

_STAGES = {"building": 0, "session": 0, "warmup": 1, "profile": 2}
"""What a worker does with a model → which third of its load that is. An engine is built before it is opened."""

_THIRDS = 3

_LIMIT_OF = {
    "did not build an engine in time": "engine_build_timeout_s",
    "did not start in time": "child_start_timeout_s",
}
"""Why a worker was killed → the setting that is the limit."""

_LOG = "the log has its last words"


class Unloadable(errors.LoadFailed):
    """`line` could not be loaded; None: nobody knows which one it was."""

    def __init__(self, detail: str, line: Line | None = None) -> None:
        super().__init__(detail)
        self.line = line


class Move(NamedTuple):
    """What becomes of one seat."""

    seat: int
    before: int | None
    """Its worker now; None: it is empty."""
    models_before: frozenset[int]
    models: frozenset[int]
    """Of the next worker, by line; empty: there is none."""
    is_beside: bool
    """Whether the next worker may start while the old one lives, or there are not both."""


class Succession:
    """One change of workers. `arriving` lines have no worker yet; `leaving` ones are to have none any more."""

    def __init__(
        self,
        driver: Driver,
        *,
        arriving: list[Line],
        leaving: list[Line],
        timeout_s: float,
        progress: Callable[[str, float], None],
    ) -> None:
        self._driver = driver
        self._core = driver.core
        self.moves: list[Move] = []
        self._arriving = arriving
        self._leaving = frozenset(line.index for line in leaving)
        self._timeout_s = timeout_s
        self._progress = progress
        self.workers: dict[int, int | None] = {}
        """By seat: who serves it when all is done; None: nobody."""
        self.retired: list[int] = []
        """Who was sent away for that."""

    @property
    def has_gap(self) -> bool:
        """Whether some worker has to go before its successor can start."""
        return not all(move.is_beside for move in self.moves)

    async def start_beside(self) -> None:
        """Start every successor that may live beside the old worker, and wait until it is up. Raises Unloadable."""
        for move in self.moves:
            if move.is_beside:
                added = self._core.add_worker(move.seat, move.models, _now()).index if move.models else None
                self.workers[move.seat] = added
        await self._wait_up()

    async def start_after(self) -> None:
        """Send the other old workers away, and start their successors once they are gone. Raises Unloadable."""
        for move in self.moves:
            if not move.is_beside:
                assert move.before is not None
                before = self._core.worker(move.before)
                self.workers[move.seat] = self._core.add_worker(move.seat, move.models, _now(), heir_of=before).index
                self._retire(move.before, self._leaving)
        await self._wait_up()

    def hand_over(self) -> None:
        """Every successor is up: the old ones finish what only they can, and go."""
        for move in self.moves:
            if move.is_beside and move.before is not None:
                self._retire(move.before, self._leaving)
        self._driver.wake()

    def undo(self) -> dict[int, int | None]:
        """Everything as it was: successors go, and who was sent away for one is started again. Workers by seat."""
        arriving = frozenset(line.index for line in self._arriving)
        seats: dict[int, int | None] = {}
        for move in self.moves:
            seats[move.seat] = move.before
            added = self.workers.get(move.seat)
            if added is None:
                continue
            if not move.is_beside:
                heir = self._core.worker(added)
                seats[move.seat] = self._core.add_worker(move.seat, move.models_before, _now(), heir_of=heir).index
            self._core.retire_worker(added, _now(), arriving)
        self._driver.wake()
        return seats

    def _retire(self, index: int, finish: frozenset[int]) -> None:
        self.retired.append(index)
        self._core.retire_worker(index, _now(), finish)

    async def _wait_up(self) -> None:
        """Until all successors so far are ready, with all their models. Raises Unloadable."""
        self._driver.wake()
        workers: list[WorkerState] = []
        patience = Patience(self._timeout_s, lambda: any(worker.state is State.BUILDING for worker in workers))
        while True:
            workers = [self._core.worker(index) for index in self.workers.values() if index is not None]
            for worker in workers:
                self._check(worker)
            if all(worker.ready for worker in workers):
                return
            left_s = patience.left_s()
            if left_s <= 0:
                raise self._too_slow(workers)
            self._progress(*self._loading(workers))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, LOOK_S)):
                    await self._driver.wait_changed()

    def _check(self, worker: WorkerState) -> None:
        """Raises Unloadable when a successor refused a model, or died too often."""
        states, lines = self._driver.children.states, {line.index: line for line in self._core.lines}
        for index in worker.models:
            detail = states[index].failures.get(worker.index)
            if detail is not None:
                raise Unloadable(detail, lines[index])
        if worker.restarts.total >= DEATHS_MAX:
            # The first death may have been anybody's doing; a model that was being loaded at both is to blame.
            guilty = [index for index in worker.models if states[index].crashes.get(worker.index, 0) >= DEATHS_MAX]
            what = f"loaded {self._name(guilty[0])}" if guilty else "started"
            reason = self._driver.children.kill_reasons.get(worker.index)
            # What takes too long is killed; whatever else ends a worker is in the log.
            last = f"at last it was killed, since it {reason}; see {_LIMIT_OF[reason]}" if reason in _LIMIT_OF else _LOG
            detail = f"the new worker died {worker.restarts.total} times while it {what}; {last}"
            raise Unloadable(detail, lines[guilty[0]] if guilty else None)

    def _too_slow(self, workers: list[WorkerState]) -> Unloadable:
        states = self._driver.children.states
        # Who was killed for it at this very moment says nothing any more: what it loaded is told by its death.
        late = [
            line
            for line in self._core.lines
            for state in (states[line.index],)
            if any(worker.index in state.loading or worker.index in state.crashes for worker in workers)
        ]
        while_loading = f", while it loaded {self._name(late[0].index)}" if late else ""
        return Unloadable(
            f"the new worker was not ready within {self._timeout_s:g} s{while_loading}; see child_start_timeout_s",
            late[0] if late else None,
        )

    def _name(self, index: int) -> str:
        model = self._driver.models[index]
        return f"{model.name}/{model.version}"

    def _loading(self, workers: list[WorkerState]) -> tuple[str, float]:
        """(what is going on, how much of all that was done) for the successors together."""
        stage, done, count = "starting", 0.0, 0
        for worker in workers:
            for index in worker.models:
                count += 1
                state = self._driver.children.states[index]
                if worker.index in state.loaded:
                    done += 1.0
                elif (news := state.loading.get(worker.index)) is not None:
                    stage = f"{news.word} {self._name(index)}"
                    done += (_STAGES.get(news.word, 0) + news.share) / _THIRDS
        return stage, done / max(1, count)


def _now() -> int:
    return time.monotonic_ns()
