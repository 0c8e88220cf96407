"""HTTP servers that are not ours, each with a habit: one answers as told, slowly, wrongly, in chunks, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def answer(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


CAT = answer(b'{"labels": [{"name": "cat", "score": 0.5}]}')


class Seen(NamedTuple):
    """One request: its first line, its headers by lower-case name, its body."""

    line: str
    headers: dict[str, str]
    body: bytes


class Stranger:
    """A running one. `seen`: its POST requests in order."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.seen: list[Seen] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def stranger(say: Callable[[int], bytes | None], *, delay_s: float = 0.0) -> Iterator[Stranger]:
    """A server in a thread; `say(n)` is what the n-th POST is answered with, None to hang up. Any GET is 404."""
    started = threading.Event()
    running = Stranger(0)
    stops: list[Callable[[], object]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *lines = head.rstrip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if line.startswith("GET"):
                    writer.write(answer(b"", "404 Not Found", "Connection: close\r\n"))
                    break
                number = len(running.seen)
                running.seen.append(Seen(line, headers, body))
                told = say(number)
                if told is None:
                    break
                if delay_s:
                    # What a slow server is. No test waits for a time, or asserts one.
                    await asyncio.sleep(delay_s)
                writer.write(told)
                await writer.drain()

    async def live() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        running.port = server.sockets[0].getsockname()[1]
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        stops.append(lambda: loop.call_soon_threadsafe(stop.set))
        started.set()
        await stop.wait()
        server.close()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.sleep(0)  # for the transports to close

    thread = threading.Thread(target=asyncio.run, args=(live(),))
    thread.start()
    started.wait(20)
    try:
        yield running
    finally:
        stops[0]()
        thread.join(20)
