"""Why a GPU, or a backend on it, cannot be used: the first cause of a chain, in words, with the command that mends it.

Pure: `shm.checkup` documents in, one Cause out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shm.checkup import Checkup, Driver, Gpu, Opened, Package

DRIVERS = {11: 450, 12: 525, 13: 580}
"""Major version of CUDA → the oldest driver that runs what was built for it.

Source: NVIDIA, CUDA Compatibility, "Minor Version Compatibility", table 1.
"""

CAPABILITIES = {11: (3, 5), 12: (5, 0), 13: (7, 5)}
"""Major version of CUDA → the smallest compute capability that it has code for.

Source: the release notes of CUDA 11.0, 12.0 and 13.0, which name the architectures that were dropped.
"""

INSTALL = "pip install 'penstock[gpu]'"
INSTALL_CPU = "pip install 'penstock[cpu]'"
LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
REINSTALL = f"pip uninstall -y onnxruntime onnxruntime-gpu && {INSTALL}"

_GIVE_GPUS = "docker run --gpus all …"
_MAKE_NODES = "sudo nvidia-modprobe -u -c=0"
PROHIBITED, EXCLUSIVE = 2, 3
"""Compute modes of NVML."""

_VERSIONS_DIFFER = 18
"""NVML_ERROR_LIB_RM_VERSION_MISMATCH."""


class Cause(NamedTuple):
    """What is wrong, and a command or a step that mends it; empty where there is none."""

    problem: str
    cure: str = ""

    @classmethod
    def of_sentence(cls, words: str) -> Cause:
        """Of the worker's words, which are "what is wrong; what to do"."""
        problem, _, cure = words.partition("; ")
        return cls(problem, LIBRARIES if "onnxruntime-gpu[" in cure else cure)


def of_machine(found: Checkup) -> Cause | None:
    """Why no GPU of this machine can be used; None: NVML shows some, or nothing is known against it."""
    driver, container = found.driver, found.host.container
    if found.gpus:
        return None
    if driver.nodes:
        return _of_driver(driver, container=container)
    if driver.module:
        if container:
            return Cause("the host has a driver, and this container was given no GPU", _GIVE_GPUS)
        return Cause(f"the driver {driver.module} is loaded, and /dev has no GPU", _MAKE_NODES)
    if driver.board_count:
        count = f"{driver.board_count} NVIDIA GPU{'' if driver.board_count == 1 else 's'}"
        return Cause(f"the bus has {count}, and no driver is loaded", "install NVIDIA's driver, 580 or newer")
    where = "container" if container else "machine"
    return Cause(f"there is no NVIDIA GPU in this {where}", f"on a host that has one: {_GIVE_GPUS}" * container)


def _of_driver(driver: Driver, *, container: bool) -> Cause | None:
    """What keeps CUDA from its device files and libraries."""
    if driver.closed_nodes:
        nodes = ", ".join(driver.closed_nodes)
        return Cause(f"this user may not open {nodes}", f"ls -l {driver.closed_nodes[0]}, and join its group")
    if driver.nvml_code == _VERSIONS_DIFFER:
        return Cause("the driver's libraries are newer than its kernel module: it was upgraded", "sudo reboot")
    if driver.libcuda:
        cure = "install the part of NVIDIA's driver that has libcuda.so.1"
        if container:
            cure = "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility …"
        return Cause(f"the driver's library does not load: {driver.libcuda}", cure)
    if driver.visible is not None and driver.visible.strip() in {"", "-1"}:
        return Cause(f"CUDA_VISIBLE_DEVICES='{driver.visible}' hides every GPU", "unset CUDA_VISIBLE_DEVICES")
    return None


def of_card(found: Checkup, gpu: Gpu | None, opened: Opened) -> Cause:
    """Why a GPU could not be opened, by what is known of it; `gpu`: None where NVML is not there to show it."""
    causes = filter(None, _of_card(found, gpu))
    return next(causes, Cause.of_sentence(opened.problem))


def _of_card(found: Checkup, gpu: Gpu | None) -> Iterator[Cause | None]:
    yield _of_driver(found.driver, container=found.host.container)
    yield of_driver_age(found, _major(found.cuda.version), "cuda-python")
    if gpu is not None:
        mode = f"sudo nvidia-smi -i {gpu.index} -c DEFAULT"
        if gpu.compute_mode == PROHIBITED:
            yield Cause(f"{gpu.name} is in compute mode 'prohibited'", mode)
        if gpu.compute_mode == EXCLUSIVE and gpu.occupants:
            who = gpu.occupants[0]
            yield Cause(f"{gpu.name} takes one process, and has {who.name or 'one'} (pid {who.pid})", mode)
    if not found.driver.unified_memory and found.driver.nodes:
        yield Cause("/dev/nvidia-uvm is missing, which CUDA needs and may not make here", _MAKE_NODES)


def of_driver_age(found: Checkup, major: int, what: str) -> Cause | None:
    """Whether the driver is too old for something that was built for that CUDA."""
    driver, needed = _major(found.driver.version or found.driver.module), DRIVERS.get(major, 0)
    # What its library knows says more than its number: a package for forward compatibility knows more.
    if found.driver.cuda < major * 1000 and 0 < driver < needed:
        return Cause(
            f"{what} is for CUDA {major}, which needs driver {needed} or newer, and"
            f" {found.driver.version or found.driver.module} is loaded",
            f"install NVIDIA's driver, {needed} or newer",
        )
    return None


def of_capability(gpu: Gpu | None, major: int, what: str) -> Cause | None:
    """Whether the GPU is too old for something that was built for that CUDA."""
    smallest = CAPABILITIES.get(major, (0, 0))
    if gpu is None or gpu.capability == (0, 0) or tuple(gpu.capability) >= smallest:
        return None
    has, needs = (".".join(map(str, each)) for each in (gpu.capability, smallest))
    return Cause(f"{what} is for CUDA {major}, whose compute capability starts at {needs}; {gpu.name} has {has}")


def of_package(package: Package, name: str, install: str = INSTALL) -> Cause | None:
    """Whether a library is not installed, or does not import."""
    if package.problem:
        return Cause(
            f"{name} does not import: {package.problem}", install.replace("install", "install --force-reinstall")
        )
    return None if package.version else Cause(f"{name} is not installed", install)


def of_onnxruntime(found: Checkup, gpu: Gpu | None) -> Cause | None:
    """Why ONNX Runtime cannot use a GPU that opens."""
    runtime = found.onnxruntime
    if cause := of_package(runtime, "onnxruntime-gpu"):
        return cause
    if "CUDAExecutionProvider" not in runtime.providers:
        if both_installed(found):
            return Cause("onnxruntime and onnxruntime-gpu are both installed, in each other's files", REINSTALL)
        return Cause(f"onnxruntime {runtime.version} is a build for the CPU", REINSTALL)
    major = _major(runtime.cuda)
    causes = (
        of_driver_age(found, major, "onnxruntime-gpu"),
        of_capability(gpu, major, "onnxruntime-gpu"),
        Cause.of_sentence(runtime.provider) if runtime.provider else None,
        of_package(found.onnx, "onnx"),
    )
    return next(filter(None, causes), None)


def both_installed(found: Checkup) -> bool:
    """Whether both packages of ONNX Runtime are there: each has files that the other one has too."""
    return {"onnxruntime", "onnxruntime-gpu"} <= found.onnxruntime.installed.keys()


def of_tensorrt(found: Checkup, gpu: Gpu | None, opened: Opened) -> Cause | None:
    """Why TensorRT cannot use a GPU that opens."""
    tensorrt = found.tensorrt
    if cause := of_package(tensorrt, "tensorrt"):
        return cause
    if not (tensorrt.builder and tensorrt.parser):
        return Cause(f"tensorrt {tensorrt.version} builds no engines from ONNX: it is a runtime only", INSTALL)
    major = next((int(name[-2:]) for name in tensorrt.installed if name.endswith(("-cu12", "-cu13"))), 0)
    causes = (
        of_driver_age(found, major, "tensorrt"),
        of_capability(gpu, major, "tensorrt"),
        Cause(f"tensorrt does not start: {opened.tensorrt}") if opened.tensorrt else None,
        Cause.of_sentence(found.engines.problem) if found.engines.problem else None,
        of_package(found.onnx, "onnx"),
    )
    return next(filter(None, causes), None)


def _major(version: str) -> int:
    """13 of "13.0"; 0 of what is none."""
    head = version.partition(".")[0]
    return int(head) if head.isdecimal() else 0
