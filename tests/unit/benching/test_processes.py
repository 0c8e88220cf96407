"""A server's processes are found by the port that they listen on, with their children."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gateway.bench import processes

SERVER = """
import socket, subprocess, sys
listener = socket.create_server(("127.0.0.1", 0))
child = subprocess.Popen([sys.executable, "-c", "input()", "gpuworker"], stdin=subprocess.PIPE)
print(listener.getsockname()[1], child.pid, flush=True)
input()
"""


@pytest.fixture
def server():
    """(process, port, its child's pid)."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        port, child = map(int, process.stdout.readline().split())
        yield process, port, child
        process.stdin.close()


def test_a_listener_and_its_child_are_found_with_what_they_are(server):
    process, port, child = server
    found = {one.pid: one.role for one in processes.find(port)}
    assert set(found) == {process.pid, child}
    assert found[child] == "worker"
    assert found[process.pid].startswith("python")
    assert all(processes.cpu_ns(pid) > 0 for pid in found)


def test_pids_may_be_named_and_we_are_never_among_them(server):
    _, _, child = server
    assert [one.pid for one in processes.find(0, [child])] == [child]
    assert os.getpid() not in [one.pid for one in processes.find(0, [os.getppid()])]
    assert processes.find(0, [os.getpid()]) == []
    assert processes.find(1) == []


def test_one_that_is_gone_has_no_time():
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert processes.cpu_ns(ended.pid) is None
    assert processes.find(0, [ended.pid]) == []


def test_an_address_is_local_when_one_can_listen_there():
    assert processes.is_local("127.0.0.1")
    assert not processes.is_local("192.0.2.1")
