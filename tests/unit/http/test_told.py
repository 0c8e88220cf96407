"""What the front tells the core about a request: class, deadline, size, whose it is; before its body, and after."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path

import pytest

from gateway import config, errors
from gateway.driver import Driver
from gateway.http.front import Front
from gateway.models.repository import ModelVersion
from gateway.models.spec import parse_contract
from gateway.scheduling.ticket import Priority

CONTRACT = parse_contract(
    '[input]\nwidth = 4\nheight = 4\n[output]\ntask = "classification"\n'
    "[limits]\ndeadline_ms = 100\ndeadline_ms_max = 30_000\n"
)
BODY = json.dumps({"image": "AAAA", "priority": "batch"}).encode()


def told(path: str, body: bytes, content_type: str) -> list[tuple[str, dict[str, object]]]:
    """Send one request over a real socket to a real front whose core notes what it is asked, and takes nothing."""
    asked: list[tuple[str, dict[str, object]]] = []

    async def main() -> None:
        settings = config.load(None, {}, {"decoders": 1, "bodies_size_max": 1 << 20, "body_size_max": 1 << 16})
        driver = Driver(settings, [ModelVersion("m", 1, Path("/nowhere"), CONTRACT, ())])
        begin = time.monotonic_ns()

        def precheck(_line, deadline_ns, _now_ns, **named):
            asked.append(("precheck", named | {"deadline_s": round((deadline_ns - begin) / 1e9, 1)}))

        def submit(_line, _body, _parts, *, deadline_ns, **named):
            asked.append(("submit", named | {"deadline_s": round((deadline_ns - begin) / 1e9, 1)}))
            raise errors.Overloaded("nothing is taken here", retry_after_s=1)

        driver.core.precheck, driver.submit = precheck, submit
        front = Front(driver, settings)
        bound = socket.create_server(("127.0.0.1", 0))
        await front.start(bound)
        reader, writer = await asyncio.open_connection(*bound.getsockname())
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        assert (await reader.readline()).split()[1] == b"503"
        writer.close()
        await front.close(1.0)
        driver.memory.close()

    asyncio.run(main())
    return asked


@pytest.mark.parametrize(
    ("query", "priority", "deadline_s"),
    [
        ("", Priority.REALTIME, 0.1),
        ("?priority=batch", Priority.BATCH, 30.0),
        ("?priority=batch&deadline_ms=2000", Priority.BATCH, 2.0),
    ],
)
def test_class_and_deadline_are_told_before_the_body_and_after(query, priority, deadline_s):
    before, after = told(f"/predictions/m{query}", b"x" * 1000, "image/jpeg")

    assert (before[0], before[1]["priority"], before[1]["deadline_s"]) == ("precheck", priority, deadline_s)
    assert (after[0], after[1]["priority"], after[1]["deadline_s"]) == ("submit", priority, deadline_s)


def test_a_class_named_in_the_body_is_told_once_it_is_read():
    before, after = told("/predictions/m", BODY, "application/json")

    assert (before[1]["priority"], before[1]["deadline_s"]) == (Priority.REALTIME, 0.1)
    assert (after[1]["priority"], after[1]["deadline_s"]) == (Priority.BATCH, 30.0)


def test_the_size_is_told_where_the_body_is_one_image():
    assert told("/predictions/m", b"x" * 1000, "image/jpeg")[0][1]["size"] == 1000
    assert told("/predictions/m", BODY, "application/json")[0][1]["size"] == 0, "how many images it holds is not known"


def test_whose_it_is_is_told_both_times():
    for _, named in told("/predictions/m", b"x" * 1000, "image/jpeg"):
        assert named["client"] == "127.0.0.1"
