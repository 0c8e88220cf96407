"""What the kernel shows of a machine and its driver, read from files as NVIDIA's driver has them."""

from __future__ import annotations

import os
import platform

import pytest

from gpuworker.doctor import machine

VERSION = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)  Sun Jul 27 2025
GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A machine with one GPU of NVIDIA's beside its sound, a network card, and another one's graphics."""
    devices = {
        "0000:01:00.0": ("0x10de", "0x030200"),
        "0000:01:00.1": ("0x10de", "0x040300"),
        "0000:02:00.0": ("0x8086", "0x020000"),
        "0000:03:00.0": ("0x1002", "0x030000"),
    }
    for name, (vendor, kind) in devices.items():
        folder = tmp_path / "sys/bus/pci/devices" / name
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(VERSION)
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "null"):
        (tmp_path / "dev" / name).touch()
    monkeypatch.delenv(machine.VISIBLE, raising=False)
    return tmp_path


def test_a_driver_with_one_gpu(root):
    assert machine.driver(root) == {
        "board_count": 1,
        "module": "580.65.06",
        "nodes": (str(root / "dev/nvidia0"),),
        "closed_nodes": (),
        "unified_memory": True,
        "visible": None,
    }


def test_files_that_may_not_be_opened(root, monkeypatch):
    # Root may open everything; the question is put to the kernel all the same.
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "nvidia-uvm")
    assert machine.driver(root)["closed_nodes"] == (str(root / "dev/nvidia-uvm"),)


def test_a_container_that_was_given_nothing(root, monkeypatch):
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        (root / "dev" / name).unlink()
    monkeypatch.setenv(machine.VISIBLE, "-1")
    found = machine.driver(root)
    assert (found["nodes"], found["closed_nodes"], found["unified_memory"]) == ((), (), False)
    assert found["visible"] == "-1"


def test_windows_has_one_file_for_all(root):
    for file in (root / "dev").iterdir():
        file.unlink()
    (root / "dev/dxg").touch()
    found = machine.driver(root)
    assert found["nodes"] == (str(root / "dev/dxg"),)
    assert found["unified_memory"]


def test_a_machine_with_nothing_of_it(tmp_path):
    found = machine.driver(tmp_path)
    assert (found["board_count"], found["module"], found["nodes"]) == (0, "", ())


def test_a_driver_whose_version_is_written_otherwise_is_loaded_all_the_same(root):
    (root / "proc/driver/nvidia/version").write_text("NVRM version: somebody's own build\n")
    assert machine.driver(root)["module"] == "unknown"


def test_this_machine():
    found = machine.host()
    assert found.python == platform.python_version()
    assert found.core_count == len(os.sched_getaffinity(0))
    assert found.platform.startswith("Linux ")
    assert found.kernel == platform.release()


# -- the folder of engines -----------------------------------------------------------------------------------------


def test_engines_are_counted(tmp_path):
    folder = tmp_path / "engines"
    folder.mkdir(mode=0o700)
    (folder / "a.engine").write_bytes(b"x" * 1000)
    (folder / "b.engine").write_bytes(b"x" * 24)
    found = machine.engines(str(folder))
    assert (found.file_count, found.size, found.problem) == (2, 1024, "")
    assert found.free_size > 0


def test_a_folder_that_is_still_to_be_made_is_none_made_here(tmp_path):
    found = machine.engines(str(tmp_path / "not" / "yet"))
    assert (found.file_count, found.problem) == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o750, 0o707, 0o777])
def test_a_folder_that_others_may_open_is_refused(tmp_path, mode):
    folder = tmp_path / "engines"
    folder.mkdir()
    folder.chmod(mode)
    assert machine.engines(str(folder)).problem.endswith(f"chmod 700 {folder}")


def test_somebody_elses_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    assert "belongs to another user" in machine.engines(str(tmp_path)).problem


def test_a_file_is_no_folder(tmp_path):
    file = tmp_path / "engines"
    file.touch(mode=0o700)
    assert "is no folder" in machine.engines(str(file)).problem


def test_a_place_that_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written to" in machine.engines(str(tmp_path / "engines")).problem


def test_a_user_without_a_home_keeps_none():
    found = machine.engines("")
    assert (found.path, found.file_count, found.problem) == ("", 0, "")
