"""The composition root: settings → models → segments → children → front, stopped in reverse. Names uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from gateway import logs, systemd
from gateway.admin.facts import GatewayFacts
from gateway.admin.front import AdminFront
from gateway.driver import Driver
from gateway.errors import InvalidModel, InvalidSettings
from gateway.estate import Estate, start_timeout_s
from gateway.handover import Handover
from gateway.http.front import Front
from gateway.lifecycle.changes import Changes
from gateway.lifecycle.desired import Store, Unreadable
from gateway.lifecycle.watcher import Watcher, everybody
from gateway.measured import collect
from gateway.models.repository import scan
from gateway.paths import state_dir
from gateway.patience import Patience
from gateway.provisions import keep_heap, raise_fd_limit, rest_collector
from shm import failpoints

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterator

    from gateway.config import Settings
    from gateway.handover import Predecessor
    from gateway.lifecycle.routes import Routes
    from gateway.models.repository import ModelVersion

_log = logs.get("server")

MODELS_EXPECTED = 64
"""Models that descriptors are asked for where they come and go."""

READY_POLL_S = 0.02

BUILDING_TOLD_S = 5.0
"""How often the service manager is told that engines are being built."""

CLOSE_TIMEOUT_S = 2.0
"""How long connections get to take their last answers once everything was answered."""

ADMIN_CLOSE_TIMEOUT_S = 0.5
"""The same for who waits for an operation, which does not end any more."""


class Gateway:
    """One running gateway, inside an event loop.

    `start` → `open` → requests → `ask_stop`, by a signal, a successor or an operator → `drain` → `stop`.
    """

    def __init__(self, settings: Settings, models: list[ModelVersion] | None, estate: Estate) -> None:
        """`models`: served whatever the repository holds; None: the repository and the desired state are followed.

        Raises: InvalidModel, InvalidSettings.
        """
        self._settings = settings
        self._estate = estate
        self._bound = estate.listener
        known = estate.predecessor.measured if estate.predecessor is not None else ()
        self.driver = Driver(settings, [], known)
        store = _store(settings) if models is None else None
        self.changes = Changes(self.driver, settings, store=store, models=models)
        self._front = Front(self.driver, settings)
        self._front.predict.wait_loaded = self.changes.wait_loaded
        self.changes.begin(self._publish)
        self._changing: asyncio.Task[None] | None = None
        facts = GatewayFacts(self.driver, self.url, self.ask_stop)
        self._admin = AdminFront(settings, self.changes, facts, refusals=self.driver.metrics.refusals)
        self._handover: Handover | None = None
        self.stop_asked = asyncio.Event()
        self.hurried = asyncio.Event()
        """Whether not even those who are connected are waited for."""
        self._start_timeout_s = start_timeout_s(settings)
        self._delay_s = 0.0
        self._signalled = False
        self._drained = False

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._bound.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def ready(self) -> bool:
        """Whether every model and a decoder are up."""
        return self.driver.core.is_ready

    @property
    def refused(self) -> dict[str, str]:
        """Models that a worker refused, with the reason."""
        return {
            f"{model.name}/{model.version}": detail
            for index, model in self.driver.models.items()
            for detail in self.driver.children.states[index].failures.values()
        }

    def start(self) -> None:
        """Start the children, which come up on their own time."""
        if armed := failpoints.active():
            _log.warning("failpoints_armed", points=armed, advice="meant for tests; unset PENSTOCK_FAILPOINTS")
        self.driver.start()
        self._changing = asyncio.create_task(self.changes.run(), name="changes")

    def _publish(self, routes: Routes) -> None:
        self._front.predict.routes = routes

    async def open(self) -> None:
        """Accept: as a successor when everything is up and the predecessor has stopped; on a socket of systemd's, whose
        queue outlives gateways, when everything is up; else at once.

        Raises: InvalidSettings when there was something to replace, and it was not.
        """
        estate = self._estate
        if estate.predecessor is not None:
            await self._succeed(estate.predecessor)
        elif estate.shared:
            await self.wait_up()
        estate.settle()
        await self._front.start(self._bound)
        await self._admin.start(estate.admin, estate.admin_port)
        if estate.handover is not None:
            loop = asyncio.get_running_loop()
            self._handover = Handover(loop, estate.handover, estate.fds, self._let_go, lambda: collect(self.driver))
        _log.info("listening", url=self.url, models=[f"{m.name}/{m.version}" for m in self.driver.models.values()])

    async def _succeed(self, predecessor: Predecessor) -> None:
        """Come up while the predecessor serves, then take its place; also when it dies meanwhile.

        Engines may be built before that, for `engine_build_timeout_s` together: the predecessor waits no longer.
        """
        ready = asyncio.ensure_future(self.wait_ready(self._patience()))
        gone = asyncio.ensure_future(predecessor.wait_gone())
        try:
            timeout_s = self._start_timeout_s + self._settings.engine_build_timeout_s
            await asyncio.wait([ready, gone], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                gone.result()
                _log.warning("predecessor_died", pid=predecessor.pid)
                await self.wait_up()
                return
            if not ready.done():
                raise TimeoutError
            ready.result()
        except TimeoutError:
            limit = f"{self._start_timeout_s:g} s, building engines not counted,"
            raise InvalidSettings(f"not ready within {limit} and the running gateway serves on") from None
        finally:
            ready.cancel()
            gone.cancel()
            await asyncio.wait([ready, gone])
        await predecessor.take_over()
        _log.info("took_over", pid=predecessor.pid, version=predecessor.version)

    def _let_go(self) -> None:
        """A successor serves from now on: stop accepting at once, and go when everybody here has their answer."""
        self._front.stop_accepting()
        self._admin.stop_accepting()
        self._estate.give()
        self.ask_stop(0.0)

    def ask_stop(self, delay_s: float | None = None) -> None:
        """Go down, once: not ready at once, closed for new connections after `delay_s` (None: as the settings say)."""
        if not self.stop_asked.is_set():
            self._delay_s = self._settings.stop_delay_s if delay_s is None else delay_s
            self.stop_asked.set()

    def on_signal(self, delay_s: float) -> None:
        """A signal asks for the stop; a second one does not want to wait for anybody."""
        if self._signalled:
            self.hurried.set()
        self._signalled = True
        self.ask_stop(delay_s)

    async def announce(self) -> None:
        """Tell the service manager and the log when everything is up that comes up."""
        coming = asyncio.ensure_future(self.wait_up())
        try:
            while not coming.done():
                await asyncio.wait([coming], timeout=BUILDING_TOLD_S)
                if self.driver.core.is_building:
                    # Or the service manager ends what takes longer than it was told a start takes.
                    systemd.notify(f"EXTEND_TIMEOUT_USEC={int(self._start_timeout_s * 1e6)}")
        finally:
            coming.cancel()
        systemd.notify("READY=1")
        _log.info("ready" if self.ready else "not_ready", url=self.url)

    async def wait_up(self) -> None:
        """Until every model is up, or it is known that one does not come up: the others are served all the same."""
        with contextlib.suppress(InvalidSettings, TimeoutError):
            await self.wait_ready(self._patience())

    def _patience(self) -> Patience:
        """What a start may take, from now on."""
        return Patience(self._start_timeout_s, lambda: self.driver.core.is_building)

    async def wait_ready(self, patience: Patience | None = None) -> None:
        """Until every model is up, or `patience` is at its end.

        Raises: InvalidSettings when a worker refuses one, or children keep dying; TimeoutError.
        """
        core = self.driver.core
        while not self.ready:
            for name, detail in self.refused.items():
                raise InvalidSettings(f"model {name} was refused: {detail}")
            for role, children in (("decoder", core.feeder.decoders), ("worker", core.workers)):
                if children and all(child.restarts.failing for child in children):
                    raise InvalidSettings(f"every {role} process dies at its start; the log has its last words")
            if patience is not None and patience.left_s() <= 0:
                raise TimeoutError
            await asyncio.sleep(READY_POLL_S)

    async def drain(self) -> None:
        """Serve on while whoever sends requests here learns of the end, then finish with those who are connected.

        Both together take no longer than `drain_timeout_s`.
        """
        failpoints.hit("gateway.before_drain")
        end = asyncio.get_running_loop().time() + self._settings.drain_timeout_s
        systemd.notify("STOPPING=1")
        self._front.announce_drain()
        self.changes.draining = True
        _log.info("draining", delay_s=self._delay_s, drain_timeout_s=self._settings.drain_timeout_s)
        await asyncio.sleep(min(self._delay_s, self._settings.drain_timeout_s))
        if self._estate.shared or self._estate.given or (self._handover is not None and self._handover.pending):
            self._front.stop_accepting()  # Whoever has the other copies accepts those who wait in the kernel.
        if self._handover is not None:
            self._handover.close()
        self._drained = await self._front.drain(end)

    async def stop(self) -> None:
        """Refuse whatever is left, then end connections and children."""
        if self._handover is not None:
            self._handover.close()
        if self._changing is not None:
            self._changing.cancel()  # Whatever is being changed stays as it is: everything ends.
            await asyncio.wait([self._changing])
        answered = await self.driver.stop(0.0)
        await self._front.close(CLOSE_TIMEOUT_S)
        await self._admin.close(ADMIN_CLOSE_TIMEOUT_S)
        self.driver.memory.close()
        _log.info("stopped", everything_answered=self._drained and answered)


def _check(settings: Settings) -> None:
    """Raises InvalidModel when a model of the repository cannot be served, not even by another version of it.

    A version that was put there while the gateway served, and broken, must not keep it from starting again.
    """
    root = Path(settings.models)
    try:
        scan(root, settings.versions)
    except InvalidModel:
        look = Watcher(root).look(everybody)
        if not look.faults or any(name not in look.versions for name, _ in look.faults):
            raise


def _store(settings: Settings) -> Store | None:
    """Where the desired state is kept; None where this user has no place for it and the settings name none.

    Raises: InvalidSettings.
    """
    try:
        store = Store(state_dir(settings), Path(settings.models))
        store.load()
    except Unreadable as error:
        if settings.state_dir:
            raise
        _log.warning("no_state_kept", detail=str(error))
        return None
    return store


async def _serve(
    settings: Settings, models: list[ModelVersion] | None, estate: Estate, body: Callable[[Gateway], Awaitable[None]]
) -> int:
    """Run until a stop is asked for, or until `body` returns."""
    loop = asyncio.get_running_loop()
    gateway = Gateway(settings, models, estate)
    # Who stops a gateway at a terminal need not tell a load balancer of it.
    for number, delay_s in ((signal.SIGTERM, settings.stop_delay_s), (signal.SIGINT, 0.0)):
        loop.add_signal_handler(number, gateway.on_signal, delay_s)
    gateway.start()
    rest_collector()
    try:
        await _until(_live(gateway, body), gateway.stop_asked)
    finally:
        await _stop(gateway)
    return 0


async def _live(gateway: Gateway, body: Callable[[Gateway], Awaitable[None]]) -> None:
    """Open, then run `body`, and say when everything is up."""
    announcing = asyncio.ensure_future(gateway.announce())
    try:
        await gateway.open()
        await body(gateway)
    finally:
        announcing.cancel()
        await asyncio.wait([announcing])


async def _stop(gateway: Gateway) -> None:
    """Drain, as long as nobody is in a hurry; then end it."""
    draining = asyncio.ensure_future(gateway.drain())
    try:
        await _until(draining, gateway.hurried)
    finally:
        await gateway.stop()


async def _until(body: Awaitable[None], asked: asyncio.Event) -> None:
    """Run `body` to its end, or until that is asked for."""
    running = asyncio.ensure_future(body)
    stop = asyncio.ensure_future(asked.wait())
    await asyncio.wait([running, stop], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def forever(_gateway: Gateway) -> None:
    """The body of a plain server."""
    await asyncio.Event().wait()


def run(settings: Settings, body: Callable[[Gateway], Awaitable[None]] = forever, *, replace: bool = False) -> int:
    """Serve with these settings until SIGTERM, SIGINT, or the end of `body`. Returns the exit status.

    `replace`: take the place of the gateway that listens there. Raises: InvalidSettings, InvalidModel before anything
    is started, InvalidSettings when that gateway stays.
    """
    if not settings.watch:
        _check(settings)  # Who watches is told in the log, and mends it while it serves.
    with _logging(settings), contextlib.closing(Estate.acquire(settings, replace=replace)) as estate:
        return _run(settings, None, estate, body)


def serve(settings: Settings, models: list[ModelVersion], bound: socket.socket) -> int:
    """`run` with models that were read and a socket of the caller's, which is closed at the end. Nobody replaces it."""
    with _logging(settings), contextlib.closing(Estate(bound)) as estate:
        return _run(settings, models, estate, forever)


def _run(
    settings: Settings, models: list[ModelVersion] | None, estate: Estate, body: Callable[[Gateway], Awaitable[None]]
) -> int:
    keep_heap()
    raise_fd_limit(settings.connections_max, MODELS_EXPECTED if models is None else len(models))
    return uvloop.run(_serve(settings, models, estate, body))


@contextlib.contextmanager
def _logging(settings: Settings) -> Iterator[None]:
    stop_logs = logs.start(settings.log_level)
    try:
        yield
    finally:
        stop_logs()
