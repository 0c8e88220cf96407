"""Where sockets, locks and state are kept, and which folders are not taken."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from gateway import paths
from gateway.config import Settings
from gateway.errors import InvalidSettings


@pytest.fixture
def environ(monkeypatch, tmp_path):
    for name in ("RUNTIME_DIRECTORY", "STATE_DIRECTORY", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return monkeypatch.setenv


def test_the_runtime_folder_is_systemd_s_then_the_session_s_then_a_temporary_one(environ, tmp_path):
    own = paths.runtime_dir()
    assert own == tmp_path / f"penstock-{os.geteuid()}"
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert paths.runtime_dir() == own, "the same when it is there"
    environ("XDG_RUNTIME_DIR", str(tmp_path))
    assert paths.runtime_dir() == tmp_path / "penstock"
    given = tmp_path / "run"
    given.mkdir(mode=0o755)
    environ("RUNTIME_DIRECTORY", f"{given}:{tmp_path / 'second'}")
    assert paths.runtime_dir() == given


@pytest.mark.parametrize("mode", [0o701, 0o770, 0o755])
def test_a_runtime_folder_that_is_open_to_others_is_refused(environ, tmp_path, mode):
    (tmp_path / "penstock").mkdir()
    (tmp_path / "penstock").chmod(mode)
    environ("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(InvalidSettings, match=f"mode 0{mode:o}.*XDG_RUNTIME_DIR"):
        paths.runtime_dir()


def test_systemd_s_may_be_readable_but_not_writable_by_others(environ, tmp_path):
    tmp_path.chmod(0o775)
    environ("RUNTIME_DIRECTORY", str(tmp_path))
    with pytest.raises(InvalidSettings, match="open to others"):
        paths.runtime_dir()


def test_a_link_or_a_folder_of_somebody_else_is_refused(environ, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "penstock").symlink_to(tmp_path / "elsewhere")
    environ("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(InvalidSettings, match="is no folder"):
        paths.runtime_dir()
    (tmp_path / "penstock").unlink()
    (tmp_path / "penstock").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(InvalidSettings, match="somebody else"):
        paths.runtime_dir()


def test_a_folder_that_cannot_be_made_is_an_os_error(environ, tmp_path):
    environ("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError):
        paths.runtime_dir()


def test_sockets_carry_the_port_that_is_listened_on(environ, tmp_path):
    environ("XDG_RUNTIME_DIR", str(tmp_path))
    folder = tmp_path / "penstock"
    assert paths.admin_socket(Settings()) == folder / "admin-8080.sock"
    assert paths.admin_socket(Settings(port=0), 4711) == folder / "admin-4711.sock"
    assert paths.admin_socket(Settings(admin_socket="/run/a.sock")) == Path("/run/a.sock")
    assert paths.admin_socket(Settings(admin_socket="off")) is None
    assert paths.handover_socket(Settings(port=9000)) == folder / "handover-9000.sock"
    assert paths.device_lock("cuda:3") == folder / "cuda-3.lock"


def test_a_path_that_is_too_long_for_a_socket_is_refused(environ, tmp_path):
    environ("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(InvalidSettings, match="107 bytes"):
        paths.admin_socket(Settings(admin_socket="/" + 107 * "a"))


def test_state_is_kept_where_the_settings_systemd_or_the_user_say(environ, tmp_path, monkeypatch):
    environ("HOME", str(tmp_path))
    assert paths.state_dir(Settings()) == tmp_path / ".local" / "state" / "penstock"
    environ("XDG_STATE_HOME", "/state")
    assert paths.state_dir(Settings()) == Path("/state/penstock")
    environ("STATE_DIRECTORY", "/var/lib/penstock")
    assert paths.state_dir(Settings()) == Path("/var/lib/penstock")
    assert paths.state_dir(Settings(state_dir="/mine")) == Path("/mine")
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name)

    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(InvalidSettings, match="state_dir"):
        paths.state_dir(Settings())
