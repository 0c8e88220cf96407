"""The gateway under test: started as its user would start it, and seen from outside only: /proc, its log, its pages.

One that is started here is gone at the end whatever happens, and its children with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from bench.faults_lab.pictures import CLASS_COUNT, SIDE
from gateway.config import KEYS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

ROOT = Path(__file__).resolve().parents[2]

WAIT_S = 60.0
"""Bound of every wait for something that has to come."""

SETTINGS: dict[str, object] = {
    "log_level": "info",
    # Connections are kept for as long as a trial lasts, so that none is closed under a request that is just sent.
    "header_timeout_s": 300,
    # Clients say which address they come from.
    "trusted_proxies": "127.0.0.0/8",
    "forwarded": "x-forwarded-for",
}
"""What every gateway under test is started with."""

POLL_S = 0.002
"""How often a condition is looked at."""

_SLEEPING = {"x86_64": {"230", "35"}, "aarch64": {"115", "101"}}
"""Numbers of clock_nanosleep and nanosleep: what a fake model does while it runs a batch."""


Key = tuple[str, int, int]
"""Role, index and incarnation of a child."""


class Event(NamedTuple):
    """One line of the log. `at_s`: `time.time()`, cut to whole milliseconds by the logger."""

    at_s: float
    name: str
    fields: dict[str, Any]


class Life(NamedTuple):
    """One life of a child, as the log tells it. Times as in Event; 0: not yet."""

    role: str
    index: int
    incarnation: int
    pid: int
    started_s: float
    ready_s: float = 0.0
    died_s: float = 0.0
    cause: str = ""

    @property
    def key(self) -> Key:
        """Its key in `Target.lives`."""
        return self.role, self.index, self.incarnation


def write_model(repository: Path, name: str = "m", version: int = 1, **sections: Mapping[str, object]) -> Path:
    """Write a fake model that names the CRC-32 of its pixels; `sections` of its model.toml stand over these."""
    whole: dict[str, dict[str, object]] = {
        "input": {"width": SIDE, "height": SIDE, "crop_fraction": 1.0, "resample": "nearest", "exact": True},
        "output": {"task": "classification", "top_k": 1},
        "batching": {"sizes": [1, 4]},
        "fake": {"class_count": CLASS_COUNT, "digest": True},
    }
    for section, values in sections.items():
        whole[section] = {**whole.get(section, {}), **values}
    text = 'backend = "fake"\n'
    for section, fields in whole.items():
        text += f"[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(text)
    return folder


class Target:
    """A running `penstock serve`. `poll` reads what it logged since; what is known of its children is in `lives`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.pid = process.pid
        self.port = 0
        self.events: list[Event] = []
        self.lives: dict[Key, Life] = {}
        self._by_pid: dict[int, Key] = {}
        self.log = log
        self._lines = log.open("rb")
        self._rest = b""

    # -- the log -------------------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Read what was logged since the last time."""
        *lines, self._rest = (self._rest + self._lines.read()).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                fields = json.loads(line)
                stamp = dt.datetime.fromisoformat(fields.pop("time")).timestamp()
                self._note(Event(stamp, fields.pop("event"), fields))

    def _note(self, event: Event) -> None:
        self.events.append(event)
        fields = event.fields
        if event.name == "child_started":
            key = (fields["role"], fields["index"], fields["incarnation"])
            self.lives[key] = Life(*key, fields["pid"], event.at_s)
            self._by_pid[fields["pid"]] = key
        elif event.name in ("worker_ready", "decoder_ready"):
            key = self._by_pid[fields["pid"]]
            self.lives[key] = self.lives[key]._replace(ready_s=event.at_s)
        elif event.name in ("child_died", "child_ended"):
            key = self._by_pid.pop(fields["pid"])
            self.lives[key] = self.lives[key]._replace(died_s=event.at_s, cause=fields["cause"])
        elif event.name == "listening":
            self.port = int(fields["url"].rpartition(":")[2])

    def found(self, name: str, **fields: object) -> list[Event]:
        """The log lines so far with this event and these fields."""
        return [
            event
            for event in self.events
            if event.name == name and all(event.fields.get(key) == value for key, value in fields.items())
        ]

    def up(self, role: str, index: int | None = None) -> list[Life]:
        """The children of a role that are up, as far as the log was read."""
        alive = (self.lives[key] for key in self._by_pid.values() if key[0] == role and index in (None, key[1]))
        return [life for life in alive if life.ready_s]

    async def wait(self, what: str, condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
        """The first true value of `condition`, which is asked whenever the log was read. Raises TimeoutError."""
        end = time.monotonic() + timeout_s
        while True:
            self.poll()
            if found := condition():
                return found
            if self.process.poll() is not None:
                raise TimeoutError(f"the gateway exited with {self.process.returncode}, before {what}")
            if time.monotonic() > end:
                raise TimeoutError(f"in vain for {timeout_s:g} s: {what}")
            await asyncio.sleep(POLL_S)

    async def wait_up(self, role: str, index: int) -> Life:
        """Until that child is up."""
        return (await self.wait(f"{role} {index} is up", lambda: self.up(role, index)))[0]

    def admin_socket(self) -> Path:
        """Where its admin front listens."""
        return self.log.parent / "penstock" / f"admin-{self.port}.sock"

    # -- its pages -----------------------------------------------------------------------------------------------

    async def get(self, path: str) -> tuple[int, bytes]:
        """(status, body) of one of its pages."""
        return await asyncio.to_thread(_get, f"http://127.0.0.1:{self.port}{path}")

    async def post(self, path: str, body: bytes, content_type: str) -> int:
        """The status of one request, outside any ledger."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", body, {"Content-Type": content_type}, method="POST"
        )
        return (await asyncio.to_thread(_get, request))[0]

    async def wait_ready(self) -> None:
        """Until it says that it is ready."""
        await self.wait("it listens", lambda: self.port)
        end = time.monotonic() + WAIT_S
        while (await self.get("/readyz"))[0] != 200:
            if time.monotonic() > end or self.process.poll() is not None:
                raise TimeoutError("the gateway did not get ready")
            await asyncio.sleep(0.01)
        self.poll()

    async def names(self) -> list[str]:
        """The models that it serves."""
        _, body = await self.get("/models")
        return [model["name"] for model in json.loads(body)["models"]]

    async def metrics(self) -> dict[tuple[str, ...], float]:
        """Every sample of /metrics: (name, label values in the order of their names) → value."""
        _, body = await self.get("/metrics")
        return {
            (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }

    # -- ending --------------------------------------------------------------------------------------------------

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit status. Raises TimeoutExpired."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = await asyncio.to_thread(self.process.wait, WAIT_S)
        self.poll()
        return status

    def close(self) -> None:
        """End it at once if it still lives, and its children."""
        if self.process.poll() is None:
            children = all_children(self.pid)
            self.process.kill()
            self.process.wait()
            for pid in children:  # They go by themselves; one that is stopped by a trial, too.
                with contextlib.suppress(OSError):
                    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        self._lines.close()


def _get(url: str | urllib.request.Request) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def all_children(pid: int) -> list[int]:
    """Pids of every child of a process, whichever of its threads started it."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def is_in_batch(pid: int) -> bool:
    """Whether a fake model is at work in this process: it sleeps out its batch, or it computes."""
    try:
        call = Path(f"/proc/{pid}/syscall").read_text().split()[0]
    except (OSError, IndexError):
        return False
    return call == "running" or call in _SLEEPING.get(os.uname().machine, ())


def send_signal(pid: int, number: int) -> bool:
    """Send a signal to a child of the target; False when it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def start(
    repository: Path,
    folder: Path,
    *flags: str,
    port: int = 0,
    environ: Mapping[str, str] | None = None,
    **settings: object,
) -> Target:
    """Start a gateway with settings by environment, which logs into `folder` and keeps its sockets there."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    variables |= {"XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder), "PYTHONPATH": str(ROOT)}
    for name, value in {**SETTINGS, **settings}.items():
        if name in KEYS:
            variables[f"PENSTOCK_{name.upper()}"] = str(value)
    log = folder / f"{time.monotonic_ns()}.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--models", str(repository), "--port", str(port), *flags],
            cwd=ROOT,
            env=variables | dict(environ or {}),
            stdout=subprocess.DEVNULL,
            stderr=sink,
            start_new_session=True,  # Ctrl-C is the bench's to handle
        )
    return Target(process, log)


@contextlib.asynccontextmanager
async def target(
    repository: Path, environ: Mapping[str, str] | None = None, **settings: object
) -> AsyncIterator[Target]:
    """`start` in a folder of its own; wait until it is ready, and end it."""
    with tempfile.TemporaryDirectory(prefix="penstock-faults-") as folder:
        running = start(repository, Path(folder), environ=environ, **settings)
        try:
            await running.wait_ready()
            yield running
        finally:
            running.close()
