"""What systemd passes and is told; everything else that is passed is refused with what to do."""

from __future__ import annotations

import os
import socket

import pytest

from gateway import systemd
from gateway.errors import InvalidSettings


@pytest.fixture
def passed(monkeypatch):
    """Pass a descriptor as systemd does: `passed(fd, count)`; the one passed last is closed."""
    given = []

    def give(source: socket.socket | int, count: str = "1", pid: int | None = None) -> int:
        fd = os.dup(source if isinstance(source, int) else source.fileno())
        given.append(fd)
        monkeypatch.setattr(systemd, "FIRST_FD", fd)
        monkeypatch.setenv("LISTEN_FDS", count)
        monkeypatch.setenv("LISTEN_PID", str(pid or os.getpid()))
        monkeypatch.setenv("LISTEN_FDNAMES", "http")
        return fd

    yield give
    for fd in given:
        try:
            os.close(fd)
        except OSError:
            continue  # The test closed it, as a socket.


def test_one_listening_tcp_socket_is_taken_and_children_do_not_hear_of_it(passed):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        os.set_inheritable(passed(listening), True)
        with systemd.take_listener() as taken:
            assert taken.getsockname() == listening.getsockname()
            assert not taken.get_inheritable()
    assert not [name for name in os.environ if name.startswith("LISTEN_")]


def test_nothing_passed_or_passed_to_another_process_is_none(passed):
    assert systemd.take_listener() is None
    with socket.create_server(("127.0.0.1", 0)) as listening:
        passed(listening, pid=os.getpid() + 1)
        assert systemd.take_listener() is None
    assert not [name for name in os.environ if name.startswith("LISTEN_")]


@pytest.mark.parametrize("count", ["2", "", "many"])
def test_another_number_of_sockets_is_refused(passed, count):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        passed(listening, count)
        with pytest.raises(InvalidSettings, match="exactly one ListenStream"):
            systemd.take_listener()


def test_what_does_not_listen_for_tcp_is_refused(passed, tmp_path):
    with socket.socket() as deaf, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for wrong in (deaf, datagrams):
            passed(wrong)
            with pytest.raises(InvalidSettings, match=r"no listening TCP socket.*ListenStream"):
                systemd.take_listener()
    with socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0penstock-test-{os.getpid()}")
        local.listen()
        passed(local)
        with pytest.raises(InvalidSettings, match="no listening TCP socket"):
            systemd.take_listener()
    file = os.open(tmp_path, os.O_RDONLY)
    passed(file)
    os.close(file)
    with pytest.raises(InvalidSettings, match="is no socket"):
        systemd.take_listener()


@pytest.mark.parametrize("abstract", [False, True])
def test_it_is_told_how_it_stands(monkeypatch, tmp_path, abstract):
    monkeypatch.chdir(tmp_path)
    name = f"@penstock-{os.getpid()}" if abstract else "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        systemd.notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    systemd.notify("STOPPING=1")  # Nobody is there any more; nobody minds.
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd.notify("STOPPING=1")
