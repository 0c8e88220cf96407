"""Documents of the doctor: a machine with one good GPU, and what changes of it."""

from __future__ import annotations

from typing import Any

import msgspec

from shm.checkup import Checkup, Driver, EngineFolder, Gpu, Host, Occupant, Opened, Package, Runtime, Slice, TensorRt

UUID = "GPU-11111111-2222-3333-4444-555555555555"
OTHER = "GPU-99999999-2222-3333-4444-555555555555"
SLICE = "MIG-aaaaaaaa-2222-3333-4444-555555555555"
GIB = 1 << 30


def host(**changes: Any) -> Host:
    whole = {
        "python": "3.12.1",
        "executable": "/venv/bin/python",
        "platform": "Linux x86_64",
        "kernel": "6.8.0",
        "libc": "glibc 2.39",
        "core_count": 16,
        "container": False,
        "memory_size_max": None,
        "memlock_size_max": None,
    }
    return Host(**whole | changes)


def driver(**changes: Any) -> Driver:
    whole = {
        "board_count": 1,
        "module": "580.65.06",
        "nodes": ("/dev/nvidia0",),
        "closed_nodes": (),
        "unified_memory": True,
        "libcuda": "",
        "cuda": 13000,
        "nvml": "",
        "nvml_code": 0,
        "version": "580.65.06",
        "visible": None,
    }
    return Driver(**whole | changes)


def gpu(**changes: Any) -> Gpu:
    whole = {
        "index": 0,
        "uuid": UUID,
        "name": "NVIDIA H200",
        "memory_size": 141 * GIB,
        "memory_used_size": GIB,
        "capability": (9, 0),
        "persistence": True,
        "compute_mode": 0,
        "mig": False,
        "slices": (),
        "occupants": (),
    }
    return Gpu(**whole | changes)


def cut(*uuids: str, **changes: Any) -> Gpu:
    """A GPU in MIG mode with slices."""
    slices = tuple(Slice(uuid=uuid, name="NVIDIA H200 MIG 1g.18gb", memory_size=16 * GIB) for uuid in uuids)
    return gpu(mig=True, slices=slices, **changes)


def occupant(**changes: Any) -> Occupant:
    return Occupant(**{"pid": 42, "name": "python", "memory_size": 512 << 20} | changes)


def package(version: str = "1.0", problem: str = "", **installed: str) -> Package:
    return Package(version=version, problem=problem, installed=installed)


def runtime(**changes: Any) -> Runtime:
    whole = {
        "installed": {"onnxruntime-gpu": "1.31.1"},
        "version": "1.31.1",
        "problem": "",
        "cuda": "13.0",
        "providers": ("CUDAExecutionProvider", "CPUExecutionProvider"),
        "provider": "",
    }
    return Runtime(**whole | changes)


CPU_BUILD = {"installed": {"onnxruntime": "1.31.1"}, "cuda": "", "providers": ("CPUExecutionProvider",)}


def tensorrt(**changes: Any) -> TensorRt:
    whole = {
        "installed": {"tensorrt-cu13": "11.4.0.106"},
        "version": "11.4.0.106",
        "problem": "",
        "builder": True,
        "parser": True,
    }
    return TensorRt(**whole | changes)


def engines(**changes: Any) -> EngineFolder:
    whole = {"path": "/cache/engines", "size": 0, "file_count": 0, "free_size": GIB, "problem": ""}
    return EngineFolder(**whole | changes)


def checkup(**changes: Any) -> Checkup:
    """A machine on which everything works, but for `changes`."""
    whole = {
        "host": host(),
        "driver": driver(),
        "gpus": (gpu(),),
        "onnxruntime": runtime(),
        "onnx": package("1.23.2"),
        "cuda": package("13.4.4"),
        "tensorrt": tensorrt(),
        "nvml": package("13.615.71"),
        "engines": engines(),
    }
    return Checkup(**whole | changes)


NO_DRIVER = {
    "driver": driver(
        board_count=0,
        module="",
        nodes=(),
        unified_memory=False,
        cuda=0,
        version="",
        libcuda="OSError: libcuda.so.1: cannot open shared object file: No such file or directory",
        nvml="NVML Shared Library Not Found",
        nvml_code=12,
    ),
    "gpus": (),
}
"""What a machine without NVIDIA's driver shows."""

NO_TENSORRT = tensorrt(installed={}, version="", builder=False, parser=False)


def opened(**changes: Any) -> Opened:
    return Opened(
        **{"device": f"cuda:{UUID}", "label": "NVIDIA H200, 141 GiB", "problem": "", "tensorrt": ""} | changes
    )


def over_the_wire(found: Checkup) -> Checkup:
    """As the gateway reads it."""
    return msgspec.json.decode(msgspec.json.encode(found), type=Checkup)
