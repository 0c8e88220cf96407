"""Models at run time over the real driver and core, with children that are played: what they say follows a script.

Nothing here is a process, so that what cannot be had of a real one is had at once: a worker that hangs in the kernel,
memory that stays with somebody, no room for slots.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from typing import TYPE_CHECKING, Any

import msgspec

from gateway import config
from gateway.driver import Driver
from gateway.lifecycle import holdings
from gateway.lifecycle.changes import Changes
from gateway.lifecycle.desired import Store
from gateway.lifecycle.holdings import Holding, Process
from gateway.models.spec import Contract
from gateway.scheduling.ticket import Role
from gateway.supervisor import Obituary
from shm import layout, wire
from shm.segment import Segment
from tests.support.gateways import write_model

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    import pytest

    from gateway.lifecycle.operations import Operation
    from gateway.lifecycle.routes import Routes

MIB = 1 << 20
BASE_SIZE = 10 * MIB
"""What a worker without models holds."""

_pids = itertools.count(1000)


class Actor:
    """One life of one child. A worker loads its models as their contracts' `[fake]` says."""

    def __init__(self, plant: Plant, role: Role, index: int, seat: int, heritage: Any, on_frame: Any, on_death: Any):
        self.role, self.index, self.seat, self.incarnation = role, index, seat, 1
        self.pid = next(_pids)
        self.wanted = False
        self.link = self
        self._plant = plant
        self._on_frame = on_frame
        self._on_death = on_death
        recorder = Segment.create("recorder", layout.RECORDER_SIZE)
        self._models = heritage(0, recorder).models
        recorder.close()
        plant.sizes[self.pid] = BASE_SIZE
        plant.loop.call_soon(self._live)

    def _live(self) -> None:
        if self.role is Role.DECODER:
            self._say(wire.DecoderReady(["no_new_privs"]))
            return
        for grant in () if self._plant.mute else self._models:
            fake = msgspec.json.decode(grant.contract, type=Contract).fake
            assert fake is not None
            self._say(wire.Loading(grant.index, "session", 0.0))
            if fake.load_ms or self._plant.never:
                return
            if fake.load == "crash" or grant.name in self._plant.crashing:
                self._die(Obituary(-signal.SIGSEGV, 0))
                return
            if fake.load != "ok" or grant.name in self._plant.refusing:
                self._say(wire.LoadFailed(grant.index, f"{grant.name} is refused"))
                continue
            self._plant.sizes[self.pid] += fake.memory_size
            fields = [layout.Field("index", "uint32", (2,)), layout.Field("probability", "float32", (2,))]
            profile = [wire.ProfilePoint(1, 1_000_000, 2_000_000)]
            self._say(wire.Loaded(grant.index, fields, profile, "fake", 1, fake.memory_size))
        if not self._plant.mute:
            self._say(wire.WorkerReady("cpu", 1, self._plant.sizes[self.pid]))

    def _say(self, message: msgspec.Struct) -> None:
        if self._plant.children.get((self.role, self.index)) is self:
            self._on_frame(self, memoryview(wire.encode(message)))

    def _die(self, obituary: Obituary) -> None:
        if self._plant.children.pop((self.role, self.index), None) is self:
            if self.pid not in self._plant.leaking:
                self._plant.sizes.pop(self.pid)
            self._on_death(self, obituary)

    def kill(self) -> None:
        if not self._plant.stuck:
            self._plant.loop.call_soon(self._die, Obituary(-signal.SIGKILL, 0))

    def send(self, _frame: bytes) -> None:
        """Nobody reads it."""

    def send_with_fd(self, _frame: bytes, _fd: int) -> None:
        """Nobody reads it."""

    def close(self) -> None:
        """There is nothing to close."""

    def raise_address_space(self, size: int) -> None:
        """It has none."""

    def stays_stopped(self) -> bool:
        return False


class Plant:
    """A gateway's driver and `Changes`, over a repository."""

    def __init__(self, root: Path, state: Path, patch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.children: dict[tuple[Role, int], Actor] = {}
        self.stopping = False
        self.sizes: dict[int, int] = {}
        """Bytes that every process holds, also dead ones that leak."""
        self.leaking: set[int] = set()
        self.stuck = self.never = self.mute = False
        """Killed ones do not die; workers get no further than the beginning of their first load, or say nothing."""
        self.crashing: set[str] = set()
        self.refusing: set[str] = set()
        self.free: int | None = None
        self.on_device = False
        """Whether all memory is the device's."""
        self.tables: list[Routes] = []
        self.spawned: list[tuple[int, tuple[str, ...]]] = []
        """(seat, names of its models) of every worker that was started."""
        given = {"models": str(root), "decoders": 1, "bodies_size_max": MIB, "body_size_max": 1 << 16, **settings}
        self.settings = config.load(None, {}, given)
        self.driver = Driver(self.settings, [])
        self.driver.supervisor = self.driver.children._supervisor = self
        self.core = self.driver.core
        self.changes = Changes(self.driver, self.settings, store=Store(state, root))
        patch.setattr(holdings, "family", lambda pid: [Process(pid, "1", "actor")])
        patch.setattr(holdings, "hold", self._hold)
        patch.setattr(holdings, "free_size", lambda _device: self.free)

    def _hold(self, processes: list[Process]) -> Holding:
        found = {process: self.sizes[process.pid] for process in processes if process.pid in self.sizes}
        size = sum(found.values())
        return Holding(0, size, found) if self.on_device else Holding(size, 0, found)

    def spawn(self, role, index, *, seat, module, heritage, on_frame, on_eof, on_death):
        del module, on_eof
        actor = self.children[role, index] = Actor(self, role, index, seat, heritage, on_frame, on_death)
        if role is Role.WORKER:
            self.spawned.append((seat, tuple(grant.name for grant in actor._models)))

    def kill(self, role, index, _reason, *, wanted=False):
        self.children[role, index].wanted = wanted
        self.children[role, index].kill()

    def start_timeout(self, seconds: float) -> None:
        """How long a child may take to come up, from now on."""
        self.changes._turnover._settings = msgspec.structs.replace(self.settings, child_start_timeout_s=seconds)
        self.core._watch._start_timeout_ns = int(seconds * 1e9)

    @property
    def routes(self) -> Routes:
        """The table that the front has now."""
        return self.tables[-1]

    def serves(self, name: str, version: str = "") -> bool:
        """Whether requests are sent to a line that is up."""
        entry = self.routes.entries.get((name, version))
        return hasattr(entry, "arena") and self.core.is_up(entry)

    async def done(self, operation: Operation, state: str = "succeeded") -> Operation:
        """An operation that has ended so."""
        assert await operation.wait_ended(20)
        assert operation.state == state, operation.document()
        return operation

    async def wait(self, condition: Callable[[], Any]) -> None:
        end = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < end, "in vain"
            await asyncio.sleep(0.002)

    def worker_on(self, seat: int) -> Actor:
        """The newest worker on a seat, whether it serves or not."""
        return [child for child in self.children.values() if child.role is Role.WORKER and child.seat == seat][-1]

    def worker(self, seat: int = 0) -> Actor:
        """Who serves a seat."""
        index = self.changes._turnover.seats[seat]
        assert index is not None
        return self.children[Role.WORKER, index]


def model(root: Path, name: str = "m", version: int = 1, **sections: Any) -> Path:
    """Write a fake model that actors can play."""
    return write_model(
        root, name, version, **({"batching": {"sizes": [1]}, "output": {"top_k": 1, "top_k_max": 2}} | sections)
    )


def lazy(size: int = 0, idle_s: float = 0.0) -> dict[str, Any]:
    """Sections of a lazy model of so many bytes."""
    return {"residency": {"lazy": True, "idle_s": idle_s}, "fake": {"memory_size": size}}


def play(
    root: Path,
    story: Callable[[Plant], Awaitable[None]],
    patch: pytest.MonkeyPatch,
    *,
    ready: bool = True,
    **settings: Any,
) -> None:
    """Run `story` over a gateway that has come up."""

    async def run() -> None:
        plant = Plant(root, root.parent / "state", patch, **settings)
        plant.changes.begin(plant.tables.append)
        plant.driver.start()
        changing = asyncio.create_task(plant.changes.run())
        try:
            if ready:
                await plant.wait(lambda: plant.core.is_ready)
            await story(plant)
        finally:
            changing.cancel()
            await asyncio.wait([changing])
            plant.stuck = False
            await plant.driver.stop(0.0)
            plant.driver.memory.close()

    asyncio.run(run())
