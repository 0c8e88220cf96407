"""Failpoints: how they are written, when they fire, and that each action does to a real process what it says."""

import os
import signal
import subprocess
import sys

import pytest

from shm import failpoints
from shm.failpoints import Failpoint, Injected, arm, hit, parse


@pytest.fixture(autouse=True)
def disarmed():
    yield
    arm("")


def fires(name, passes):
    """At which of the passes an `error` fires, counted from 1."""
    found = []
    for number in range(1, passes + 1):
        try:
            hit(name)
        except Injected:
            found.append(number)
    return found


def test_nothing_is_armed_by_default():
    assert failpoints.active() == []
    hit("worker.before_run")


def test_what_is_written_is_read_and_said_again():
    text = "a.b=crash, a.b=delay:20@3,worker.before_run=kill~0.05 ,, a.c=error:ENOSPC, a.d=exit:3, a.e=spin, a.f=hang~1"
    assert parse(text) == [
        Failpoint("a.b", "crash", "", 0, 1.0),
        Failpoint("a.b", "delay", "20", 3, 1.0),
        Failpoint("worker.before_run", "kill", "", 0, 0.05),
        Failpoint("a.c", "error", "ENOSPC", 0, 1.0),
        Failpoint("a.d", "exit", "3", 0, 1.0),
        Failpoint("a.e", "spin", "", 0, 1.0),
        Failpoint("a.f", "hang", "", 0, 1.0),
    ]
    arm(text)
    assert ", ".join(failpoints.active()) == (
        "a.b=crash, a.b=delay:20@3, worker.before_run=kill~0.05, a.c=error:ENOSPC, a.d=exit:3, a.e=spin, a.f=hang"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.b", "is no failpoint"),
        ("a=crash", "is no failpoint"),
        ("a.b=crash@0", "is no failpoint"),
        ("a.b=crash~1.5", "is no failpoint"),
        ("a.b=crash@1~0.5", "is no failpoint"),
        ("a.b=explode", "no action 'explode'; there are crash, kill, hang, spin, delay, error, exit"),
        ("a.b=delay", "write delay:MS"),
        ("a.b=exit:x", "exit:CODE"),
        ("a.b=error:ENOTHING", "error:ERRNO"),
        ("a.b=crash:1", "without an argument"),
    ],
)
def test_what_is_no_failpoint_is_named(text, words):
    arm("a.b=error")
    with pytest.raises(ValueError, match="a") as caught:
        arm(f"x.y=crash, {text}")
    assert repr(text) in str(caught.value)
    assert words in str(caught.value)
    assert failpoints.active() == ["a.b=error"], "it is all or nothing"


def test_it_fires_where_it_is_named_and_nowhere_else():
    arm("a.b=error")
    assert fires("a.b", 3) == [1, 2, 3]
    assert fires("a.c", 3) == []


def test_the_nth_pass_alone():
    arm("a.b=error@3")
    assert fires("a.b", 10) == [3]


def test_a_share_is_drawn_by_seed_process_and_name(monkeypatch):
    def drawn(seed, pid=5, name="a.b"):
        monkeypatch.setattr(failpoints.os, "getpid", lambda: pid)
        arm(f"{name}=error~0.25", seed)
        return fires(name, 400)

    first = drawn("1")
    assert 60 < len(first) < 140
    assert drawn("1") == first
    assert drawn("2") != first
    assert drawn("1", pid=6) != first
    assert drawn("1", name="a.c") != first


def test_an_error_may_be_the_systems():
    arm("a.b=error:ENOSPC")
    with pytest.raises(OSError, match=r"No space left on device: 'a\.b'"):
        hit("a.b")


def test_a_delay_waits(monkeypatch):
    waits = []

    class Poll:
        def poll(self, ms):
            waits.append(ms)

    monkeypatch.setattr(failpoints.select, "poll", Poll)
    arm("a.b=delay:250")
    hit("a.b")
    assert waits == [250]


def test_what_never_returns_is_called(monkeypatch):
    done = []
    monkeypatch.setattr(failpoints, "spin", lambda: done.append("spin"))
    monkeypatch.setattr(failpoints.os, "_exit", done.append)
    monkeypatch.setattr(failpoints.signal, "raise_signal", done.append)
    before = signal.getsignal(signal.SIGSEGV)
    arm("a.a=spin, a.b=exit:9, a.c=crash, a.d=kill, a.e=hang")
    for letter in "abcde":
        hit(f"a.{letter}")
    assert done == ["spin", 9, signal.SIGSEGV, signal.SIGKILL, signal.SIGSTOP]
    signal.signal(signal.SIGSEGV, before)


def child(text, code="from shm.failpoints import hit; hit('a.b'); print('lived')", **options):
    environment = {**os.environ, failpoints.VARIABLE: text}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, **options)


@pytest.mark.parametrize(
    ("action", "code"),
    [("crash", -signal.SIGSEGV), ("kill", -signal.SIGKILL), ("exit:75", 75), ("delay:1", 0), ("crash@2", 0)],
)
def test_a_child_is_armed_by_its_environment(action, code):
    process = child(f"a.b={action}")
    said, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert (said == b"lived\n") == (code == 0)


def test_a_crash_is_one_whatever_was_set_for_the_signal():
    code = "import faulthandler, signal\nfrom shm.failpoints import hit\nsignal.signal(11, signal.SIG_IGN)\nhit('a.b')"
    process = child("a.b=crash", code)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGSEGV


def test_a_hang_is_a_stopped_process():
    process = child("a.b=hang")
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    process.kill()
    process.communicate(timeout=30)


def test_spinning_ends_by_somebody_else_alone():
    def enough(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, enough)
    arm("a.b=spin")
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.02)
    with pytest.raises(TimeoutError):
        hit("a.b")
    signal.signal(signal.SIGVTALRM, before)


def test_the_environment_arms(monkeypatch):
    monkeypatch.setenv(failpoints.VARIABLE, "a.b=error")
    failpoints.arm_from_environment()
    assert failpoints.active() == ["a.b=error"]
    monkeypatch.setenv(failpoints.VARIABLE, "a.b=explode")
    with pytest.raises(SystemExit, match=r"penstock: PENSTOCK_FAILPOINTS: 'a\.b=explode': no action"):
        failpoints.arm_from_environment()


def test_a_list_that_does_not_parse_ends_the_process():
    process = child("a.b=explode", stderr=subprocess.PIPE)
    said, error = process.communicate(timeout=30)
    assert (process.returncode, said) == (1, b"")
    assert error.startswith(b"penstock: PENSTOCK_FAILPOINTS: 'a.b=explode': no action 'explode'")
