"""The gateway under test: a real one in a process of its own, one model in it, and open-loop traffic against it.

It runs the server's own code with the batching that is to be tried; the model's files stay as they are. The socket is
bound here and inherited, so no port is ever in use by somebody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec

from gateway.loadtest import openloop, schedules, shots
from gateway.tuning.search import Probe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from gateway.config import Settings
    from gateway.models.repository import ModelVersion
    from gateway.tuning.photos import Photo

POLL_S = 0.02
STOP_TIMEOUT_S = 5.0

LEAD_SHARE = 0.15
"""Of a probe's time: what comes first fills an empty server, and is not counted."""

COUNT_MAX = 50_000
"""Requests of one probe."""

SAMPLE_EVERY = 101
"""Answers of which the words are kept, for when all of them are errors."""

CONNECTIONS_MAX = 1024
CONNECTIONS_WARM = 32

_REFUSED = frozenset({429, 503, 504})
_HTTP_OK = 200


class Unserved(Exception):
    """The gateway under test does not come up, or does not answer as one."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway under test is told: whose child it is, where to listen, what to serve and how."""

    parent: int
    listen_fd: int
    directory: str
    contract: str
    """JSON of the contract that stands over the file's."""
    settings: str
    """JSON."""


@contextlib.asynccontextmanager
async def serving(model: ModelVersion, settings: Settings) -> AsyncIterator[int]:
    """Start it, wait until it is ready, give its port; it is gone at the end. Raises Unserved."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = int(bound.getsockname()[1])
        process = _start(model, settings, bound)
    try:
        await _wait_ready(process, port, settings.child_start_timeout_s)
        yield port
    finally:
        await _stop(process)


def _start(model: ModelVersion, settings: Settings, bound: socket.socket) -> subprocess.Popen[bytes]:
    order = Order(
        parent=os.getpid(),
        listen_fd=bound.fileno(),
        directory=str(model.directory),
        contract=msgspec.json.encode(model.contract).decode(),
        settings=msgspec.json.encode(settings).decode(),
    )
    with os.fdopen(os.memfd_create("penstock-tune", os.MFD_CLOEXEC), "w+b") as file:
        file.write(msgspec.json.encode(order))
        file.seek(0)
        return subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-P", "-m", "gateway.tuning", str(file.fileno())],
            pass_fds=(file.fileno(), bound.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C at a terminal is for us to handle
        )


async def _wait_ready(process: subprocess.Popen[bytes], port: int, timeout_s: float) -> None:
    """Raises Unserved."""
    try:
        async with asyncio.timeout(timeout_s):
            while await _status(port, "/readyz") != _HTTP_OK:
                if process.poll() is not None:
                    raise Unserved(f"the gateway under test ended with status {process.returncode}; its log is above")
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise Unserved(f"the gateway under test was not ready after {timeout_s:g} s; its log is above") from None


async def _status(port: int, path: str) -> int:
    """The status of a GET; 0 without an answer."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return 0
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        line = await reader.readline()
    except OSError:
        return 0
    finally:
        writer.close()
    words = line.split()
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


async def _stop(process: subprocess.Popen[bytes]) -> None:
    """End it and reap it; its children die with it."""
    loop = asyncio.get_running_loop()
    end = loop.time() + STOP_TIMEOUT_S
    for _ in range(2):  # the second one ends the drain
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(POLL_S)
    while process.poll() is None and loop.time() < end:  # noqa: ASYNC110 - once in a life
        await asyncio.sleep(POLL_S)
    process.kill()
    process.wait()


def requests(model: ModelVersion, port: int, photos: Sequence[Photo], deadline_ms: float) -> list[bytes]:
    """One request per photo, each with the deadline."""
    path = f"/predictions/{model.name}/{model.version}?deadline_ms={deadline_ms:g}"
    return [openloop.post("127.0.0.1", port, path, photo.body, "application/octet-stream") for photo in photos]


async def probe(
    port: int, bodies: Sequence[bytes], rate: float, seconds: float, *, deadline_ms: float, seed: int, confirms: bool
) -> Probe:
    """Send Poisson traffic at `rate` for `seconds`, and a lead before it.

    Raises: Unserved, UnreadableAnswer.
    """
    lead_s = LEAD_SHARE * seconds
    seconds = min(seconds, COUNT_MAX / rate)
    due_s = schedules.poisson(rate, lead_s + seconds, seed)
    try:
        found = await openloop.fire(
            "127.0.0.1",
            port,
            bodies,
            due_s,
            connections_max=CONNECTIONS_MAX,
            connections_warm=CONNECTIONS_WARM,
            timeout_s=max(1.0, 4 * deadline_ms / 1e3),
            sample_every=SAMPLE_EVERY,
        )
    except OSError as error:
        raise Unserved(f"the gateway under test is gone ({error.strerror}); its log is above") from None
    counted = found.between(lead_s, lead_s + seconds)
    count = len(counted)
    if count and not any(counted.count(status) for status in (_HTTP_OK, *_REFUSED, *shots.NAMES)):
        status = next(iter(counted.counts()))
        raise Unserved(f"the gateway under test answers {status}, for one: {_detail(found)}")
    return Probe(
        rate,
        count,
        counted.percentile_ms(50, _HTTP_OK),
        counted.percentile_ms(99, _HTTP_OK),
        1 - counted.count(_HTTP_OK) / count if count else 0.0,
        confirms,
    )


def _detail(found: shots.Shots) -> str:
    """Some answer's own words."""
    for body in found.bodies.values():
        return body[:300].decode(errors="replace")
    return ""
