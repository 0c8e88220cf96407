"""Which GPU a device of the settings is, and what a worker on it is given. Pure: the checkup's GPUs in, choices out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.doctor.causes import Cause

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shm.checkup import Checkup, Gpu


class Choice(NamedTuple):
    """A device by the name that people use."""

    name: str
    given: str
    """By the name that its worker gets; empty: there is none such."""
    gpu: Gpu | None = None
    """None: the CPU, or NVML is not there to show it."""
    cause: Cause | None = None
    """Why there is none."""


def visible(found: Checkup) -> list[tuple[str, Gpu]]:
    """(UUID, GPU) of what the operator's CUDA_VISIBLE_DEVICES leaves, GPUs and slices, in the order of the bus.

    An entry is a place on the bus or the beginning of a UUID; the first one that fits nothing ends the list, as in
    CUDA. Source: CUDA C++ Programming Guide, environment variables.
    """
    mask = found.driver.visible
    if mask is None:
        return [(gpu.uuid, gpu) for gpu in found.gpus]
    chosen = set()
    for entry in map(str.strip, mask.split(",")):
        uuid = _meant(entry, found)
        if uuid is None:
            break
        chosen.add(uuid)
    return [each for each in _with_slices(found) if each[0] in chosen]


def _with_slices(found: Checkup) -> Iterator[tuple[str, Gpu]]:
    for gpu in found.gpus:
        yield gpu.uuid, gpu
        for part in gpu.slices:
            yield part.uuid, gpu


def _meant(entry: str, found: Checkup) -> str | None:
    """The UUID that an entry of CUDA_VISIBLE_DEVICES means; None: none, or more than one."""
    if entry.isdecimal():
        fitting = [gpu.uuid for gpu in found.gpus[int(entry) : int(entry) + 1]]
    else:
        fitting = [uuid for uuid, _ in _with_slices(found) if entry and uuid.lower().startswith(entry.lower())]
    return fitting[0] if len(fitting) == 1 else None


def everything(found: Checkup) -> list[str]:
    """A name for each place that a worker could have: the CPU, GPUs, and the slices of those that are cut."""
    names = ["cpu"]
    for index, (uuid, gpu) in enumerate(visible(found)):
        if gpu.mig and uuid == gpu.uuid:
            names += [f"cuda:{part.uuid}" for part in gpu.slices]
        else:
            names.append(f"cuda:{index}")
    return names


def choose(name: str, found: Checkup) -> Choice:
    """What `name`, which DEVICE_PATTERN fits, is here."""
    which = name.partition(":")[2]
    if not which or not found.gpus:
        return Choice(name, name)
    seen = visible(found)
    if which.isdecimal():
        fitting = seen[int(which) : int(which) + 1]
    else:
        slices = [(part.uuid, gpu) for _, gpu in seen for part in gpu.slices]
        fitting = [each for each in seen + slices if each[0] == which]
    if not fitting:
        return Choice(name, "", cause=Cause(f"there is no {name} here", _one_of(everything(found))))
    uuid, gpu = fitting[0]
    if gpu.mig and uuid == gpu.uuid:
        cause = Cause(
            f"{gpu.name} is cut into MIG slices, and a worker has one of them",
            _one_of([f"cuda:{part.uuid}" for part in gpu.slices])
            or f"make one: sudo nvidia-smi mig -i {gpu.index} -cgi …, or sudo nvidia-smi -i {gpu.index} -mig 0",
        )
        return Choice(name, "", gpu, cause)
    return Choice(name, f"cuda:{uuid}", gpu)


def _one_of(names: Sequence[str]) -> str:
    return f"--device {' | '.join(names)}" if names else ""
