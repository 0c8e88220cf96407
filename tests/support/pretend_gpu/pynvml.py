"""NVML over pretend GPUs: the real nvidia-ml-py, but for what would ask a driver.

PENSTOCK_PRETEND_HIDDEN  "1": processes are listed by the pids of another pid namespace, as in a container
"""

import functools
import importlib.util
import inspect
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

import pretend_gpus

HIDDEN = "PENSTOCK_PRETEND_HIDDEN"
HIDDEN_PID = 1 << 22
"""Added to pids that are hidden: more than Linux gives out."""
RESERVED_SIZE = 500 << 20
"""Bytes that the driver keeps of each GPU."""
IDLE_MW, BUSY_MW = 70_000, 250_000

REAL = "real_pynvml"


def _load():
    """The real library, which looks itself up by its name, under another one than ours."""
    if REAL not in sys.modules:
        here = os.fspath(Path(__file__).parent)
        found = PathFinder.find_spec("pynvml", [path for path in sys.path if path != here])
        spec = importlib.util.spec_from_file_location(REAL, found.origin)
        sys.modules[REAL] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[REAL])
    return sys.modules[REAL]


real = _load()
NVMLError = real.NVMLError


def __getattr__(name):
    return getattr(real, name)


def as_real(function):
    """Called with what the real one takes, or it is a TypeError; strings for handles are no handles."""
    signature = inspect.signature(getattr(real, function.__name__))

    @functools.wraps(getattr(real, function.__name__))
    def call(*arguments, **named):
        signature.bind(*arguments, **named)
        if not _state.on:
            raise NVMLError(real.NVML_ERROR_UNINITIALIZED)
        return function(*arguments, **named)

    return call


_state = SimpleNamespace(on=False)


class Handle:
    """What a c_nvmlDevice_t is to those who use it: nothing but a handle."""

    def __init__(self, uuid):
        self.uuid = uuid


def _refused(name):
    return NVMLError(getattr(real, f"NVML_ERROR_{name}"))


def nvmlInit():
    _state.on = True


def nvmlShutdown():
    _state.on = False


@as_real
def nvmlSystemGetDriverVersion():
    return "575.51"


@as_real
def nvmlDeviceGetCount():
    return pretend_gpus.count()


@as_real
def nvmlDeviceGetHandleByIndex(index):
    if not 0 <= index < pretend_gpus.count():
        raise _refused("INVALID_ARGUMENT")
    return Handle(pretend_gpus.uuid(index))


@as_real
def nvmlDeviceGetHandleByUUID(uuid):
    if uuid not in {*map(pretend_gpus.uuid, range(pretend_gpus.count())), *pretend_gpus.slices()}:
        raise _refused("NOT_FOUND")
    return Handle(uuid)


@as_real
def nvmlDeviceGetUUID(handle):
    return handle.uuid


@as_real
def nvmlDeviceGetName(handle):
    return pretend_gpus.NAME


@as_real
def nvmlDeviceGetPciInfo(handle):
    if handle.uuid in pretend_gpus.SLICES:
        raise _refused("INVALID_ARGUMENT")
    return SimpleNamespace(domain=0, bus=16 + int(handle.uuid.split("-")[1]), device=0)


@as_real
def nvmlDeviceGetMigMode(device):
    if not pretend_gpus.slices():
        raise _refused("NOT_SUPPORTED")
    return [real.NVML_DEVICE_MIG_ENABLE, real.NVML_DEVICE_MIG_ENABLE]


@as_real
def nvmlDeviceGetMaxMigDeviceCount(device):
    return 7


@as_real
def nvmlDeviceGetMigDeviceHandleByIndex(device, index):
    # The first place is empty, as after a slice was destroyed.
    if index - 1 not in range(len(pretend_gpus.slices())):
        raise _refused("NOT_FOUND")
    return Handle(pretend_gpus.slices()[index - 1])


@as_real
def nvmlDeviceGetMemoryInfo(handle, version=None):
    total = pretend_gpus.memory_size(handle.uuid)
    used = RESERVED_SIZE + sum(pretend_gpus.holdings(handle.uuid).values())
    return SimpleNamespace(total=total, used=used, free=total - used)


@as_real
def nvmlDeviceGetComputeRunningProcesses(handle):
    if pretend_gpus.slices() and handle.uuid not in pretend_gpus.SLICES:
        raise _refused("NO_PERMISSION")  # who is not root is told by slice
    hidden = os.environ.get(HIDDEN) == "1"
    return [
        SimpleNamespace(pid=pid + HIDDEN_PID if hidden else pid, usedGpuMemory=None if hidden else size)
        for pid, size in pretend_gpus.holdings(handle.uuid).items()
    ]


@as_real
def nvmlDeviceGetPowerUsage(handle):
    if handle.uuid in pretend_gpus.SLICES:
        raise _refused("NOT_SUPPORTED")
    return BUSY_MW if pretend_gpus.holdings(handle.uuid) else IDLE_MW
