"""What operators, the watcher and requests ask of the models; done one at a time, in the order in which it was asked.

The door of this room. An operator's word is kept beyond the life of the gateway once it was carried out; what fails
leaves everything as it was. State: the queue, and what is told about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway import errors, logs
from gateway.errors import InvalidModel
from gateway.lifecycle import catalogue as tables
from gateway.lifecycle.catalogue import Catalogue, name_of
from gateway.lifecycle.desired import Desired, Want
from gateway.lifecycle.operations import Operations
from gateway.lifecycle.routes import RETRY_S, faults
from gateway.lifecycle.routine import Routine
from gateway.lifecycle.turnover import Turnover
from gateway.lifecycle.views import Views
from gateway.lifecycle.watcher import Found, Look, Watcher, everybody
from gateway.models.repository import is_name, sign
from shm import failpoints

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from gateway.config import Settings
    from gateway.driver import Driver
    from gateway.lifecycle.catalogue import Key
    from gateway.lifecycle.desired import Store
    from gateway.lifecycle.operations import Operation
    from gateway.lifecycle.routes import Routes
    from gateway.models.repository import ModelVersion

    Work = Callable[["Operation"], Awaitable[None]]

_log = logs.get("lifecycle")

WAKE = "wake"
"""The kind of an operation that a request for a lazy model asked for."""

SETTLE_S = 0.5
"""How long files must stay the same for `evaluate` to take them for complete."""

MEND_S = 1.0
"""How long to wait after a fault of ours before going on."""

AGAIN_S = 10.0
"""How long a lazy model that could not be loaded is not tried again."""


class Changes:
    """Models at run time, of one gateway. `store`: where an operator's word is kept; None: nowhere.

    `models`: served whatever the repository holds; None: the repository is followed.
    """

    def __init__(
        self,
        driver: Driver,
        settings: Settings,
        *,
        store: Store | None = None,
        models: Sequence[ModelVersion] | None = None,
    ) -> None:
        self.operations = Operations()
        self.draining = False
        """Whether nothing is changed any more, but for what accepted requests need."""
        self._driver = driver
        self._settings = settings
        self._store = store
        self._watcher = Watcher(Path(settings.models))
        self._catalogue = Catalogue(settings.versions, store.load() if store is not None else Desired())
        self._turnover = Turnover(driver, settings, self._catalogue)
        self._views = Views(driver, self._catalogue, self._turnover)
        self._given = models
        self._disk = asyncio.Lock()
        self._queue: asyncio.Queue[tuple[Operation, Work]] = asyncio.Queue()
        self._waking: dict[Key, Operation] = {}
        self._routine = Routine(driver, self._catalogue, self._turnover, ask=self._ask)
        driver.metrics.probes.append(self._views.samples)
        driver.metrics.probes.append(
            lambda: (("penstock_operations", key, count) for key, count in self.operations.counts.items())
        )

    # -- life ----------------------------------------------------------------------------------------------------

    def begin(self, publish: Callable[[Routes], None]) -> None:
        """Before the driver starts: what is served from the start. `publish` takes every table of routes.

        Raises: InvalidModel, InvalidSettings.
        """
        self._turnover.publish = publish
        if self._given is None:
            self._catalogue.look = look = self._watcher.look(everybody)
            for key, fault in look.faults.items():
                _log.warning("version_unreadable", model=name_of(key), detail=fault)
        else:
            versions: dict[str, dict[int, Found]] = {}
            for model in self._given:
                versions.setdefault(model.name, {})[model.version] = Found(model, sign(model.directory) or ())
            self._catalogue.look = Look(versions, {})
        self._turnover.begin(self._catalogue.target())

    async def run(self) -> None:
        """Carry out what is asked, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(_always(self._work))
            group.create_task(_always(self._routine.look_at_use))
            if self._turnover.room.gpu_seats:
                group.create_task(_always(self._routine.look_at_gpus))
            if self._settings.watch and self._given is None:
                group.create_task(_always(lambda: self._routine.watch(self._settings.watch_interval_s, self._look)))

    async def _work(self) -> None:
        await self._turnover.wait_begun()
        if self._catalogue.failures and self._given is None:
            # Where another version is there that did not fail, it takes the place of the one that did.
            with contextlib.suppress(errors.Overloaded):
                self._ask("evaluate", "", lambda operation: self._routine.follow(operation, self._catalogue.look))
        while True:
            operation, work = await self._queue.get()
            await self._carry_out(operation, work)

    async def _carry_out(self, operation: Operation, work: Work) -> None:
        operation.start()
        begun = time.monotonic()
        try:
            await work(operation)
        except errors.Refusal as refusal:
            operation.fail(refusal)
        except InvalidModel as error:
            operation.fail(errors.LoadFailed(str(error)))
        except Exception:  # noqa: BLE001 - one change's fault must not end all others
            _log.exception("operation_broke", id=operation.id)
            operation.fail(errors.Refusal("something went wrong here; the log says what"))
        else:
            operation.succeed()
        operation.result["seconds"] = round(time.monotonic() - begun, 3)
        report = _log.info if operation.error is None else _log.error
        report("operation_ended", **operation.document())

    # -- what can be asked ---------------------------------------------------------------------------------------

    def load(self, name: str, versions: tuple[int, ...] | None = None, *, default: int | None = None) -> Operation:
        """Serve these versions too; None: what the repository and the settings say. Raises UnknownModel, Overloaded.

        `default`: the one of them that answers requests which name none, from now on.
        """
        self._check_known(name, versions or ())

        async def work(operation: Operation) -> None:
            want = self._catalogue.want(name)
            # As it was before anybody looked again: a larger version that lies there by now pushes none out.
            wanted = self._catalogue.wanted(name)
            await self._reread(name)
            want = tables.resumed(want) if versions is None else tables.with_versions(want, wanted, versions)
            if default is not None:
                want = msgspec.structs.replace(want, default=default)
            await self._load(operation, name, want, versions or ())

        return self._ask("load", name, work)

    def unload(self, name: str, version: int | None = None) -> Operation:
        """Serve one version less, or none of the model. Raises UnknownModel, Overloaded."""
        self._check_known(name, () if version is None else (version,))

        async def work(operation: Operation) -> None:
            want = self._catalogue.want(name)
            if version is None:
                want = msgspec.structs.replace(want, versions=())
            else:
                want = tables.without_version(want, self._catalogue.wanted(name), version)
            await self._configure(operation, name, want)

        return self._ask("unload", name, work)

    def reload(self, name: str, version: int | None = None) -> Operation:
        """Read the files again, and serve the old ones until the new ones are warm. Raises UnknownModel, Overloaded."""
        self._check_known(name, () if version is None else (version,))

        async def work(operation: Operation) -> None:
            await self._reread(name)
            numbers = [version] if version is not None else list(self._catalogue.wanted(name))
            if not set(numbers) & self._catalogue.wanted(name).keys():
                raise errors.UnknownModel(f"model {name} is not loaded, so that there is nothing to reload; load it")
            keys = {(name, number) for number in numbers}
            for key in keys:
                if key in self._catalogue.look.faults:
                    raise InvalidModel(self._catalogue.look.faults[key])
            # A lazy version that is not loaded has nothing to be loaded anew.
            keys -= self._catalogue.asleep()
            await self._turnover.perform(operation, {}, awake=keys, fresh=keys)

        return self._ask("reload", name, work)

    def configure(self, name: str, want: Want) -> Operation:
        """Make all of `want` so. Raises UnknownModel, BadRequest, Overloaded."""
        found = faults(want)
        if found:
            raise errors.BadRequest("; ".join(found))
        self._check_known(name, want.versions or ())

        async def work(operation: Operation) -> None:
            await self._reread(name)
            await self._load(operation, name, want, want.versions or ())

        return self._ask("configure", name, work)

    def evaluate(self) -> Operation:
        """Look at the repository now, and follow it. Raises Overloaded."""

        async def work(operation: Operation) -> None:
            await self._look()
            operation.progress("settling", 0.0)
            await asyncio.sleep(SETTLE_S)
            await self._routine.follow(operation, await self._look())

        return self._ask("evaluate", "", work)

    def restart(self, worker: int) -> Operation:
        """Have a new process take a worker's place. Raises NotFound, Overloaded."""
        seat = next((seat for seat, index in self._turnover.seats.items() if index == worker), None)
        if seat is None:
            raise errors.NotFound("there is no such worker; see /admin/workers")

        async def work(operation: Operation) -> None:
            await self._turnover.perform(operation, {}, seats={seat})

        return self._ask("restart", "", work)

    def models(self) -> list[dict[str, Any]]:
        """Every model that is known, as plain data."""
        return self._views.models()

    def model(self, name: str) -> dict[str, Any]:
        """One model. Raises UnknownModel."""
        if name not in self._catalogue.names():
            raise errors.UnknownModel("there is no such model in the repository")
        return self._views.model(name)

    def workers(self) -> list[dict[str, Any]]:
        """Every worker, as plain data."""
        return self._views.workers()

    async def wait_loaded(self, name: str, version: int, until_ns: int) -> None:
        """Have a lazy version loaded and routed to, or wait for one whose worker is being replaced.

        Raises: ModelNotReady, also when that takes until `until_ns`; Overloaded.
        """
        key = name, version
        timeout_s = max(0.0, (until_ns - time.monotonic_ns()) / 1e9)
        if key in self._catalogue.held:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._turnover.no_gap.wait()
                    return
            raise _not_yet(name)
        failure = self._catalogue.failures.get(key)
        if failure is not None and (left_s := AGAIN_S - (time.monotonic_ns() - failure.time_ns) / 1e9) > 0:
            raise errors.ModelNotReady(f"model {name} could not be loaded", retry_after_s=int(left_s) + 1)
        operation = self._waking.get(key)
        if operation is None:
            operation = self._waking[key] = self._ask(WAKE, name, lambda operation: self._wake(operation, key))
        if not await operation.wait_ended(timeout_s):
            raise _not_yet(name)
        if key not in self._catalogue.residents:
            raise errors.ModelNotReady(f"model {name} could not be loaded", retry_after_s=int(AGAIN_S))

    # -- how it is done ------------------------------------------------------------------------------------------

    def _begin(self, kind: str, name: str = "") -> Operation:
        operation = self.operations.begin(kind, name)
        _log.info("operation_begun", id=operation.id, kind=kind, model=name)
        return operation

    def _ask(self, kind: str, name: str, work: Work) -> Operation:
        if self.draining and kind != WAKE:
            raise errors.Draining("the server is going down and changes nothing any more")
        operation = self._begin(kind, name)
        self._queue.put_nowait((operation, work))
        return operation

    async def _load(self, operation: Operation, name: str, want: Want, versions: Collection[int]) -> None:
        """Make `want` so. What it names is loaded though lazy, or tried again though it failed."""
        look, wanted = self._catalogue.look, self._catalogue.wanted(name, want)
        unread = {number: fault for (other, number), fault in look.faults.items() if other == name}
        if want.versions is None and max(unread, default=0) > max(wanted, default=0):
            versions = {*versions, max(unread)}
        for number in versions:
            if number in unread:
                raise InvalidModel(unread[number])
            if number not in wanted:
                raise errors.UnknownModel(f"there is no version {number} of model {name} in the repository")
        if not wanted and want.versions is None:
            raise errors.UnknownModel(f"there is no version of model {name} in the repository")
        keys = {(name, number) for number in wanted}
        failed = {key for key in keys if key in self._catalogue.failures}
        await self._configure(
            operation,
            name,
            want,
            awake={(name, number) for number in versions} | failed,
            fresh={key for key in failed if self._catalogue.has_failed_resident(key)},
        )

    async def _configure(
        self, operation: Operation, name: str, want: Want, *, awake: Collection[Key] = (), fresh: Collection[Key] = ()
    ) -> None:
        """Change one model's want, and keep it when that was done, also when its memory was not given back."""
        try:
            await self._turnover.perform(operation, {name: want}, awake=awake, fresh=fresh)
        finally:
            if self._catalogue.desired.models.get(name) == want:
                await self._save(operation)

    async def _save(self, operation: Operation) -> None:
        """Keep the desired state. A disk that does not take it is no reason not to serve."""
        if self._store is None:
            return
        failpoints.hit("gateway.before_save")
        try:
            await asyncio.to_thread(self._store.save, msgspec.structs.replace(self._catalogue.desired))
        except OSError as error:
            operation.result["not_kept"] = f"{self._store.path}: {error.strerror}; it is lost when the gateway restarts"
            _log.error("desired_state_not_kept", path=str(self._store.path), error=error.strerror)

    async def _wake(self, operation: Operation, key: Key) -> None:
        """Load a lazy version that somebody asked for."""
        try:
            await self._turnover.perform(operation, {}, awake={key})
        finally:
            del self._waking[key]

    async def _look(self) -> Look:
        async with self._disk:
            return await asyncio.to_thread(self._watcher.look)

    async def _reread(self, name: str) -> None:
        """Take one model's files as they are now. Raises InvalidModel when there is no repository."""
        if self._given is None:
            async with self._disk:
                self._catalogue.look = await asyncio.to_thread(self._watcher.look, lambda key: key[0] == name)

    def _check_known(self, name: str, versions: Collection[int]) -> None:
        """Raises UnknownModel for what neither is known nor lies in the repository."""
        folder = Path(self._settings.models) / name
        known = name in self._catalogue.names()
        if not is_name(name) or not (known or (self._given is None and folder.is_dir())):
            raise errors.UnknownModel("there is no such model in the repository")
        there = self._catalogue.look.versions.get(name, {})
        for version in versions:
            resident = (name, version) in self._catalogue.residents
            if version not in there and not resident and not (self._given is None and (folder / str(version)).is_dir()):
                raise errors.UnknownModel(f"there is no version {version} of model {name} in the repository")


async def _always(task: Callable[[], Awaitable[None]]) -> None:
    """Until cancelled, whatever goes wrong: a gateway without any of this would serve, and follow nobody any more."""
    while True:
        try:
            await task()
        except Exception:  # noqa: BLE001 - a fault of ours
            _log.exception("lifecycle_broke")
        await asyncio.sleep(MEND_S)


def _not_yet(name: str) -> errors.ModelNotReady:
    return errors.ModelNotReady(f"model {name} is not serving yet; see /readyz", retry_after_s=RETRY_S)
