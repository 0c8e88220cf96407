"""Which GPU a device of the settings is, and what a worker on it is given. Pure: the checkup's GPUs in, choices out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway import gpus
from gateway.doctor.causes import Cause
from gateway.errors import InvalidSettings

if TYPE_CHECKING:
    from shm.checkup import Checkup, Gpu


class Choice(NamedTuple):
    """A device by the name that people use."""

    name: str
    given: str
    """By the name that its worker gets; empty: there is none such."""
    gpu: Gpu | None = None
    """The whole one, also of a slice; None: the CPU, or NVML is not there to show it."""
    cause: Cause | None = None
    """Why there is none."""


def everything(found: Checkup) -> list[str]:
    """A name for each place that a worker could have: the CPU, GPUs, and the slices of those that are cut."""
    names = ["cpu"]
    for index, gpu in enumerate(_visible(found)):
        names += [f"cuda:{index}"] if gpu.slices is None else [f"cuda:{uuid}" for uuid in gpu.slices]
    return names


def choose(name: str, found: Checkup) -> Choice:
    """What `name`, which DEVICE_PATTERN fits, is here."""
    if name == "cpu" or not found.gpus:
        return Choice(name, name)
    try:
        given = gpus.find(name, _visible(found), found.driver.visible)
    except InvalidSettings as error:
        return Choice(name, "", cause=Cause.of_sentence(str(error)))
    uuid = given.partition(":")[2]
    return Choice(name, given, next(gpu for gpu in found.gpus if uuid in {gpu.uuid, *_slices(gpu)}))


def _visible(found: Checkup) -> list[gpus.Gpu]:
    listed = [gpus.Gpu(gpu.uuid, gpu.name, tuple(_slices(gpu)) if gpu.mig else None) for gpu in found.gpus]
    return gpus.visible(listed, found.driver.visible)


def _slices(gpu: Gpu) -> list[str]:
    return [part.uuid for part in gpu.slices]
