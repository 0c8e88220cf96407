"""Out of descriptors, of processes, of disk: what can be served is served, and the rest comes back with its cause."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.gateways import (
    ROOT,
    Connection,
    digest,
    end,
    environment,
    gateway,
    pixels,
    png,
    runtime_folder,
    wait_until,
    write_model,
)

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def no_more_descriptors(pid: int):
    """The process keeps the descriptors that it has and gets no new one."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir())
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    lowest_free = next(fd for fd in range(highest + 2) if fd not in used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_without_descriptors_those_who_are_connected_are_served_and_others_wait(tmp_path):
    write_model(tmp_path)
    with gateway(tmp_path) as running, running.connect() as kept:
        assert kept.ask("GET", "/readyz").status == 200
        with no_more_descriptors(running.pid):
            begun = time.monotonic()
            waiting = [running.begin(png(seed)) for seed in range(5)]
            running.wait_event("accept_failed")
            for seed in range(20):
                answer = kept.ask("POST", "/predictions/m", png(seed), Content_Type="image/png")
                assert answer.top == digest(pixels(seed))
            # Somebody who leaves makes room for one; here nobody does.
            assert not running.events("accept_resumed")
        for seed, connection in enumerate(waiting):
            with connection:
                assert connection.read_answer().top == digest(pixels(seed))
        took_s = time.monotonic() - begun
        # Ten looks a second, however many are waiting: it does not spin.
        assert running.wait_event("accept_resumed")["pauses"] <= took_s / 0.1 + 1
        assert len(running.events("accept_failed")) == 1, "said once"


@pytest.mark.parametrize("role", ["worker", "decoder"])
def test_a_child_that_cannot_be_started_for_want_of_descriptors_is_started_when_there_are_some(tmp_path, role):
    write_model(tmp_path)
    with gateway(tmp_path, decoders=1) as running, running.connect() as kept:
        assert kept.ask("GET", "/readyz").status == 200
        dead = running.child(role)
        with no_more_descriptors(running.pid):
            # What the dead one had is free for a new one, so that is to be taken as well.
            os.kill(dead, signal.SIGKILL)
            running.wait_event("child_died", pid=dead)
            with no_more_descriptors(running.pid):
                running.wait_event("spawn_failed", role=role, again=True)
                assert kept.ask("GET", "/readyz").status == 503
                assert kept.ask("GET", "/livez").status == 200
        running.wait_ready()
        assert running.predict(png(1)).top == digest(pixels(1))
        assert len(running.events("child_died")) == 1
        assert len(running.events("spawn_failed")) == 1, "said once, however often it is tried"


def test_with_the_log_s_disk_full_it_serves_and_counts_what_is_lost(tmp_path):
    write_model(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with runtime_folder() as runtime, Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "gateway", "serve", "--models", str(tmp_path), "--port", str(port)]
        process = subprocess.Popen(command, cwd=ROOT, env=environment(runtime), stderr=full)
        try:
            wait_until(lambda: is_ready(port), "it is ready")
            with Connection(port) as connection:
                answer = connection.ask("POST", "/predictions/m", png(1), Content_Type="image/png")
                assert answer.top == digest(pixels(1))
                dropped = connection.ask("GET", "/metrics").body.split(b"\npenstock_log_lines_dropped_total ")[1]
                assert float(dropped.split()[0]) >= 3
            process.terminate()
            assert process.wait(20) == 0
        finally:
            end(process)


def is_ready(port: int) -> bool:
    try:
        with Connection(port) as connection:
            return connection.ask("GET", "/readyz").status == 200
    except ConnectionRefusedError:
        return False
