"""GPUs as NVML knows them, by the real library's names and exceptions; its functions are ours, for want of one."""

from __future__ import annotations

import os
from types import SimpleNamespace

import msgspec
import pynvml
import pytest

from gpuworker.doctor import cards, machine
from shm.checkup import Gpu

SIZES = {"a": (80 << 30, 3 << 30), "b": (16 << 30, 0), "b/0": (4 << 30, 0), "b/2": (4 << 30, 0)}


def no(code):
    def refuse(*_):
        raise pynvml.NVMLError(code)

    return refuse


@pytest.fixture
def nvml(monkeypatch):
    """A card of which everything is known, and one in slices of which little is."""

    def mig_part(handle, index):
        if index == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return f"{handle}/{index}"

    def of(**answers):
        def answer(handle):
            found = answers.get(handle)
            return no(pynvml.NVML_ERROR_NOT_SUPPORTED)() if found is None else found

        return answer

    us = SimpleNamespace(pid=os.getpid(), usedGpuMemory=1 << 30)
    hidden = SimpleNamespace(pid=1 << 30, usedGpuMemory=None)
    calls = {
        "nvmlInit": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "580.65.06",
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: "ab"[index],
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=SIZES[handle][0], used=SIZES[handle][1]),
        "nvmlDeviceGetUUID": lambda handle: f"MIG-{handle}" if "/" in handle else f"GPU-{handle}",
        "nvmlDeviceGetPciInfo": lambda handle: SimpleNamespace(domain=0, bus=2 if handle == "a" else 1, device=0),
        "nvmlDeviceGetName": of(a="A", b="B", **{"b/0": "B MIG 1g"}),
        "nvmlDeviceGetMigMode": of(b=[1, 1]),
        "nvmlDeviceGetMaxMigDeviceCount": lambda _: 3,
        "nvmlDeviceGetMigDeviceHandleByIndex": mig_part,
        "nvmlDeviceGetPersistenceMode": of(a=0),
        "nvmlDeviceGetComputeMode": of(a=3),
        "nvmlDeviceGetCudaComputeCapability": of(a=(9, 0)),
        "nvmlDeviceGetComputeRunningProcesses": of(a=[us, hidden]),
    }
    monkeypatch.setattr(machine, "in_container", lambda: False)
    for name, call in calls.items():
        monkeypatch.setattr(pynvml, name, call)
    return monkeypatch


def test_every_gpu_with_all_that_it_has_an_answer_to(nvml):
    found = cards.ask(pynvml)
    assert found["driver"] == "580.65.06"
    cut, whole = msgspec.convert(found["gpus"], list[Gpu])
    assert cut.index == 1, "of those on the bus the first"
    assert (whole.index, whole.uuid, whole.name, whole.mig, whole.slices) == (0, "GPU-a", "A", False, ())
    assert (whole.memory_size, whole.memory_used_size) == SIZES["a"]
    assert (whole.capability, whole.persistence, whole.compute_mode) == ((9, 0), False, 3)
    ours, hidden = whole.occupants
    assert (ours.pid, ours.memory_size) == (os.getpid(), 1 << 30)
    assert ours.name
    assert (hidden.name, hidden.memory_size) == ("", None)
    assert (cut.capability, cut.persistence, cut.compute_mode, cut.occupants) == ((0, 0), None, 0, ())
    assert [(part.uuid, part.name, part.memory_size) for part in cut.slices] == [
        ("MIG-b/0", "B MIG 1g", 4 << 30),
        ("MIG-b/2", "MIG", 4 << 30),
    ], "places for slices may be empty"


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("nvmlInit", pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH),
        ("nvmlInit", pynvml.NVML_ERROR_DRIVER_NOT_LOADED),
        ("nvmlDeviceGetHandleByIndex", pynvml.NVML_ERROR_GPU_IS_LOST),
    ],
)
def test_why_it_cannot_be_asked(nvml, call, code):
    nvml.setattr(pynvml, call, no(code))
    assert cards.ask(pynvml) == {"problem": str(pynvml.NVMLError(code)), "code": code}


def test_in_a_container_pids_are_the_host_s_and_have_no_names_here(nvml):
    nvml.setattr(machine, "in_container", lambda: True)
    assert [each["name"] for each in cards.ask(pynvml)["gpus"][1]["occupants"]] == ["", ""]


def test_a_driver_that_is_too_old_to_list_processes_is_told_all_the_same(nvml):
    def refuse(_):
        raise pynvml.NVMLLibraryMismatchError("driver is too old")

    nvml.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", refuse)
    found = cards.ask(pynvml)
    assert [gpu["occupants"] for gpu in found["gpus"]] == [[], []]
