"""What the HTTP library lets through by default, and what once got through here: each was seen, each stays shut.

Where a test names a time or a size, the library's own defaults were far over it.
"""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import pytest

from tests.support.gateways import (
    assert_problem,
    digest,
    gateway,
    head,
    pixels,
    png,
    wait_until,
    write_model,
)

pytestmark = pytest.mark.slow

CHUNKED = {"Transfer-Encoding": "chunked"}
MIB = 1 << 20


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_model(root)
    with gateway(root, body_timeout_s=0.4, body_rate_grace_s=0.2, body_rate_min=1_000_000) as running:
        yield running


@pytest.fixture(autouse=True)
def whole(running):
    """After each: it serves, holds nothing, and its loop was never held up for long."""
    running.metrics()  # forgets the worst lag so far
    yield
    assert running.predict(png(1)).top == digest(pixels(1))
    assert running.metric("penstock_loop_lag_max_seconds") < 1.0
    running.wait_idle()


def resident(pid: int) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024


def test_a_compressed_bomb_is_refused_unread(running):
    """254 kB of gzip held the library's loop for half a second, while it made 256 MiB of it."""
    bomb = gzip.compress(bytes(64 * MIB), 9)
    before = resident(running.pid)
    answer = running.predict(bomb, Content_Encoding="gzip")
    assert_problem(answer, 415, "unsupported_media_type")
    assert resident(running.pid) < before + 16 * MIB


def test_two_hundred_thousand_chunks_of_one_byte_are_one_small_body(running):
    with running.connect() as connection:
        connection.send(head("POST", "/predictions/m", CHUNKED) + b"1\r\nx\r\n" * 200_000 + b"0\r\n\r\n")
        assert connection.read_answer().status in (408, 415)


def test_a_chunk_that_claims_an_exabyte_takes_no_memory_and_times_out(running):
    before = resident(running.pid)
    with running.connect() as connection:
        connection.send(head("POST", "/predictions/m", CHUNKED) + b"FFFFFFFFFFFFFFF\r\nx")
        assert_problem(connection.read_answer(), 408, "body_timeout")
    assert resident(running.pid) < before + 16 * MIB


def test_trailers_without_end_are_refused(running):
    with running.connect() as connection:
        connection.send(head("POST", "/predictions/m", CHUNKED) + b"1\r\nx\r\n0\r\n" + b"X-T: a\r\n" * 20_000 + b"\r\n")
        assert_problem(connection.read_answer(), 400, "bad_request")


def test_a_gigabyte_is_refused_before_it_is_sent(running):
    with running.connect() as connection:
        connection.send(head("POST", "/predictions/m", {"Content-Length": "1000000000"}))
        assert_problem(connection.read_answer(), 413, "payload_too_large")


def test_a_headers_body_that_never_comes_ends(running):
    """The library has no deadline for bodies at all."""
    begun = time.monotonic()
    with running.connect() as connection:
        connection.send(head("POST", "/predictions/m", {"Content-Length": "10"}))
        assert_problem(connection.read_answer(), 408, "body_timeout")
    assert time.monotonic() - begun < 5


def test_a_pipeline_whose_answers_nobody_reads_is_not_answered_into_memory(running):
    """An answer waits until the one before it was taken; a few bytes ask for kilobytes."""
    before = resident(running.pid)
    with running.connect() as connection:
        connection.socket.settimeout(0.2)
        request = head("GET", "/openapi.json", {}) * 100
        sent = 0
        try:
            while sent < 8 * MIB:
                connection.send(request)
                sent += len(request)
        except TimeoutError:
            pass
        assert sent > 100_000, "or nothing was tried"
        assert resident(running.pid) < before + 32 * MIB
    wait_until(lambda: running.metric("penstock_connections") == 1, "it is gone")


def test_the_second_half_of_a_refused_body_is_not_read_as_a_request(running):
    """What follows a refusal on the wire is that body's rest, whatever it looks like."""
    poison = b"GET /models HTTP/1.1\r\nHost: x\r\n\r\n"
    with running.connect() as connection:
        connection.send(head("POST", "/predictions/none", {"Content-Length": str(len(poison))}) + poison)
        assert_problem(connection.read_answer(), 404, "unknown_model")
        connection.send(head("GET", "/livez", {}))
        assert connection.read_answer().document == {"status": "alive"}


def test_no_answer_tells_what_it_was_made_with(running):
    """The library names itself, Python and both versions, to whoever looks for a hole in them."""
    for path in ("/livez", "/x", "/metrics"):
        assert running.ask("GET", path).headers["server"] == "penstock"
    with running.connect() as connection:
        connection.send(b"GARBAGE\r\n\r\n")
        assert connection.read_answer().headers["server"] == "penstock"
