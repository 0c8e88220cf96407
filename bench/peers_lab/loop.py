"""A closed loop of ready request bytes over keep-alive connections, as bench/load.py's, with any headers."""

from __future__ import annotations

import asyncio
import time

from bench import load
from bench.peers_lab.catalogue import Ask  # noqa: TC001 - part of what is offered here

_GRACE_S = 60.0


def message(ask: Ask, port: int) -> bytes:
    """The whole request as it goes over the wire."""
    lines = [
        f"POST {ask.path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        *(f"{name}: {value}" for name, value in ask.headers),
        f"Content-Length: {len(ask.body)}",
    ]
    return "\r\n".join((*lines, "", "")).encode() + ask.body


async def closed(port: int, request: bytes, connections: int, seconds: float) -> load.Result:
    """Every connection sends its next request when the last one was answered; all are answered at the end.

    No warm-up is cut: whoever wants one runs it before, so that the account of CPU time and of requests is of one span.

    Raises:
        TimeoutError: requests are still unanswered a minute after the end.
        OSError: a connection is refused.
    """
    loop = asyncio.get_running_loop()
    made = []
    run = load.Run(0.0, seconds)
    left = loop.create_future()
    live = connections

    def done(connection: load.Connection, status: int) -> None:
        nonlocal live
        now = time.perf_counter()
        run.note(connection, status)
        if now < run.end and status:
            connection.send(request, now)
        else:
            live -= 1
            if not live and not left.done():
                left.set_result(None)

    try:
        for _ in range(connections):
            _, connection = await loop.create_connection(lambda: load.Connection(done), "127.0.0.1", port)
            made.append(connection)
        begin = time.perf_counter()
        run.begin = run.counted_from = begin
        run.end = begin + seconds
        for connection in made:
            connection.send(request, time.perf_counter())
        await asyncio.wait_for(left, seconds + _GRACE_S)
        run.seconds = time.perf_counter() - begin
    finally:
        for connection in made:
            if connection.transport is not None:
                connection.transport.abort()
    return run.result()
