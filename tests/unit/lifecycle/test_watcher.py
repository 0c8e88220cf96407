"""What counts as a complete version, look by look. No look waits for a time, so none of these tests does."""

from __future__ import annotations

import os

import pytest

from gateway.errors import InvalidModel
from gateway.lifecycle import watcher as module
from gateway.lifecycle.watcher import Watcher, everybody

CONTRACT = """backend = "fake"
[input]
width = 4
height = 4
[output]
task = "classification"
[fake]
class_count = 10
"""


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def add(root, name="cats", version=1, contract=CONTRACT):
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(contract)
    return folder


def write_again(path, text):
    """Other content, and another time of it whatever the clock's grain."""
    before = path.stat().st_mtime_ns
    path.write_text(text)
    os.utime(path, ns=(before + 1_000_000, before + 1_000_000))


def names(look):
    return {name: list(numbers) for name, numbers in look.versions.items()}


def test_a_version_counts_once_it_was_the_same_twice(root):
    watcher = Watcher(root)
    add(root)
    assert names(watcher.look()) == {}
    look = watcher.look()
    assert names(look) == {"cats": [1]}
    assert look.versions["cats"][1].model.contract.fake.class_count == 10
    assert not look.faults


def test_at_the_start_what_is_there_counts(root):
    add(root, "cats", 1)
    add(root, "cats", 12)
    add(root, "dogs", 3)
    assert names(Watcher(root).look(everybody)) == {"cats": [1, 12], "dogs": [3]}


def test_one_that_somebody_writes_to_does_not_count_until_they_are_done(root):
    watcher = Watcher(root)
    watcher.look()
    folder = add(root)
    for size in range(3):
        (folder / "model.onnx").write_bytes(b"x" * size)
        assert names(watcher.look()) == {}
    assert names(watcher.look()) == {"cats": [1]}


def test_growth_in_a_folder_below_counts_as_writing_too(root):
    watcher = Watcher(root)
    folder = add(root)
    (folder / "data").mkdir()
    watcher.look()
    (folder / "data" / "weights").write_bytes(b"x")
    assert names(watcher.look()) == {}
    assert names(watcher.look()) == {"cats": [1]}


def test_a_version_that_is_renamed_into_place_is_whole(root):
    watcher = Watcher(root)
    add(root, "cats", 1)
    watcher.look(everybody)
    add(root, ".incoming", 2)
    for _ in range(3):
        assert names(watcher.look()) == {"cats": [1]}, "hidden folders are nobody's models"
    (root / ".incoming" / "2").rename(root / "cats" / "2")
    watcher.look()
    assert names(watcher.look()) == {"cats": [1, 2]}


@pytest.mark.parametrize("name", [".2.tmp", "2.tmp", "02", "0", "tmp2", "v2"])
def test_what_has_no_versions_name_is_not_looked_at(root, name):
    add(root, "cats", 1)
    (root / "cats" / name).mkdir()
    (root / "cats" / name / "model.toml").write_text(CONTRACT)
    (root / "cats" / "3").write_text("a file")
    (root / "-dogs" / "1").mkdir(parents=True)
    look = Watcher(root).look(everybody)
    assert (names(look), look.faults) == ({"cats": [1]}, {})


def test_one_without_a_contract_that_can_be_read_says_why_and_does_not_count(root):
    watcher = Watcher(root)
    folder = add(root, contract="broken")
    (root / "dogs" / "1").mkdir(parents=True)
    look = watcher.look(everybody)
    assert names(look) == {}
    assert "model.toml" in look.faults["cats", 1]
    assert "model.toml is missing" in look.faults["dogs", 1]
    write_again(folder / "model.toml", CONTRACT)
    watcher.look()
    look = watcher.look()
    assert names(look) == {"cats": [1]}
    assert list(look.faults) == [("dogs", 1)]
    (root / "dogs" / "1").rmdir()
    assert watcher.look().faults == {}


def test_changed_files_are_another_signature_once_they_settle(root):
    watcher = Watcher(root)
    folder = add(root)
    before = watcher.look(everybody).versions["cats"][1]
    write_again(folder / "model.toml", CONTRACT.replace("10", "20"))
    assert watcher.look().versions["cats"][1] == before
    after = watcher.look().versions["cats"][1]
    assert after.signature != before.signature
    assert after.model.contract.fake.class_count == 20


def test_files_that_are_broken_in_place_leave_the_old_version_standing(root):
    watcher = Watcher(root)
    folder = add(root)
    before = watcher.look(everybody).versions["cats"][1]
    write_again(folder / "model.toml", "broken")
    watcher.look()
    look = watcher.look()
    assert look.versions["cats"][1] == before
    assert ("cats", 1) in look.faults
    write_again(folder / "model.toml", CONTRACT)
    watcher.look()
    assert watcher.look().faults == {}


def test_files_that_come_back_as_they_were_are_no_fault(root):
    watcher = Watcher(root)
    folder = add(root)
    before = (folder / "model.toml").stat().st_mtime_ns
    watcher.look(everybody)
    write_again(folder / "model.toml", "broken")
    watcher.look()
    assert watcher.look().faults
    (folder / "model.toml").write_text(CONTRACT)
    os.utime(folder / "model.toml", ns=(before, before))
    watcher.look()
    assert watcher.look().faults == {}


def test_a_version_that_goes_is_gone_when_another_one_is_there(root):
    watcher = Watcher(root)
    first, second = add(root, "cats", 1), add(root, "cats", 2)
    watcher.look(everybody)
    first.rename(root / ".trash")
    assert names(watcher.look()) == {"cats": [2]}
    second.rename(root / ".trash" / "2")
    assert names(watcher.look()) == {"cats": [2]}, "the last one stays while the model's folder does"
    (root / "cats").rmdir()
    assert names(watcher.look()) == {}


def test_the_last_version_goes_when_its_successor_is_there(root):
    watcher = Watcher(root)
    first = add(root, "cats", 1)
    watcher.look(everybody)
    first.rename(root / ".trash")
    assert names(watcher.look()) == {"cats": [1]}
    add(root, "cats", 2)
    assert names(watcher.look()) == {"cats": [1]}
    assert names(watcher.look()) == {"cats": [2]}


def test_files_that_change_while_they_are_read_do_not_count(root, monkeypatch):
    watcher = Watcher(root)
    folder = add(root)
    watcher.look()
    real = module.read_version

    def read(directory):
        found = real(directory)
        (folder / "late").write_text("x")
        return found

    monkeypatch.setattr(module, "read_version", read)
    assert names(watcher.look()) == {}
    monkeypatch.setattr(module, "read_version", real)
    watcher.look()
    assert names(watcher.look()) == {"cats": [1]}


def test_a_repository_that_cannot_be_read_changes_nothing(root):
    watcher = Watcher(root)
    add(root)
    watcher.look(everybody)
    root.rename(root.parent / "away")
    with pytest.raises(InvalidModel, match="no such folder"):
        watcher.look()
    (root.parent / "away").rename(root)
    assert names(watcher.look()) == {"cats": [1]}


def test_on_somebodys_word_versions_are_read_as_they_are(root):
    watcher = Watcher(root)
    folder = add(root, "cats")
    add(root, "dogs")
    assert names(watcher.look(lambda key: key == ("cats", 1))) == {"cats": [1]}
    assert names(watcher.look()) == {"cats": [1], "dogs": [1]}
    write_again(folder / "model.toml", "broken")
    assert "model.toml" in watcher.look(lambda key: key == ("cats", 1)).faults["cats", 1]
    write_again(folder / "model.toml", CONTRACT)
    assert watcher.look(everybody).faults == {}
