"""A model.toml is tuned key by key: every other byte stays, and what comes out reads back as what was meant."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gateway.errors import InvalidModel
from gateway.models.spec import parse_contract
from gateway.tuning import contract_file
from gateway.tuning.contract_file import NotWritten

BASE = 'backend = "fake"\n[input]\nwidth = 4\nheight = 4\n[output]\ntask = "raw"\n[fake]\n'


def tune(text: str, sizes=(1, 2, 3), deadline_ms: float = 50.0) -> str:
    return contract_file.edit(text, contract_file.tuned(parse_contract(text), text, sizes, deadline_ms))


def test_what_changes_is_the_value_and_nothing_around_it():
    text = BASE + "[batching] # mine\nsizes = [1, 2] # few\n\n# why: a test\nwindow_ms = 5\n"
    assert tune(text).startswith(BASE + "[batching] # mine\nsizes = [1, 2, 3] # few\n\n# why: a test\nwindow_ms = 0\n")


def test_a_new_key_stands_behind_its_neighbours():
    text = BASE + "[batching] # mine\nsizes = [1, 2] # few\n\n[limits]\ndeadline_ms = 77"
    assert tune(text) == text.replace("[1, 2] # few\n", "[1, 2, 3] # few\nwindow_ms = 0\n")
    text = "batching.sizes = [2]\n" + BASE + "[limits]\nqueue_max = 3"
    changed = "batching.sizes = [1, 2, 3]\nbatching.window_ms = 0\n"
    assert tune(text) == changed + BASE + "[limits]\nqueue_max = 3\ndeadline_ms = 50\n"


def test_a_deadline_that_the_file_names_stays():
    text = BASE + "[limits]\ndeadline_ms = 77\n"
    assert tune(text) == text + "\n[batching]\nsizes = [1, 2, 3]\nwindow_ms = 0\n"


def test_a_deadline_over_the_model_s_own_bound_is_refused():
    with pytest.raises(InvalidModel, match="deadline_ms_max of 60000 ms"):
        tune(BASE, deadline_ms=60_001)


def test_the_section_is_what_is_written():
    wanted = contract_file.tuned(parse_contract(BASE), BASE, (1, 4), 50.0)
    assert contract_file.section(wanted) == "[batching]\nsizes = [1, 4]\nwindow_ms = 0\n"
    assert contract_file.section(wanted) in contract_file.edit(BASE, wanted)


def test_the_difference_names_each_line():
    lines = contract_file.difference("a\r\nb\r\n", "a\r\nc\r\n")
    assert lines[2:] == ["@@ -1,2 +1,2 @@", " a", "-b", "+c"]


# -- the file ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "model.toml").write_bytes(BASE.encode())
    (tmp_path / "model.toml").chmod(0o640)
    return tmp_path


def test_it_is_written_whole_with_its_mode_and_nothing_is_left_beside_it(folder):
    contract_file.check_writable(folder)
    contract_file.write(folder, BASE, BASE + "# é\r\n")
    assert contract_file.read(folder) == BASE + "# é\r\n"
    assert stat.S_IMODE((folder / "model.toml").stat().st_mode) == 0o640
    assert [file.name for file in folder.iterdir()] == ["model.toml"]


def test_a_link_stays_one(folder, tmp_path_factory):
    shared = tmp_path_factory.mktemp("shared") / "common.toml"
    (folder / "model.toml").rename(shared)
    (folder / "model.toml").symlink_to(shared)
    contract_file.write(folder, BASE, BASE + "# new\n")
    assert (folder / "model.toml").is_symlink()
    assert shared.read_text() == BASE + "# new\n"


def test_what_was_changed_meanwhile_is_not_written_over(folder):
    (folder / "model.toml").write_text(BASE + "# by hand\n")
    with pytest.raises(NotWritten, match="changed meanwhile"):
        contract_file.write(folder, BASE, BASE)
    assert (folder / "model.toml").read_text() == BASE + "# by hand\n"


def test_a_rename_that_fails_leaves_everything_as_it_was(folder, monkeypatch):
    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(NotWritten, match=r"Permission denied\); put the section above in by hand"):
        contract_file.write(folder, BASE, BASE + "# new\n")
    assert [file.name for file in folder.iterdir()] == ["model.toml"]
    assert (folder / "model.toml").read_text() == BASE


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(folder, monkeypatch):
    monkeypatch.setattr(contract_file.os, "access", lambda *_: False)
    with pytest.raises(NotWritten, match="--dry-run"):
        contract_file.check_writable(folder)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InvalidModel, match="cannot be read"):
        contract_file.read(tmp_path)
