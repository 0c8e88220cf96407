"""The machine and NVIDIA's driver as the kernel shows them. Reads files; loads nothing."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import stat
import sys
from pathlib import Path
from typing import Any

from shm.checkup import EngineFolder, Host

VISIBLE = "CUDA_VISIBLE_DEVICES"

FILES_MAX = 10_000
"""Engines that are counted."""

_NVIDIA = "0x10de"
_DISPLAY = "0x03"
"""PCI's vendor, and the class of display controllers. Source: the PCI ID database."""

_MODULE_VERSION = re.compile(r"\b(\d{3,4}\.\d+(?:\.\d+)?)\b")
_CARD = re.compile(r"nvidia\d+|dxg")
_SHARED = ("nvidiactl", "nvidia-uvm")
"""Device files that every CUDA process opens beside its GPU's; under WSL `dxg` is the only one."""

_CGROUP = Path("/sys/fs/cgroup/memory.max")
_CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))


def host() -> Host:
    """The machine."""
    system = os.uname()
    libc, version = platform.libc_ver()
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return Host(
        python=platform.python_version(),
        executable=sys.executable,
        platform=f"{system.sysname} {system.machine}",
        kernel=system.release,
        libc=f"{libc} {version}".strip(),
        core_count=len(os.sched_getaffinity(0)),
        container=in_container(),
        memory_size_max=_memory_size_max(),
        memlock_size_max=None if limit == resource.RLIM_INFINITY else limit,
    )


def in_container() -> bool:
    """Whether Docker, Podman or Kubernetes runs this."""
    return any(mark.exists() for mark in _CONTAINER_MARKS) or bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def _memory_size_max() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(_CGROUP.read_text())
    return None


def driver(root: Path = Path("/")) -> dict[str, Any]:
    """What `shm.checkup.Driver` has of the kernel: boards, module, device files."""
    device_folder = root / "dev"
    cards = sorted(each for each in _listed(device_folder) if _CARD.fullmatch(each.name))
    files = [*cards, *(device_folder / name for name in _SHARED)]
    return {
        "board_count": sum(map(_is_board, _listed(root / "sys/bus/pci/devices"))),
        "module": _module_version(root / "proc/driver/nvidia/version"),
        "nodes": tuple(str(each) for each in cards),
        "closed_nodes": tuple(str(each) for each in files if each.exists() and not os.access(each, os.R_OK | os.W_OK)),
        "unified_memory": any(each.name in {"dxg", "nvidia-uvm"} and each.exists() for each in files),
        "visible": os.environ.get(VISIBLE),
    }


def _listed(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []


def _is_board(device: Path) -> bool:
    """Whether an entry of the PCI bus is a GPU of NVIDIA's; their sound and bridges are not."""
    with contextlib.suppress(OSError):
        vendor = (device / "vendor").read_text().strip()
        return vendor == _NVIDIA and (device / "class").read_text().startswith(_DISPLAY)
    return False


def _module_version(file: Path) -> str:
    """E.g. "580.65.06"; the file's first line names the module, then its version."""
    try:
        found = _MODULE_VERSION.search(file.read_text(errors="replace"))
    except OSError:
        return ""
    return found[1] if found else "unknown"


def engines(path: str) -> EngineFolder:
    """The folder of built engines, which is not made here."""
    if not path:
        return EngineFolder(path=path, size=0, file_count=0, free_size=0, problem="")
    folder = Path(path)
    there = next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))
    sizes = []
    with contextlib.suppress(OSError):
        sizes = [each.stat().st_size for each in _listed(folder)[:FILES_MAX] if each.is_file()]
    system = os.statvfs(there)
    free_size = system.f_bavail * system.f_frsize
    problem = _folder_problem(folder, there)
    return EngineFolder(path=path, size=sum(sizes), file_count=len(sizes), free_size=free_size, problem=problem)


def _folder_problem(folder: Path, there: Path) -> str:
    """Why engines cannot be kept in `folder`, of which `there` is the part that exists."""
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written to by this user; set engine_dir to a folder that can"
    if there != folder:
        return ""
    found = folder.stat(follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is no folder; remove it, or set engine_dir"
    if found.st_uid != os.geteuid():
        return f"{folder} belongs to another user (uid {found.st_uid}), and engines are native code; set engine_dir"
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return f"{folder} is open to other users, and engines are native code; chmod 700 {folder}"
    return ""
