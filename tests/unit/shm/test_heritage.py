from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shm import heritage as heritages
from shm.heritage import Grant, Heritage, Limits, ModelGrant
from shm.recorder import Recorder
from shm.segment import Segment

CHILD = """
import sys
from shm.heritage import Heritage
from shm.recorder import Recorder

heritage = Heritage.inherit(int(sys.argv[1]))
heritage.die_with_parent()
Recorder(heritage.recorder.attach()).note(42)
model = heritage.models[0]
pixels = model.input.attach()
output = model.output.attach()
output.map[0] = pixels.map[0] + heritage.bodies.attach().map[0]
control = heritage.open_socket()
control.send(model.name.encode())
control.recv(1)
"""

LIMITS = Limits(cpu_ns_max=2_000_000_000, address_space_size_max=1 << 30, nice=5)


class House:
    """A gateway's side: a socket, a recorder, one model, one bodies segment."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.segments = [Segment.create(name, 4096) for name in ("recorder", "input", "output", "bodies")]
        self.recorder, self.input, self.output, self.bodies = self.segments
        self.read_fds = [self.input.readonly_fd(), self.bodies.readonly_fd()]

    def heritage(self, parent: int | None = None, *, output: bool = True) -> Heritage:
        model = ModelGrant(
            index=0,
            name="lite",
            version=3,
            directory="",
            contract="{}",
            slot_count=1,
            input=Grant(self.read_fds[0], 4096, writable=False),
            output=Grant(self.output.fd, 4096, writable=True) if output else None,
        )
        return Heritage(
            parent=os.getpid() if parent is None else parent,
            socket_fd=self.theirs.fileno(),
            recorder=Grant(self.recorder.fd, 4096, writable=True),
            models=[model],
            bodies=Grant(self.read_fds[1], 4096, writable=False),
            limits=LIMITS,
        )

    def close(self) -> None:
        for fd in self.read_fds:
            os.close(fd)
        for segment in self.segments:
            segment.close()
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def house():
    made = House()
    yield made
    made.close()


def spawned(heritage: Heritage, **named) -> subprocess.Popen:
    fd = heritage.bequeath()
    try:
        return subprocess.Popen([sys.executable, "-c", CHILD, str(fd)], pass_fds=(fd, *heritage.fds()), **named)
    finally:
        os.close(fd)


@pytest.mark.slow
def test_a_child_gets_all_that_is_on_the_list(house):
    house.input.map[0], house.bodies.map[0] = 30, 12
    child = spawned(house.heritage())
    house.theirs.close()

    assert house.ours.recv(100) == b"lite"
    assert house.output.map[0] == 42
    house.ours.send(b"x")
    assert child.wait(20) == 0
    assert Recorder(house.recorder).last() == 42


@pytest.mark.slow
def test_a_child_whose_parent_is_gone_does_not_start(house):
    child = spawned(house.heritage(parent=1 << 22), stderr=subprocess.PIPE, text=True)

    assert "the gateway died while this child was starting" in child.communicate(timeout=20)[1]
    assert child.returncode == 1


PARENT = """
import os, subprocess, sys, time

child = subprocess.Popen([sys.executable, "-c", '''
import ctypes, os, sys
from shm.heritage import Grant, Heritage
heritage = Heritage(parent=os.getppid(), socket_fd=0, recorder=Grant(0, 1, False), models=[])
heritage.die_with_parent()
os.write(1, f"{os.getpid()}".encode())
sys.stdin.read()
'''], stdin=subprocess.PIPE)
child.wait()
"""


@pytest.mark.slow
def test_a_child_is_killed_with_its_parent():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(os.read(parent.stdout.fileno(), 100))
    watch = os.pidfd_open(child)

    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(20)

    # Its stdout is our pipe: EOF means that the last holder, the child, is gone.
    assert parent.stdout.read() == b""
    parent.stdout.close()
    os.close(watch)


def test_the_list_survives_its_journey(house):
    heritage = house.heritage()

    assert Heritage.inherit(heritage.bequeath()) == heritage


def test_every_fd_is_named(house):
    expected = {house.theirs.fileno(), house.recorder.fd, house.output.fd, *house.read_fds}
    assert set(house.heritage().fds()) == expected
    assert set(house.heritage(output=False).fds()) == expected - {house.output.fd}


def test_a_worker_has_no_bodies():
    heritage = Heritage(parent=1, socket_fd=5, recorder=Grant(6, 4096, writable=True), models=[])

    assert heritage.fds() == (5, 6)
    assert Heritage.inherit(heritage.bequeath()).limits is None


def test_the_socket_is_blocking(house):
    house.theirs.setblocking(False)
    heritage = house.heritage()
    control = heritage.open_socket()

    assert control.getblocking()
    control.detach()


class Library:
    """A C library whose prctl answers as it is told, and touches nothing."""

    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.asked: tuple[int, ...] = ()

    def prctl(self, *asked: int) -> int:
        self.asked = asked
        ctypes.set_errno(1)
        return self.answer


@pytest.fixture
def library(monkeypatch):
    made = Library(0)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: made)
    return made


def test_a_refused_prctl_is_an_error(house, library):
    library.answer = -1

    with pytest.raises(PermissionError, match="PR_SET_PDEATHSIG"):
        house.heritage().die_with_parent()


def test_a_child_asks_to_be_killed_with_its_parent(house, library):
    house.heritage(parent=os.getppid()).die_with_parent()

    assert library.asked == (1, signal.SIGKILL, 0, 0, 0)


def test_a_parent_that_died_first_ends_the_child(house, library):
    with pytest.raises(SystemExit, match="while this child was starting"):
        house.heritage(parent=1 << 22).die_with_parent()


def test_a_grant_is_mapped_as_it_was_granted(house):
    readable = Grant(house.input.readonly_fd(), 4096, writable=False).attach()
    house.input.map[9] = 5

    assert readable.map[9] == 5
    with pytest.raises(TypeError):
        readable.map[9] = 6
    readable.close()


def test_a_child_is_scheduled_as_batch_work(house):
    try:
        house.heritage().yield_to_parent()
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def test_a_grant_mapped_for_views_leaves_no_descriptor(house):
    fd = os.dup(house.input.fd)
    view = Grant(fd, 4096, writable=True).map_for_views()
    view[3] = 8
    assert house.input.map[3] == 8
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


ADJUSTED = "from shm.heritage import go_first; go_first({}); print(open('/proc/self/oom_score_adj').read())"


def test_a_child_goes_first_when_memory_runs_out():
    own = int(Path("/proc/self/oom_score_adj").read_text())
    said = subprocess.run([sys.executable, "-c", ADJUSTED.format(300)], capture_output=True, check=True, timeout=30)
    assert int(said.stdout) == min(own + 300, 1000)
    assert own == int(Path("/proc/self/oom_score_adj").read_text())


def test_there_is_a_bound_to_it(monkeypatch, tmp_path):
    monkeypatch.setattr(heritages, "_OOM_SCORE_ADJ", tmp_path / "adj")
    (tmp_path / "adj").write_text("600\n")
    heritages.go_first(800)
    assert (tmp_path / "adj").read_text() == "1000"


@pytest.mark.parametrize("content", [None, "", "no number"])
def test_a_kernel_that_does_not_let_it_is_no_reason_to_die(monkeypatch, tmp_path, content):
    monkeypatch.setattr(heritages, "_OOM_SCORE_ADJ", tmp_path / "adj")
    if content is not None:
        (tmp_path / "adj").write_text(content)
    heritages.go_first(800)
