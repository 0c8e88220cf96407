"""The one list of everything a child inherits: socket, segments, device, limits, models. Nothing else crosses exec.

The list itself travels as JSON in a memfd whose number is the child's only argument.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
from pathlib import Path
from typing import Self

import msgspec

from shm.segment import Segment, map_for_views
from shm.wire import ProfilePoint

_PR_SET_PDEATHSIG = 1

_OOM_SCORE_ADJ = Path("/proc/self/oom_score_adj")
_OOM_SCORE_ADJ_MAX = 1000


class Grant(msgspec.Struct, frozen=True):
    """A segment that the child may map: its fd, size in bytes, and whether for writing."""

    fd: int
    size: int
    writable: bool

    def attach(self) -> Segment:
        """Map it, in the child."""
        return Segment.attach(self.fd, self.size, writable=self.writable)

    def map_for_views(self) -> memoryview:
        """Map it for writing, in a child that has to give it back before it ends; the fd is closed."""
        return map_for_views(self.fd, self.size)


class ModelGrant(msgspec.Struct, frozen=True, kw_only=True):
    """One model: its index on the wire, its contract (JSON of `gateway.models.spec.Contract`) and its slots."""

    index: int
    name: str
    version: int
    directory: str
    """Where the model's files are; empty for decoders, which cannot open files."""
    contract: str
    slot_count: int
    label_count: int = 0
    """Class names that the gateway has read; 0 without any."""
    input: Grant
    output: Grant | None
    """None for decoders."""
    profile: tuple[ProfilePoint, ...] = ()
    """What batches were measured to take on this device before, one point a size; else the worker measures them."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a decoder may use."""

    cpu_ns_max: int
    """CPU time of one image, ns; past it the kernel kills the decoder."""
    address_space_size_max: int
    """Bytes (RLIMIT_AS)."""
    nice: int
    """Added niceness: decoding yields to the gateway and the worker."""


class DeviceGrant(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker on a GPU may use besides its models."""

    memory_size_max: int = 0
    """Bytes of device memory; 0: as much as is free."""
    engine_dir: str = ""
    """Folder of built engines, made by the worker that needs it, ours alone; empty: none is kept."""
    engines_size_max: int = 0
    """Bytes of built engines that are kept there; 0: any."""
    foreign_engines: bool = False
    """Whether an engine that was built elsewhere may be run: it is native code."""


class Heritage(msgspec.Struct, frozen=True, kw_only=True):
    """All that a child owns at birth. `parent` is the pid whose death ends it."""

    parent: int
    socket_fd: int
    recorder: Grant
    models: list[ModelGrant]
    device: str = "cpu"
    thread_count: int = 1
    """Threads that the worker's engine may use."""
    device_grant: DeviceGrant = DeviceGrant()
    bodies: Grant | None = None
    limits: Limits | None = None

    def fds(self) -> tuple[int, ...]:
        """Every fd that must stay open across exec."""
        found = [self.socket_fd, self.recorder.fd]
        if self.bodies is not None:
            found.append(self.bodies.fd)
        for model in self.models:
            found.append(model.input.fd)
            if model.output is not None:
                found.append(model.output.fd)
        return tuple(found)

    def bequeath(self) -> int:
        """Write the list to a fresh memfd and return its fd; the caller closes it after the spawn."""
        fd = os.memfd_create("penstock-heritage", os.MFD_CLOEXEC)
        os.write(fd, msgspec.json.encode(self))
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    @classmethod
    def inherit(cls, fd: int) -> Self:
        """In the child: read the list from the fd given as its argument, and close that fd."""
        with os.fdopen(fd, "rb") as file:
            return msgspec.json.decode(file.read(), type=cls)

    def open_socket(self) -> socket.socket:
        """In the child: the control socket, blocking."""
        control = socket.socket(fileno=self.socket_fd)
        control.setblocking(True)
        return control

    def yield_to_parent(self) -> None:
        """In the child: be scheduled as batch work, which does not interrupt the gateway in the middle of its tick.

        Measured on 2 cores with a null model at 32 connections: 6 % less CPU a request. Source: sched(7), SCHED_BATCH.
        """
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

    def die_with_parent(self) -> None:
        """In the child, first thing: be killed when the gateway dies, also if it died before this call."""
        die_with(self.parent)


def die_with(parent: int) -> None:
    """In the child: be killed when the process `parent`, which started this one, dies, also if it died before.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        raise SystemExit("penstock: the gateway died while this child was starting")


def go_first(points: int) -> None:
    """In the child: be killed before the process that started this one when memory runs out; as far as the kernel lets.

    `points` are added to what was inherited (out of 1000). A child that dies of it is replaced, a gateway is not.
    Source: proc(5), oom_score_adj.
    """
    with contextlib.suppress(OSError, ValueError):
        inherited = int(_OOM_SCORE_ADJ.read_text(encoding="ascii"))
        _OOM_SCORE_ADJ.write_text(str(min(inherited + points, _OOM_SCORE_ADJ_MAX)), encoding="ascii")
