"""What one gateway has, another is refused; what a dead one had is free."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from gateway import locks
from gateway.errors import InvalidSettings


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="pst-") as name:
        yield Path(name)


def fd_count() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_lock_is_held_once_and_names_its_holder(folder):
    held = locks.take(folder / "cuda-0.lock", "cuda:0", "stop it")
    with pytest.raises(InvalidSettings, match=rf"cuda:0 is in use by another gateway \(pid {os.getpid()}\); stop it"):
        locks.take(folder / "cuda-0.lock", "cuda:0", "stop it")
    held.close()
    locks.take(folder / "cuda-0.lock", "cuda:0", "stop it").close()


def test_a_copy_of_it_holds_it_on(folder):
    first = locks.take(folder / "l", "l", "stop it")
    copy = locks.Lock(os.dup(first.fd))
    first.close()
    with pytest.raises(InvalidSettings):
        locks.take(folder / "l", "l", "stop it")
    (folder / "l").write_text("4711 and more")
    copy.sign()
    assert (folder / "l").read_text() == f"{os.getpid()}\n"
    copy.close()


def test_a_holder_that_could_not_sign_is_unknown_and_holds_it_all_the_same(folder, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(28, "no room")

    monkeypatch.setattr(os, "pwrite", full)
    held = locks.take(folder / "l", "l", "stop it")
    with pytest.raises(InvalidSettings, match="pid unknown"):
        locks.take(folder / "l", "l", "stop it")
    held.close()


def test_what_cannot_be_locked_leaves_no_descriptor(folder):
    before = fd_count()
    (folder / "link").symlink_to(folder / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        locks.take(folder / "link", "l", "stop it")
    with pytest.raises(FileNotFoundError):
        locks.take(folder / "missing" / "l", "l", "stop it")
    assert fd_count() == before


def test_a_unix_socket_is_the_user_s_alone_and_has_one_gateway(folder):
    path = folder / "a.sock"
    bound, lock = locks.bind_unix(path, "a.sock", "set another")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(InvalidSettings, match=r"a\.sock is in use.*set another"):
        locks.bind_unix(path, "a.sock", "set another")
    assert path.is_socket(), "it is still there"
    bound.close()
    lock.close()
    # As after SIGKILL: the file is left, and nobody has the lock.
    bound, lock = locks.bind_unix(path, "a.sock", "set another", socket.SOCK_SEQPACKET)
    bound.listen()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
        caller.connect(str(path))
    bound.close()
    lock.close()


def test_something_else_at_its_path_is_not_removed(folder):
    (folder / "a.sock").write_text("precious")
    before = fd_count()
    with pytest.raises(InvalidSettings, match="is no socket; remove it"):
        locks.bind_unix(folder / "a.sock", "a.sock", "set another")
    assert (folder / "a.sock").read_text() == "precious"
    with pytest.raises(OSError, match="too long"):
        locks.bind_unix(folder / (120 * "a"), "a.sock", "set another")
    assert fd_count() == before
