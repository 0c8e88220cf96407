"""The composition root: settings → models → segments → children → front, stopped in reverse. Names uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import resource
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from gateway import logs
from gateway.driver import Driver
from gateway.errors import InvalidSettings
from gateway.http.front import Front
from gateway.models.repository import scan
from shm import failpoints

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.config import Settings
    from gateway.models.repository import ModelVersion

_log = logs.get("server")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

HEAP_KEPT_SIZE = 64 << 20
"""Bytes of freed memory that the gateway keeps for the next bodies."""

FDS_PER_MODEL, FDS_RESERVED = 4, 256
"""Descriptors for each model's segments, and for children, listeners and files."""

READY_POLL_S = 0.02

CLOSE_TIMEOUT_S = 2.0
"""How long connections get to take their last answers once everything was answered."""


def keep_heap() -> None:
    """Have the allocator keep what it was given back, up to HEAP_KEPT_SIZE.

    Bodies come in pieces of 256 KiB. By default each of them is mapped, faulted in, and unmapped again: 1,290 µs of
    CPU a request for a 1080p photo of 500 kB, against 690 so. Source: mallopt(3), glibc; others have no such call.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, HEAP_KEPT_SIZE // 2)
        libc.mallopt(_M_TRIM_THRESHOLD, HEAP_KEPT_SIZE)


def raise_fd_limit(connections_max: int, model_count: int) -> None:
    """As many descriptors as this user may have. Logs a warning when that is too few for what the settings promise."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = connections_max + FDS_PER_MODEL * model_count + FDS_RESERVED
    if hard != resource.RLIM_INFINITY and hard < needed:
        _log.warning("few_descriptors", limit=hard, needed=needed, advice="raise ulimit -n or lower connections_max")


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, taken before anything else is started. Raises InvalidSettings when the address is not free."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidSettings(
            f"cannot listen on {host}:{port}: {reason}; choose another with --port or --host"
        ) from None
    return bound


class Gateway:
    """One running gateway, inside an event loop."""

    def __init__(self, settings: Settings, models: list[ModelVersion], bound: socket.socket) -> None:
        self._bound = bound
        self.driver = Driver(settings, models)
        self._front = Front(self.driver, settings)

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

    async def start(self) -> None:
        """Children first, then the front; both come up on their own time."""
        if armed := failpoints.active():
            _log.warning("failpoints_armed", points=armed, advice="meant for tests; unset PENSTOCK_FAILPOINTS")
        self.driver.start()
        await self._front.start(self._bound)
        _log.info("listening", url=self.url, models=[f"{m.name}/{m.version}" for m in self.driver.models.values()])

    async def wait_ready(self) -> None:
        """Until every model is up. Raises InvalidSettings when a worker refuses one, or children keep dying."""
        core = self.driver.core
        while not self.ready:
            for name, detail in self.refused.items():
                raise InvalidSettings(f"model {name} was refused: {detail}")
            for role, children in (("decoder", core.feeder.decoders), ("worker", core.workers)):
                if all(child.restarts.failing for child in children):
                    raise InvalidSettings(f"every {role} process dies at its start; the log has its last words")
            await asyncio.sleep(READY_POLL_S)

    async def stop(self, drain_timeout_s: float) -> bool:
        """Refuse what is new, finish what was accepted, then end connections and children."""
        self.driver.core.drain()
        self._front.stop_accepting()
        drained = await self.driver.stop(drain_timeout_s)
        await self._front.close(CLOSE_TIMEOUT_S)
        self.driver.memory.close()
        _log.info("stopped", everything_answered=drained)
        return drained


async def _serve(
    settings: Settings,
    models: list[ModelVersion],
    bound: socket.socket,
    body: Callable[[Gateway], Awaitable[None]],
) -> int:
    """Run until a signal or until `body` returns; the second signal ends the drain at once."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    hurried = asyncio.Event()

    def on_signal() -> None:
        (hurried if asked.is_set() else asked).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    gateway = Gateway(settings, models, bound)
    await gateway.start()
    # What exists now lives as long as the process: without this, every full collection stops the loop to look at it.
    gc.collect()
    gc.freeze()
    try:
        await _until(body(gateway), asked)
    finally:
        asked.set()
        await _stop(gateway, settings.drain_timeout_s, hurried)
    return 0


async def _stop(gateway: Gateway, drain_timeout_s: float, hurried: asyncio.Event) -> None:
    """Stop; when hurried in the middle of the drain, at once."""
    stopping = asyncio.ensure_future(gateway.stop(drain_timeout_s))
    hurry = asyncio.ensure_future(hurried.wait())
    await asyncio.wait([stopping, hurry], return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    if not stopping.done():
        stopping.cancel()
        await asyncio.wait([stopping])
        await gateway.stop(0.0)
    else:
        stopping.result()


async def _until(body: Awaitable[None], asked: asyncio.Event) -> None:
    """Run `body` to its end, or until a stop is asked for."""
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


def run(settings: Settings, body: Callable[[Gateway], Awaitable[None]] = forever) -> int:
    """Serve with these settings until SIGTERM, SIGINT, or the end of `body`. Returns the exit status.

    Raises: InvalidSettings, InvalidModel before anything is started.
    """
    models = scan(Path(settings.models), settings.versions)
    return serve(settings, models, bind(settings.host, settings.port), body)


def serve(
    settings: Settings,
    models: list[ModelVersion],
    bound: socket.socket,
    body: Callable[[Gateway], Awaitable[None]] = forever,
) -> int:
    """`run` with models that were read and a socket that was bound already, which is closed at the end."""
    keep_heap()
    stop_logs = logs.start(settings.log_level)
    raise_fd_limit(settings.connections_max, len(models))
    try:
        return uvloop.run(_serve(settings, models, bound, body))
    finally:
        bound.close()
        stop_logs()
