"""Makes what is resident what is to be: lines, workers, routes, and the proof that memory came back.

One change at a time, in these steps; whatever fails before the switch leaves everything as it was:

::

    room ─▶ new lines ─▶ successors up ─▶ switch ─▶ old workers and lines empty ─▶ gone ─▶ memory given back
    └──────── refused ──────┴─ undone     one synchronous step: tables, routes, who is retired

State: the catalogue's tables, which worker is on which seat, and what was measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from typing import TYPE_CHECKING

from gateway import errors, logs
from gateway.errors import InvalidModel
from gateway.lifecycle.catalogue import Failure, Resident, key_of, name_of
from gateway.lifecycle.departures import GIVEN_BACK_SHARE_MIN, Departure
from gateway.lifecycle.room import Room, Unplaceable
from gateway.lifecycle.succession import DEATHS_MAX, LOOK_S, Move, Succession, Unloadable
from gateway.patience import Patience
from gateway.scheduling.restarts import State
from shm import failpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from gateway.config import Settings
    from gateway.driver import Driver
    from gateway.lifecycle.catalogue import Catalogue, Key
    from gateway.lifecycle.desired import Want
    from gateway.lifecycle.operations import Operation
    from gateway.lifecycle.routes import Routes
    from gateway.lifecycle.watcher import Found

_log = logs.get("lifecycle")

_LOOK_S = 0.02
"""How often to see whether lines are empty."""

SPARED = -1
"""In place of a worker's index: the failure of a model that no worker is given any more."""

_UNDO_TIMEOUT_S = 5.0
"""What a killed worker may take to be gone on top of child_start_timeout_s."""


class Turnover:
    """The one that changes what is served. `publish` takes every new table of routes."""

    def __init__(self, driver: Driver, settings: Settings, catalogue: Catalogue) -> None:
        self.publish: Callable[[Routes], None] = lambda _: None
        self.seats: dict[int, int | None] = dict.fromkeys(range(len(settings.devices)))
        """The worker on each seat, by index; None: it is empty."""
        self.given_back_share = 1.0
        """Of the workers that ended with the last change; of none, everything."""
        self.arriving: set[Key] = set()
        self.leaving: set[Key] = set()
        self.no_gap = asyncio.Event()
        """Cleared while requests for `catalogue.held` have to wait."""
        self.no_gap.set()
        self.room = Room(driver, settings, catalogue)
        self._driver = driver
        self._core = driver.core
        self._settings = settings
        self._catalogue = catalogue
        self._left: list[Resident] = []
        """Those whose lines are closed and have not been removed."""

    # -- the first start -----------------------------------------------------------------------------------------

    def begin(self, target: Mapping[Key, Found]) -> None:
        """Lines and workers for what is served from the start; requests are sent there at once, to wait or be told.

        Raises: InvalidModel for one that no device is to have; OSError when there is no memory for its slots.
        """
        for key, found in target.items():
            try:
                self.room.check_placed(found)
            except Unplaceable as failure:
                raise InvalidModel(failure.refusal.detail) from None
            resident = self._catalogue.residents[key] = self._add(found)
            resident.serving = resident.line.awaited = True
        self.room.footprints.mark(self.room.gpu_seats)
        for seat in self.seats:
            models = self._models(seat, self._catalogue.residents.values())
            self.seats[seat] = self._core.add_worker(seat, models, _now()).index if models else None
        self.show()

    async def wait_begun(self) -> None:
        """Until every first worker is up, or is known not to come up. One that a model kills goes on without it."""
        while True:
            workers = [self._core.worker(index) for index in self.seats.values() if index is not None]
            spared = [self._spare(worker.index) for worker in workers if not worker.ready]
            if not any(spared) and all(worker.ready or worker.restarts.total >= DEATHS_MAX for worker in workers):
                break
            await self._news()
        states = self._driver.children.states
        for resident in self._catalogue.residents.values():
            failures = states[resident.line.index].failures
            if failures and not self._core.is_up(resident.line):
                detail = "; ".join(dict.fromkeys(failures.values()))
                self.fail(resident.found, detail)
                # What its worker said goes with the worker, which another change may replace.
                failures[SPARED] = detail
        self.show()
        await self.room.came_up(self.seats)
        await self.room.measure(self.seats)

    def _spare(self, index: int) -> bool:
        """Replace a worker that died twice over one model by one without it. Whether that was so."""
        worker, states = self._core.worker(index), self._driver.children.states
        guilty = [model for model in worker.models if states[model].crashes.get(index, 0) >= DEATHS_MAX]
        if not guilty:
            return False
        models = worker.models - set(guilty)
        added = self._core.add_worker(worker.seat, models, _now()) if models else None
        self.seats[worker.seat] = added.index if added is not None else None
        self._core.retire_worker(index, _now())
        for model in guilty:
            states[model].failures[SPARED] = "its worker died twice while it loaded this model; the log says how"
            _log.error("model_spared", model=self._driver.models[model].name, worker=index)
        self._driver.wake()
        return True

    # -- a change ------------------------------------------------------------------------------------------------

    async def perform(
        self,
        operation: Operation,
        wants: Mapping[str, Want],
        *,
        awake: Collection[Key] = (),
        fresh: Collection[Key] = (),
        gone: Collection[Key] = (),
        seats: Collection[int] = (),
    ) -> None:
        """Make what is resident what follows from the tables with these `wants`, and keep those when it is done.

        `awake` are loaded though lazy or failed before, `fresh` are loaded anew, `gone` are not to be there; `seats`
        get a new worker in any case.
        Raises: LoadFailed, InsufficientMemory, with all as it was; MemoryNotGivenBack, with the change made.
        """
        target = self._catalogue.target(wants, awake=awake, gone=gone)
        try:
            for found in self._catalogue.difference(target, fresh)[0]:
                self.room.check_placed(found)
            new, old = await self.room.make(target, fresh, self.seats)
        except Unplaceable as failure:
            self.fail(failure.found, failure.refusal.detail)
            raise failure.refusal from None
        for found in new:
            self._catalogue.failures.pop(key_of(found), None)
        self.arriving = {key_of(found) for found in new}
        self.leaving = {resident.key for resident in old} - self.arriving
        try:
            await self._change(operation, new, old, wants, seats)
        finally:
            self.arriving, self.leaving = set(), set()
            self.show()

    async def _change(
        self,
        operation: Operation,
        new: list[Found],
        old: list[Resident],
        wants: Mapping[str, Want],
        seats: Collection[int],
    ) -> None:
        failpoints.hit("gateway.before_change")
        arriving = self._add_all(new)
        kept = [resident for resident in self._catalogue.residents.values() if resident not in old]
        succession = Succession(
            self._driver,
            arriving=[resident.line for resident in arriving],
            leaving=[resident.line for resident in old],
            timeout_s=self._settings.child_start_timeout_s,
            progress=operation.progress,
        )
        departures: list[Departure] = []
        try:
            succession.moves = await self._moves([*kept, *arriving], seats)
            departures += self._departures(succession.moves)
            for departure in departures:
                await departure.look()
            await self.room.mark([move.seat for move in succession.moves])
            failpoints.hit("gateway.before_successors")
            await succession.start_beside()
            if succession.has_gap:
                failpoints.hit("gateway.before_gap")
                self._open_gap(old)
                await succession.start_after()
            gone = {move.seat: move.before for move in succession.moves if not move.is_beside}
            await self.room.came_up(succession.workers, gone)
            failpoints.hit("gateway.before_switch")
        except Unloadable as failure:
            blamed = arriving if failure.line is None else [each for each in arriving if each.line is failure.line]
            await self._undo(succession, arriving, old, blamed, failure.detail)
            raise errors.LoadFailed(failure.detail) from None
        except Exception:
            await self._undo(succession, arriving, old)
            raise
        self._switch(arriving, old, wants)
        succession.hand_over()
        self.seats |= succession.workers
        operation.result |= {
            "loaded": [name_of(resident.key) for resident in arriving],
            "unloaded": [name_of(resident.key) for resident in old if resident.key in self.leaving],
        }
        failpoints.hit("gateway.after_switch")
        await self.room.measure(self.seats)
        operation.progress("unloading", 0.95)
        await self._see_off(operation, departures)

    def _switch(self, arriving: list[Resident], old: list[Resident], wants: Mapping[str, Want]) -> None:
        """From here on requests go the new way."""
        catalogue = self._catalogue
        self._left += old
        for resident in old:
            del catalogue.residents[resident.key]
        for resident in arriving:
            catalogue.residents[resident.key] = resident
            resident.serving = resident.line.awaited = True
            catalogue.failures.pop(resident.key, None)
        catalogue.desired.models.update(wants)
        self.arriving = set()
        self._close_gap()
        for resident in old:
            self._core.close_line(resident.line)

    async def _undo(
        self,
        succession: Succession,
        arriving: list[Resident],
        old: list[Resident],
        blamed: Iterable[Resident] = (),
        detail: str = "",
    ) -> None:
        """Everything as it was; who is to blame is not tried again with these files."""
        for resident in blamed:
            self.fail(resident.found, detail)
        self.seats |= succession.undo()
        for resident in old:
            self._core.close_line(resident.line, closed=False)
        if succession.has_gap:
            await self._wait_up(self._settings.child_start_timeout_s + _UNDO_TIMEOUT_S)
        self._close_gap()
        for resident in arriving:
            self._core.close_line(resident.line)
        self._left += arriving
        await self._remove()

    def _open_gap(self, old: Iterable[Resident]) -> None:
        """Workers are about to go before their successors come: who asks for what changes waits in front."""
        self._catalogue.held = frozenset(resident.key for resident in old)
        self.no_gap.clear()
        self.show()
        for resident in old:
            self._core.close_line(resident.line)

    def _close_gap(self) -> None:
        self._catalogue.held = frozenset()
        self.show()
        self.no_gap.set()

    async def _see_off(self, operation: Operation, departures: list[Departure]) -> None:
        """Old workers go, then old lines. Raises MemoryNotGivenBack."""
        failpoints.hit("gateway.before_unload")
        found = [await departure.wait_gone() for departure in departures]
        await self._remove()
        if not found:
            return
        self.given_back_share = min(each.share for each in found)
        operation.result["workers"] = [each.document() for each in found]
        operation.result["given_back_share"] = round(self.given_back_share, 4)
        if self.given_back_share < GIVEN_BACK_SHARE_MIN:
            holders = "; ".join(holder for each in found for holder in each.holders)
            raise errors.MemoryNotGivenBack(
                f"{1 - self.given_back_share:.1%} of an ended worker's memory is still held, by {holders}; end that one"
            )

    def _departures(self, moves: Iterable[Move]) -> list[Departure]:
        before = [move.before for move in moves if move.before is not None]
        return [Departure(self._driver, index, self.room.footprints) for index in before]

    # -- lines ---------------------------------------------------------------------------------------------------

    def _add(self, found: Found) -> Resident:
        return Resident(found, self._driver.add_model(found.model), _now())

    def _add_all(self, new: list[Found]) -> list[Resident]:
        """Lines for these. Raises InsufficientMemory."""
        arriving: list[Resident] = []
        try:
            for found in new:
                arriving.append(self._add(found))  # those before a failure are given back
        except OSError as error:
            for resident in arriving:
                self._core.close_line(resident.line)
                self._driver.remove_model(resident.line)
            raise errors.InsufficientMemory(
                f"no shared memory, or no descriptor, for the slots of {name_of(key_of(found))} ({error.strerror})"
            ) from None
        return arriving

    async def _remove(self) -> None:
        """Give the slots of closed lines back once they are empty and no worker has them.

        What is left of them refers to itself in circles. A full collection takes a millisecond, since all that is as
        old as the gateway is frozen; without one, 25 KiB a change stay until the collector happens to look.
        """
        await self._wait_removed()
        gc.collect()

    async def _wait_removed(self) -> None:
        while True:
            having = {model: worker for worker in self._core.workers for model in worker.models}
            for resident in list(self._left):
                if self._core.is_empty(resident.line) and resident.line.index not in having:
                    self._driver.remove_model(resident.line)
                    self._left.remove(resident)
            if all(
                resident.line.index in having and having[resident.line.index].state is State.STUCK
                for resident in self._left
            ):
                return
            await asyncio.sleep(_LOOK_S)

    # -- seats ---------------------------------------------------------------------------------------------------

    def _models(self, seat: int, residents: Iterable[Resident]) -> frozenset[int]:
        """Lines that a worker on this seat is to have: those that are placed there and did not fail."""
        return frozenset(
            resident.line.index
            for resident in residents
            if resident.is_placed(self._settings.devices[seat])
            and not self._catalogue.has_failed(resident.key, resident.found)
        )

    async def _moves(self, residents: list[Resident], forced: Collection[int]) -> list[Move]:
        """What has to become of which seat, so that these are served."""
        moves = []
        for seat, before in self.seats.items():
            models = self._models(seat, residents)
            models_before = self._core.worker(before).models if before is not None else frozenset()
            # One that failed at the start is in the worker's set, and was never in the worker.
            if models != models_before - self._failed() or seat in forced:
                beside = True
                if before is not None and models:
                    files = [resident.files for resident in residents if resident.line.index in models]
                    beside = await self.room.fits_beside(seat, before, files)
                moves.append(Move(seat, before, models_before, models, beside))
        return moves

    def _failed(self) -> set[int]:
        """Lines of residents that could not be loaded."""
        residents = self._catalogue.residents.values()
        return {each.line.index for each in residents if self._catalogue.has_failed(each.key, each.found)}

    async def _wait_up(self, timeout_s: float) -> None:
        """Until the workers of all seats are up, or are known not to come up, or for so long; building not counted."""
        patience = Patience(timeout_s, lambda: self._core.is_building)
        while patience.left_s() > 0:
            workers = [self._core.worker(index) for index in self.seats.values() if index is not None]
            if all(worker.ready or worker.restarts.failing for worker in workers):
                return
            await self._news()

    async def _news(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._driver.wait_changed()

    def fail(self, found: Found, detail: str) -> None:
        """These files cannot be loaded: they are not tried again until somebody asks for that."""
        self._catalogue.failures[key_of(found)] = Failure(found.signature, detail, _now())
        _log.error("model_failed", model=name_of(key_of(found)), detail=detail)

    def show(self) -> None:
        """Give the front the table as things stand."""
        self.publish(self._catalogue.routes())


def _now() -> int:
    return time.monotonic_ns()
