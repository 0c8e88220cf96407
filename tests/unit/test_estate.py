"""What a gateway takes at its start, leaves to a successor, and removes at its end."""

from __future__ import annotations

import os
import socket
import tempfile
from contextlib import closing
from pathlib import Path

import pytest

from gateway import estate, handover, paths
from gateway.config import Settings
from gateway.errors import InvalidSettings
from gateway.estate import Estate


@pytest.fixture
def folder(monkeypatch):
    for name in ("RUNTIME_DIRECTORY", "LISTEN_PID", "LISTEN_FDS"):
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory(prefix="pst-") as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        yield Path(name) / "penstock"


def fd_count() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def left_by(first: Estate, *, without: str = "") -> handover.Predecessor:
    """What a successor of `first` is sent."""
    fds = {name: os.dup(fd) for name, fd in first.fds().items() if name != without}
    ours, _theirs = socket.socketpair()
    _theirs.close()
    return handover.Predecessor(ours, handover.Estate(1, "1", list(fds)), list(fds.values()))


def inherit(monkeypatch, predecessor: handover.Predecessor, settings: Settings) -> Estate:
    monkeypatch.setattr(handover, "call", lambda *_: predecessor)
    return Estate.acquire(settings, replace=True)


def sockets(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_socket()}


def test_it_takes_sockets_and_locks_and_leaves_nothing_but_lock_files(folder):
    before = fd_count()
    with closing(Estate.acquire(Settings(port=0, devices=("cpu", "cuda:1")), replace=False)) as held:
        names = {f"admin-{held.port}.sock", f"handover-{held.port}.sock"}
        assert sockets(folder) == names
        assert set(held.fds()) == {"http", "admin", "handover", "lock:cuda-1.lock", *(f"lock:{n}.lock" for n in names)}
        assert held.listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), "the port is taken for good"
    assert sockets(folder) == set()
    assert fd_count() == before


def test_what_was_taken_is_given_back_when_something_is_not_to_be_had(folder):
    with closing(Estate.acquire(Settings(port=0, devices=("cuda:1",)), replace=False)):
        before = fd_count()
        with pytest.raises(InvalidSettings, match="cuda:1"):
            Estate.acquire(Settings(port=0, devices=("cuda:0", "cuda:1")), replace=False)
        assert fd_count() == before
        assert len(sockets(folder)) == 2
        Estate.acquire(Settings(port=0, devices=("cuda:0",)), replace=False).close()


def test_a_successor_has_it_all_and_the_last_one_cleans_up(folder, monkeypatch):
    before = fd_count()
    first = Estate.acquire(Settings(port=0, devices=("cuda:0", "cuda:1")), replace=False)
    settings = Settings(port=first.port, devices=("cuda:1", "cuda:2"))
    second = inherit(monkeypatch, left_by(first), settings)
    assert second.port == first.port
    second.settle()
    first.give()
    first.close()
    assert len(sockets(folder)) == 2, "they are the second one's now"
    with pytest.raises(InvalidSettings, match=r"cuda:1.*in use"):
        Estate.acquire(Settings(port=0, devices=("cuda:1",)), replace=False)
    # cuda:0 had no use in the second one, so it was let go.
    Estate.acquire(Settings(port=0, devices=("cuda:0",)), replace=False).close()
    second.close()
    assert sockets(folder) == set()
    assert fd_count() == before


def test_a_successor_that_does_not_settle_removes_nothing(folder, monkeypatch):
    first = Estate.acquire(Settings(port=0), replace=False)
    before = fd_count()
    inherit(monkeypatch, left_by(first), Settings(port=first.port)).close()
    assert len(sockets(folder)) == 2
    assert fd_count() == before
    first.close()


def test_an_admin_socket_that_moved_is_bound_anew(folder, monkeypatch):
    first = Estate.acquire(Settings(port=0, admin_socket=str(folder.parent / "a.sock")), replace=False)
    second = inherit(monkeypatch, left_by(first), Settings(port=first.port))
    assert second.admin is not None
    assert second.admin.getsockname() == str(folder / f"admin-{first.port}.sock")
    second.settle()
    first.give()
    first.close()
    second.close()
    third = Estate.acquire(Settings(port=0, admin_socket="off"), replace=False)
    assert third.admin is None
    third.close()


@pytest.mark.parametrize(("host", "port_offset"), [("127.0.0.2", 0), ("127.0.0.1", 1), ("no.such.host.invalid", 0)])
def test_a_successor_with_another_address_is_refused(folder, monkeypatch, host, port_offset):
    first = Estate.acquire(Settings(port=0), replace=False)
    before = fd_count()
    settings = Settings(host=host, port=first.port + port_offset)
    with pytest.raises(InvalidSettings, match=f"listens on 127.0.0.1:{first.port}"):
        inherit(monkeypatch, left_by(first), settings)
    assert fd_count() == before
    first.close()


def test_a_predecessor_without_a_listener_is_refused(folder, monkeypatch):
    first = Estate.acquire(Settings(port=0), replace=False)
    before = fd_count()
    with pytest.raises(InvalidSettings, match="left no listener"):
        inherit(monkeypatch, left_by(first, without="http"), Settings(port=first.port))
    assert fd_count() == before
    first.close()


def test_an_admin_socket_that_cannot_be_had_is_an_error_in_the_settings(folder):
    before = fd_count()
    with pytest.raises(InvalidSettings, match=r"admin_socket .*missing/a\.sock cannot be bound"):
        Estate.acquire(Settings(port=0, admin_socket=str(folder / "missing" / "a.sock")), replace=False)
    assert fd_count() == before


def test_without_a_runtime_folder_there_is_only_the_listener(folder, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "missing"))
    with closing(Estate.acquire(Settings(port=0, devices=("cuda:0",)), replace=False)) as held:
        assert set(held.fds()) == {"http"}
        assert (held.handover, held.admin) == (None, None)
    with pytest.raises(InvalidSettings, match="no runtime folder"):
        Estate.acquire(Settings(port=1), replace=True)


def test_two_with_one_port_on_two_addresses_need_two_folders(folder):
    with closing(Estate.acquire(Settings(port=0), replace=False)) as held:
        with pytest.raises(InvalidSettings, match=r"port .* is in use.*XDG_RUNTIME_DIR"):
            Estate.acquire(Settings(host="127.0.0.2", port=held.port), replace=False)
        with pytest.raises(InvalidSettings, match=r"cannot listen on .*--port"):
            Estate.acquire(Settings(port=held.port), replace=False)
        assert paths.handover_socket(Settings(), held.port).is_socket()


def test_an_address_that_is_none_is_refused_with_what_to_do():
    with pytest.raises(InvalidSettings, match=r"cannot listen on no\.such\.host\.invalid"):
        estate.bind("no.such.host.invalid", 0)
