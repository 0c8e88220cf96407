"""Every GPU as NVML knows it: memory, slices, who is on it. Only reads; changes no setting of a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpuworker.doctor import machine

if TYPE_CHECKING:
    from collections.abc import Callable

_NAME_SIZE_MAX = 80


def ask(library: Any) -> dict[str, Any]:
    """The driver's version, and the GPUs as `shm.checkup.Gpu` has them. `library`: pynvml."""
    try:
        library.nvmlInit()
        gpus = [_gpu(library, index) for index in range(library.nvmlDeviceGetCount())]
        return {
            "driver": library.nvmlSystemGetDriverVersion(),
            # NVML's own order may change between boots; CUDA is told to have that of the bus.
            "gpus": [gpu for _, gpu in sorted(gpus, key=lambda placed: placed[0])],
        }
    except library.NVMLError as error:
        return {"problem": str(error), "code": int(error.value)}


def _gpu(library: Any, index: int) -> tuple[tuple[int, ...], dict[str, Any]]:
    """(place on the bus, GPU)."""
    handle = library.nvmlDeviceGetHandleByIndex(index)
    pci = _try(library, None, library.nvmlDeviceGetPciInfo, handle)
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    # What a GPU does not have (slices, persistence, modes) it says so to.
    mig = bool(_try(library, [0, 0], library.nvmlDeviceGetMigMode, handle)[0])
    persistence = _try(library, None, library.nvmlDeviceGetPersistenceMode, handle)
    processes = _try(library, [], library.nvmlDeviceGetComputeRunningProcesses, handle)
    return () if pci is None else (pci.domain, pci.bus, pci.device), {
        "index": index,
        "uuid": library.nvmlDeviceGetUUID(handle),
        "name": library.nvmlDeviceGetName(handle),
        "memory_size": int(memory.total),
        "memory_used_size": int(memory.used),
        "capability": list(_try(library, (0, 0), library.nvmlDeviceGetCudaComputeCapability, handle)),
        "persistence": None if persistence is None else bool(persistence),
        "compute_mode": int(_try(library, 0, library.nvmlDeviceGetComputeMode, handle)),
        "mig": mig,
        "slices": _slices(library, handle) if mig else [],
        "occupants": [
            {"pid": int(each.pid), "name": _process_name(each.pid), "memory_size": each.usedGpuMemory}
            for each in processes
        ],
    }


def _slices(library: Any, handle: Any) -> list[dict[str, Any]]:
    """MIG devices; the places for them are numbered, and may be empty."""
    found = []
    for index in range(_try(library, 0, library.nvmlDeviceGetMaxMigDeviceCount, handle)):
        part = _try(library, None, library.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        if part is not None:
            name = _try(library, "MIG", library.nvmlDeviceGetName, part)
            memory_size = int(library.nvmlDeviceGetMemoryInfo(part).total)
            found.append({"uuid": library.nvmlDeviceGetUUID(part), "name": name, "memory_size": memory_size})
    return found


def _try(library: Any, otherwise: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call gives, or something else where this GPU or this driver has no answer."""
    try:
        return call(*arguments)
    except (library.NVMLError, library.NVMLLibraryMismatchError):  # the latter by drivers older than 510
        return otherwise


def _process_name(pid: int) -> str:
    """As the kernel knows it; empty in a container, where NVML's pids are those of the host."""
    if machine.in_container():
        return ""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()[:_NAME_SIZE_MAX]
    except OSError:
        return ""
