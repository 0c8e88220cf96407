"""Which GPUs there are, which one a setting means, and what they hold: by NVML's word. Reads only.

Never CUDA: a process that opens it takes memory on the card, and has to be killed to give it back. People and settings
say 'cuda:0'; a worker is given the UUID of the one GPU, or MIG slice, that it is to see::

    settings                 CUDA_VISIBLE_DEVICES of the operator        a worker gets
    cuda:1                   -                                           the UUID of the second GPU on the bus
    cuda:1                   0,2,3                                       the UUID of the third one
    cuda:GPU-8932f937        -                                           its UUID, whole
    cuda:1                   -, and there is no NVML                     1

State: the library, once it was found.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.errors import InvalidSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"

_CUDA = "cuda:"


class Gpu(NamedTuple):
    """A GPU, or a slice of one that is in MIG mode."""

    uuid: str
    """As NVML and nvidia-smi have it: 'GPU-…' or 'MIG-…'."""
    name: str
    """What product it is."""
    slices: tuple[str, ...] | None = None
    """UUIDs of its slices; None unless it is in MIG mode."""


class Memory(NamedTuple):
    """Of one GPU or slice, in bytes. What the driver keeps for itself counts as used."""

    used_size: int
    size: int

    @property
    def free_size(self) -> int:
        """Bytes that nobody has."""
        return self.size - self.used_size


class Look(NamedTuple):
    """How a GPU or a slice stood when it was looked at; None: nobody can say."""

    memory: Memory | None
    power_w: float | None
    """Watts; of a slice nobody can say."""


@functools.cache
def nvml() -> Any:
    """The library, initialised; None where there is none, or no driver. Looked for once."""
    try:
        library = importlib.import_module("pynvml")
        library.nvmlInit()
    except Exception:  # noqa: BLE001 - no library, no driver, no device: each in its own words
        return None
    return library


# -- which one -------------------------------------------------------------------------------------------------------


def resolve(devices: Sequence[str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """`devices` of the settings as workers are given them, in the same order; 'cpu' stays. `environ`: the operator's.

    Raises: InvalidSettings when one is not there, is hidden by CUDA_VISIBLE_DEVICES, has to be named by its slices, or
        is named twice.
    """
    if not any(device.startswith(_CUDA) for device in devices):
        return tuple(devices)
    mask = environ.get(VISIBLE)
    if nvml() is None:
        resolved = [_unseen(device, mask) for device in devices]
    else:
        there = visible(listed(), mask)
        resolved = [device if device == "cpu" else find(device, there, mask) for device in devices]
    for place, name in enumerate(resolved):
        first = resolved.index(name)
        if first < place:
            raise InvalidSettings(
                f"devices names one twice, as {devices[first]} and as {devices[place]}; a device has one worker"
            )
    return tuple(resolved)


def listed() -> list[Gpu]:
    """Every GPU that this process may use, in the order of the bus; that of NVML may change between boots."""
    library = nvml()
    if library is None:
        return []
    found: list[tuple[tuple[int, int, int], Gpu]] = []
    for index in range(_ask(library.nvmlDeviceGetCount) or 0):
        handle = _ask(library.nvmlDeviceGetHandleByIndex, index)
        uuid = None if handle is None else _ask(library.nvmlDeviceGetUUID, handle)
        if uuid is None:
            continue  # lost, or somebody else's
        pci = _ask(library.nvmlDeviceGetPciInfo, handle)
        place = (index, 0, 0) if pci is None else (pci.domain, pci.bus, pci.device)
        found.append((place, Gpu(uuid, _ask(library.nvmlDeviceGetName, handle) or "GPU", _slices(library, handle))))
    return [gpu for _, gpu in sorted(found, key=lambda pair: pair[0])]


def visible(gpus: Sequence[Gpu], mask: str | None) -> list[Gpu]:
    """What CUDA_VISIBLE_DEVICES leaves of `gpus`, in their order; None: it is not set.

    An entry is a place in the order of the bus, the beginning of a UUID, or a slice. What stands behind one that names
    nothing is hidden, as in CUDA. Source: CUDA programming guide, environment variables.
    """
    if mask is None:
        return list(gpus)
    chosen: list[str] = []
    for entry in map(str.strip, mask.split(",")):
        found = _named(gpus, entry)
        if found is None:
            break
        chosen.append(found.uuid)
    return [gpu for gpu in _with_slices(gpus) if gpu.uuid in chosen]


def _with_slices(gpus: Sequence[Gpu]) -> Iterator[Gpu]:
    """Each GPU, and its slices behind it."""
    for gpu in gpus:
        yield gpu
        for uuid in gpu.slices or ():
            yield Gpu(uuid, f"a slice of {gpu.name}")


def _named(gpus: Sequence[Gpu], entry: str) -> Gpu | None:
    """The one that an entry means; None when it means none, or more than one."""
    if entry.isdecimal():
        return gpus[int(entry)] if int(entry) < len(gpus) else None
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    found = [gpu for gpu in _with_slices(gpus) if gpu.uuid.lower().startswith(entry.lower())]
    whole = [gpu for gpu in found if gpu.uuid.lower() == entry.lower()]
    return (whole or found)[0] if len(whole or found) == 1 else None


def find(device: str, there: Sequence[Gpu], mask: str | None) -> str:
    """What a worker on 'cuda:…' is given, of those that are `visible` under `mask`. Raises InvalidSettings."""
    found = _named(there, device.removeprefix(_CUDA))
    if found is None:
        hidden = "" if mask is None else f", with {VISIBLE}={mask} in the environment"
        known = "; ".join(
            f"cuda:{place} is {gpu.uuid}, {gpu.name}"
            + (f", with the slices {', '.join(gpu.slices)}" if gpu.slices else "")
            for place, gpu in enumerate(there)
        )
        raise InvalidSettings(f"{device} is not there, or names more than one{hidden}; {known or 'there is no GPU'}")
    if found.slices is not None:
        ways = " or ".join(f"{_CUDA}{uuid}" for uuid in found.slices)
        advice = f"name one of its slices: {ways}" if ways else "it has no slices; make some with nvidia-smi mig"
        raise InvalidSettings(f"{device} ({found.uuid}, {found.name}) is in MIG mode; {advice}")
    return f"{_CUDA}{found.uuid}"


def _unseen(device: str, mask: str | None) -> str:
    """A GPU where nobody says which there are. Raises InvalidSettings when the operator's list has it not."""
    index = device.removeprefix(_CUDA)
    if mask is None or not index.isdecimal():
        return device
    entries = [entry for entry in map(str.strip, mask.split(",")) if entry not in {"", "-1"}]
    if all(entry.isdecimal() for entry in entries):
        entries.sort(key=int)
    if int(index) >= len(entries):
        raise InvalidSettings(f"{device} is not there: {VISIBLE}={mask} leaves {len(entries)} GPUs")
    return f"{_CUDA}{entries[int(index)]}"


def _slices(library: Any, handle: Any) -> tuple[str, ...] | None:
    """UUIDs of a GPU's slices; None unless it is in MIG mode."""
    modes = _ask(library.nvmlDeviceGetMigMode, handle)
    if modes is None or modes[0] != library.NVML_DEVICE_MIG_ENABLE:
        return None
    return tuple(uuid for each in _slice_handles(library, handle) if (uuid := _ask(library.nvmlDeviceGetUUID, each)))


def _slice_handles(library: Any, handle: Any) -> Iterator[Any]:
    """The slices of a GPU in MIG mode. Their places may have gaps."""
    for place in range(_ask(library.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        found = _ask(library.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
        if found is not None:
            yield found


# -- what they hold --------------------------------------------------------------------------------------------------


def memory(device: str) -> Memory | None:
    """Of a device as `resolve` gives it; None when nobody can say. May take as long as the driver is busy."""
    handle = _handle(device)
    found = None if handle is None else _ask(nvml().nvmlDeviceGetMemoryInfo, handle)
    return None if found is None else Memory(int(found.used), int(found.total))


def look(device: str) -> Look:
    """How it stands now, by the name that `resolve` gives it. Takes its time, as `memory` does."""
    handle = _handle(device)
    milliwatts = None if handle is None else _ask(nvml().nvmlDeviceGetPowerUsage, handle)
    return Look(memory(device), None if milliwatts is None else milliwatts / 1000)


def held_sizes() -> dict[int, int]:
    """Bytes of device memory by pid, over all GPUs; nothing without NVML.

    NVML knows the host's pids: in a container with pids of its own nobody's are found. 0: it does not say how much.
    """
    library = nvml()
    found: dict[int, int] = {}
    if library is None:
        return found
    for index in range(_ask(library.nvmlDeviceGetCount) or 0):
        handle = _ask(library.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            continue
        # Of a GPU in MIG mode who is not root is told by slice.
        handles = [handle] if _slices(library, handle) is None else _slice_handles(library, handle)
        for process in (each for one in handles for each in _processes(library, one)):
            found[process.pid] = found.get(process.pid, 0) + (process.usedGpuMemory or 0)
    return found


def _processes(library: Any, handle: Any) -> Sequence[Any]:
    try:
        return _ask(library.nvmlDeviceGetComputeRunningProcesses, handle) or ()
    except library.NVMLLibraryMismatchError:  # a driver older than 510
        return _ask(library.nvmlDeviceGetComputeRunningProcesses_v2, handle) or ()


def _handle(device: str) -> Any:
    """NVML's handle; None without NVML, of the CPU, and of what is not there."""
    library, which = nvml(), device.removeprefix(_CUDA)
    if library is None or which == device or which.isdecimal():
        return None
    return _ask(library.nvmlDeviceGetHandleByUUID, which)


def _ask(call: Callable[..., Any], *arguments: Any) -> Any:
    """What NVML answers; None when it cannot."""
    try:
        return call(*arguments)
    except nvml().NVMLError:
        return None
