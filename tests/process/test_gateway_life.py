"""The end of a gateway, asked for or not, and what a long life leaves behind: nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.gateways import (
    CRASH,
    ROOT,
    Connection,
    all_children,
    digest,
    gateway,
    head,
    multipart,
    pixels,
    png,
    wait_until,
    write_model,
)
from tests.support.processes import assert_gone_within, descendants, watch

pytestmark = pytest.mark.slow

MIB = 1 << 20
SLOW = {"batching": {"sizes": [1, 2]}, "fake": {"base_ms": 100.0}}


def shared_memory() -> int:
    """Bytes of shared memory in use on this machine."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["Shmem"].split()[0]) * 1024


# -- the gateway is killed -----------------------------------------------------------------------------------------


def test_killed_it_takes_its_children_and_its_memory_along(tmp_path):
    write_model(tmp_path)
    named, before = set(Path("/dev/shm").iterdir()), shared_memory()
    with gateway(tmp_path, decoders=2, body_size_max=64 * MIB) as running:
        photo = png(1)
        assert running.predict(photo + bytes(64 * MIB - len(photo))).top == digest(pixels(1))
        assert shared_memory() > before + 50 * MIB, "or nothing is shown below"
        assert set(Path("/dev/shm").iterdir()) == named, "a segment has a name"
        children = watch(descendants(running.pid))
        assert len(children) == 3, "and they have none of their own"
        running.stop(signal.SIGKILL)
        assert_gone_within(children, 1.0)
    wait_until(lambda: shared_memory() < before + 30 * MIB, "its memory is given back")
    assert set(Path("/dev/shm").iterdir()) == named


def test_killed_while_its_children_are_stopped_or_at_work_they_go_all_the_same(tmp_path):
    write_model(tmp_path, **SLOW)
    with gateway(tmp_path, decoders=2) as running:
        children = watch(all_children(running.pid))
        os.kill(running.children("decoder")[0], signal.SIGSTOP)
        with running.begin(png(1)):
            running.stop(signal.SIGKILL)
            assert_gone_within(children, 1.0)


# -- the gateway is asked to stop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_asked_to_stop_it_ends_its_children_and_exits_with_0(tmp_path, number):
    write_model(tmp_path)
    with gateway(tmp_path) as running:
        children = watch(all_children(running.pid))
        begun = time.monotonic()
        assert running.stop(number) == 0
        assert time.monotonic() - begun < 5
        assert_gone_within(children, 0.0)
        with pytest.raises(ConnectionRefusedError):
            running.connect()
        assert running.events("stopped")


def test_asked_to_stop_before_it_is_up_it_does(tmp_path):
    write_model(tmp_path, batching={"sizes": [1]}, fake={"base_ms": 500.0})
    with gateway(tmp_path, ready=False) as running:
        children = watch(wait_until(lambda: all_children(running.pid), "children were started"))
        assert running.stop() == 0
        assert_gone_within(children, 0.0)


# -- it does not start ---------------------------------------------------------------------------------------------


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", "serve", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def test_a_port_in_use_is_refused_with_what_to_do(tmp_path):
    write_model(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve("--models", str(tmp_path), "--port", str(port))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("models", ["nowhere", "."])
def test_no_models_are_refused_with_what_to_do(tmp_path, models):
    done = serve("--models", str(tmp_path / models), "--port", "0")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(tmp_path) in done.stderr.replace("\n", "")


# -- a long life ---------------------------------------------------------------------------------------------------


def test_requests_of_all_kinds_leave_no_fd_no_slot_no_child_and_no_connection(tmp_path):
    write_model(tmp_path, special=True)
    with gateway(tmp_path, decoders=1, body_size_max=MIB) as running:

        def everything(seed: int) -> None:
            body, kind = multipart(("a", "1", png(seed)), ("b", "2", b"none"), ("c", "3", png(seed + 1)))
            assert running.predict(body, Content_Type=kind).tops[2] == digest(pixels(seed + 1))
            for query in ("", "?top_k=0", "?deadline_ms=0.001", "?deadline_ms=5"):
                running.predict(png(seed), query=query)
            for refused in (b"", b"none", png(seed)[:50], bytes(MIB + 1)):
                assert running.predict(refused).status >= 400
            for path in ("/livez", "/readyz", "/models", "/models/m", "/openapi.json", "/x", "/predictions/x"):
                running.ask("GET", path)
            with running.connect() as garbage:
                garbage.send(b"\x16\x03\x01\0\0\r\n\r\n")
                garbage.wait_closed()
            for leave in (Connection.reset, lambda connection: connection.socket.close()):
                leave(running.begin(png(seed)))
                half = running.connect()
                half.send(head("POST", "/predictions/m", {"Content-Length": "100"}) + b"x")
                leave(half)

        def counts() -> tuple[int, int]:
            return running.fd_count(), len(all_children(running.pid))

        def wait_settled() -> None:
            running.wait_idle()
            wait_until(lambda: running.metric("penstock_connections") == 1, "connections are closed")

        everything(0)
        wait_settled()
        # The last connection, which asked for this, may be closed a moment later: the least is what counts.
        before = min(counts() for _ in range(100))
        for seed in range(1, 25):
            everything(seed)
        wait_settled()
        wait_until(lambda: counts() == before, "fds and children are as before", 3.0)
        # Children that come and go leave nothing either.
        for number in range(3):
            os.kill(running.child("decoder"), signal.SIGKILL)
            assert running.predict(png(number)).top == digest(pixels(number))
        assert running.predict(png(1, CRASH)).status == 500
        running.wait_ready()
        wait_settled()
        wait_until(lambda: counts() == before, "fds and children are as before", 3.0)
