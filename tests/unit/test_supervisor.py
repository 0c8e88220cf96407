from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

import pytest

from gateway import supervisor
from gateway.scheduling.ticket import Role
from gateway.supervisor import Child, Obituary, Supervisor
from shm.heritage import Grant, Heritage


@pytest.mark.parametrize(
    ("return_code", "cause", "guilty"),
    [
        (0, "exit 0", False),
        (77, "exit 77", False),
        (-signal.SIGKILL, "SIGKILL", False),
        (-signal.SIGSEGV, "SIGSEGV", True),
        (-signal.SIGPROF, "SIGPROF (cpu budget)", True),
        (-35, "signal 35", False),
        (-50, "signal 50", False),
    ],
)
def test_every_death_has_a_name(return_code, cause, guilty):
    obituary = Obituary(return_code, 7)
    assert (obituary.cause, obituary.guilty, obituary.blamed) == (cause, guilty, 7)


def heritage(fd, recorder):
    return Heritage(
        parent=os.getpid(), socket_fd=fd, recorder=Grant(recorder.fd, recorder.size, writable=True), models=[]
    )


def open_fds() -> set[str]:
    return {fd.name for fd in Path("/proc/self/fd").iterdir()}


@pytest.mark.slow
def test_a_process_that_is_stopped_twice_in_a_row_stays_so():
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        child = Child(Role.WORKER, 0, 0, 1, sleeper, -1, None, None)
        assert not child.stays_stopped()
        sleeper.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)
        assert [child.stays_stopped(), child.stays_stopped()] == [False, True]
        sleeper.send_signal(signal.SIGCONT)
        os.waitid(os.P_PID, sleeper.pid, os.WCONTINUED | os.WNOWAIT)
        assert not child.stays_stopped()
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["pidfd", "heritage"])
def test_a_spawn_that_fails_late_leaves_nothing_behind(monkeypatch, what):
    started = []

    def start(module, estate):
        started.append(supervisor.subprocess.Popen(["sleep", "60"]))
        return started[-1]

    def refuse(*_):
        raise OSError("no more descriptors")

    async def story():
        watcher = Supervisor(asyncio.get_running_loop())
        before = open_fds()
        monkeypatch.setattr(supervisor, "_start", start)
        monkeypatch.setattr(supervisor.os, "pidfd_open", refuse)
        with pytest.raises(OSError, match="no more"):
            watcher.spawn(
                Role.WORKER,
                0,
                seat=0,
                module="gpuworker",
                heritage=refuse if what == "heritage" else heritage,
                on_frame=lambda *_: None,
                on_eof=lambda *_: None,
                on_death=lambda *_: None,
            )
        assert watcher.children == {}
        assert open_fds() == before

    asyncio.run(story())
    assert [process.returncode for process in started] == ([-signal.SIGKILL] if what == "pidfd" else [])
