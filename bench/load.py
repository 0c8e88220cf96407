"""Load a server over HTTP: closed loop (N connections) or open loop (Poisson arrivals at a rate).

Latency counts from the time at which a request was meant to be sent, not from when a connection was free, so a server
that stalls cannot hide it. The warm-up is cut. Results go to bench/out/load.json with the environment.

    python bench/load.py                                   # a null model, both loops
    python bench/load.py --url http://127.0.0.1:8080/predictions/m --file cat.jpg --rate 200 --seconds 30
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # else bench/gateway.py would hide the package `gateway`

import argparse
import asyncio
import collections
import random
import time
import urllib.parse
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from bench import rig


class Result(NamedTuple):
    """One run. `latencies_ms` of answered requests sent after the warm-up; `lateness_ms`: how late they were sent.

    `answered`: requests that got a 200, those of the warm-up and of the end included.
    """

    latencies_ms: np.ndarray
    lateness_ms: np.ndarray
    statuses: dict[int, int]
    seconds: float
    answered: int = 0

    @property
    def rate(self) -> float:
        return self.statuses.get(200, 0) / self.seconds

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.latencies_ms, share)) if len(self.latencies_ms) else float("nan")


def request_bytes(url: str, body: bytes, content_type: str) -> tuple[str, int, bytes]:
    """(host, port, the whole request as it goes over the wire)."""
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return host, port, head.encode() + body


class Connection(asyncio.Protocol):
    """One keep-alive connection with one request in flight. `done(self, status)` is called at each answer."""

    def __init__(self, done) -> None:  # noqa: ANN001 - a callable
        self._done = done
        self._buffer = b""
        self.meant = 0.0
        self.sent = 0.0
        self.transport: asyncio.Transport | None = None
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by type

    def send(self, message: bytes, meant: float) -> None:
        assert self.transport is not None
        self.busy = True
        self.meant, self.sent = meant, time.perf_counter()
        self.transport.write(message)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        head_end = buffer.find(b"\r\n\r\n")
        if head_end < 0:
            self._buffer = buffer
            return
        at = buffer.lower().find(b"content-length:", 0, head_end)
        length = int(buffer[at + 15 : buffer.find(b"\r\n", at)]) if at >= 0 else 0
        if len(buffer) < head_end + 4 + length:
            self._buffer = buffer
            return
        self._buffer = b""
        self.busy = False
        self._done(self, int(buffer[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.busy:
            self.busy = False
            self._done(self, 0)


class Run:
    """State of one measurement."""

    def __init__(self, warmup_s: float, seconds: float) -> None:
        self.begin = time.perf_counter()
        self.counted_from = self.begin + warmup_s
        self.end = self.counted_from + seconds
        self.latencies: list[float] = []
        self.lateness: list[float] = []
        self.statuses: collections.Counter[int] = collections.Counter()
        self.seconds = seconds
        self.answered = 0

    def note(self, connection: Connection, status: int) -> None:
        now = time.perf_counter()
        self.answered += status == 200
        if self.counted_from <= connection.meant and now <= self.end + 5:
            self.statuses[status] += 1
            self.latencies.append((now - connection.meant) * 1e3)
            self.lateness.append((connection.sent - connection.meant) * 1e3)

    def result(self) -> Result:
        return Result(
            np.array(self.latencies), np.array(self.lateness), dict(self.statuses), self.seconds, self.answered
        )


async def closed(url: str, body: bytes, content_type: str, connections: int, warmup_s: float, seconds: float) -> Result:
    """Every connection sends its next request when the last one was answered."""
    host, port, message = request_bytes(url, body, content_type)
    loop = asyncio.get_running_loop()
    run = Run(warmup_s, seconds)
    left = loop.create_future()
    live = connections

    def done(connection: Connection, status: int) -> None:
        nonlocal live
        now = time.perf_counter()
        if now <= run.end:
            run.note(connection, status)
        else:
            run.answered += status == 200
        if now < run.end and status:
            connection.send(message, now)
        else:
            live -= 1
            if not live and not left.done():
                left.set_result(None)

    made = [(await loop.create_connection(lambda: Connection(done), host, port))[1] for _ in range(connections)]
    for connection in made:
        connection.send(message, time.perf_counter())
    await asyncio.wait_for(left, warmup_s + seconds + 30)
    for connection in made:
        if connection.transport is not None:
            connection.transport.close()
    return run.result()


async def poisson(
    url: str, body: bytes, content_type: str, rate: float, warmup_s: float, seconds: float, seed: int = 1
) -> Result:
    """Arrivals at `rate` per second whatever the server does; a connection is opened when none is free."""
    host, port, message = request_bytes(url, body, content_type)
    loop = asyncio.get_running_loop()
    draw = random.Random(seed)
    run = Run(warmup_s, seconds)
    idle: list[Connection] = []
    pending = 0

    def done(connection: Connection, status: int) -> None:
        nonlocal pending
        pending -= 1
        run.note(connection, status)
        if status:
            idle.append(connection)

    async def dial(meant: float) -> None:
        _, connection = await loop.create_connection(lambda: Connection(done), host, port)
        connection.send(message, meant)

    dialled: set[asyncio.Task[None]] = set()
    meant = time.perf_counter()
    while meant < run.end:
        now = time.perf_counter()
        if meant > now:
            await asyncio.sleep(meant - now)
        while meant <= time.perf_counter():
            pending += 1
            if idle:
                idle.pop().send(message, meant)
            else:
                task = loop.create_task(dial(meant))
                dialled.add(task)
                task.add_done_callback(dialled.discard)
            meant += draw.expovariate(rate)
    give_up = time.perf_counter() + 15
    while pending and time.perf_counter() < give_up:
        await asyncio.sleep(0.01)
    for connection in idle:
        if connection.transport is not None:
            connection.transport.close()
    return run.result()


def table(rows: list[tuple[str, Result]]) -> Table:
    """Runs side by side."""
    shown = Table("run", "answered/s", "not 200", "p50 ms", "p90 ms", "p99 ms", "max ms", "sent late p99 ms")
    for name, result in rows:
        bad = sum(count for status, count in result.statuses.items() if status != 200)
        late = float(np.percentile(result.lateness_ms, 99)) if len(result.lateness_ms) else float("nan")
        percentiles = (f"{result.percentile(share):.2f}" for share in (50, 90, 99, 100))
        shown.add_row(name, f"{result.rate:,.0f}", str(bad), *percentiles, f"{late:.2f}")
    return shown


def summary(result: Result) -> dict[str, object]:
    """A run as JSON."""
    return {
        "rate": result.rate,
        "statuses": {str(status): count for status, count in result.statuses.items()},
        "latency_ms": {str(share): result.percentile(share) for share in (50, 90, 99, 99.9, 100)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="load this server instead of one started here")
    parser.add_argument("--file", type=Path, help="body to send; default: a 224x224 JPEG")
    parser.add_argument("--content-type", default="image/jpeg")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--rate", type=float, help="open loop only, at this rate")
    parser.add_argument("--closed-only", action="store_true", help="no open loop after the closed one")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--warmup", type=float, default=2.0)
    arguments = parser.parse_args()
    body = arguments.file.read_bytes() if arguments.file else rig.jpeg(224, 224, 85)
    rows: list[tuple[str, Result]] = []
    console = Console()

    def measure(url: str) -> None:
        common = (url, body, arguments.content_type)
        if arguments.rate is None:
            with console.status(f"closed loop, {arguments.connections} connections"):
                result = uvloop.run(closed(*common, arguments.connections, arguments.warmup, arguments.seconds))
            rows.append((f"closed, {arguments.connections} connections", result))
        if arguments.closed_only:
            return
        rate = arguments.rate or rows[0][1].rate / 2
        with console.status(f"Poisson arrivals, {rate:.0f}/s"):
            rows.append(
                (f"Poisson, {rate:.0f}/s", uvloop.run(poisson(*common, rate, arguments.warmup, arguments.seconds)))
            )

    if arguments.url:
        measure(arguments.url)
    else:
        with rig.temporary_repository() as repository:
            rig.write_null(repository)
            with rig.gateway(repository) as running:
                measure(f"{running.url}/predictions/null")
    console.print(table(rows))
    print("raw results:", rig.save("load", {name: summary(result) for name, result in rows}))
    for name, result in rows:
        kind = "closed" if name.startswith("closed") else "poisson"
        rig.figure(f"load_{kind}_rate", result.rate, "requests/s")
        rig.figure(f"load_{kind}_p50", result.percentile(50), "ms")
        rig.figure(f"load_{kind}_p99", result.percentile(99), "ms")


if __name__ == "__main__":
    main()
