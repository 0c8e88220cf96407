"""The desired state on disk: kept whole, or left as it was, and refused in words."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from gateway.errors import InvalidSettings
from gateway.lifecycle import desired
from gateway.lifecycle.desired import FILE_SIZE_MAX, Desired, Shadow, Store, Want

EVERYTHING = Desired(
    models={
        "cats": Want(
            versions=(1, 2), default=1, aliases={"stable": 1}, weights={1: 9, 2: 1}, shadow=Shadow(version=2, share=0.5)
        ),
        "dogs": Want(versions=()),
        "birds": Want(),
    }
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "state", tmp_path / "models")


def test_nothing_is_wanted_where_nothing_was_kept(store):
    assert store.load() == Desired()


def test_what_is_kept_is_read_back(store):
    store.save(EVERYTHING)
    assert store.load() == EVERYTHING
    assert store.load().models["cats"].weights == {1: 9.0, 2: 1.0}, "versions are numbers again"


def test_only_its_user_may_read_it_and_nothing_else_is_left(store):
    store.save(EVERYTHING)
    store.save(Desired())
    assert list(store.path.parent.iterdir()) == [store.path]
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    assert store.load() == Desired()


def test_two_repositories_of_one_name_are_two_files(tmp_path):
    first, second = (Store(tmp_path, tmp_path / where / "models") for where in ("a", "b"))
    assert first.path != second.path
    assert first.path.name.startswith("desired-models-")
    assert Store(tmp_path, tmp_path / "b" / "x" / ".." / "models").path == second.path
    assert Store(tmp_path, tmp_path / "ä ö").path.name.startswith("desired-models-"), "any folder has a file's name"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", "not a desired state", id="empty"),
        pytest.param(b'{"models": {"cats"', "not a desired state", id="cut short"),
        pytest.param(b'{"format": 2}', "its format is 2, this gateway reads 1", id="another format"),
        pytest.param(b'{"models": {"cats": {"version": [1]}}}', "version", id="an unknown key"),
        pytest.param(b'{"models": {"cats": {"versions": [0]}}}', "versions", id="no version"),
        pytest.param(b'{"models": {"../x": {}}}', "'../x' is no model's name", id="a name that leads elsewhere"),
        pytest.param(b'{"models": {"cats": {"shadow": {"version": 1, "share": 2}}}}', "share", id="a share over 1"),
        pytest.param(b" " * (FILE_SIZE_MAX + 1), "larger than", id="huge"),
        pytest.param(b"\xff", "not a desired state", id="no text"),
    ],
)
def test_what_does_not_parse_is_refused_with_the_files_name_and_what_to_do(store, content, said):
    store.save(Desired())
    store.path.write_bytes(content)
    with pytest.raises(InvalidSettings, match="remove it") as caught:
        store.load()
    assert str(store.path) in str(caught.value)
    assert said in str(caught.value)


def test_what_cannot_be_read_is_refused(store):
    store.path.mkdir(parents=True)
    with pytest.raises(InvalidSettings, match="cannot be read"):
        store.load()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(store, monkeypatch, call):
    store.save(EVERYTHING)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(type(store.path), "replace", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(Desired())
    assert store.load() == EVERYTHING
    assert list(store.path.parent.iterdir()) == [store.path]


def test_the_file_and_then_its_name_are_on_disk_before_anyone_is_told(store, monkeypatch):
    seen = []
    real_fsync, real_replace = os.fsync, type(store.path).replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (seen.append(os.path.realpath(f"/proc/self/fd/{fd}")), real_fsync(fd))[1]
    )
    monkeypatch.setattr(
        type(store.path), "replace", lambda self, target: (seen.append("replace"), real_replace(self, target))[1]
    )
    store.save(EVERYTHING)
    temporary, renamed, folder = seen
    assert Path(temporary).parent == store.path.parent
    assert temporary != str(store.path)
    assert (renamed, folder) == ("replace", str(store.path.parent))


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(store, tmp_path):
    store.path.parent.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (store.path.parent / f".{store.path.name}.{os.getpid()}").symlink_to(victim)
    with pytest.raises(OSError):  # noqa: PT011 - ELOOP
        store.save(Desired())
    assert victim.read_text() == "mine"


def test_the_format_is_part_of_the_file(store):
    store.save(Desired())
    assert b'"format": 1' in store.path.read_bytes()
    assert desired.FORMAT == 1
