"""The real worker process without a gateway: its segments, its socket, and batches as fast as it takes them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import msgspec
import numpy as np

from bench.gpu_lab.nvml import visible
from gateway.errors import InvalidModel
from gateway.memory import output_size
from gateway.models.repository import read_version
from shm import layout, views, wire
from shm.heritage import DeviceGrant, Grant, Heritage, ModelGrant
from shm.segment import Segment
from shm.wire import ItemStatus, Loaded, LoadFailed, Loading, ProfilePoint, Ran, Run, WorkerReady

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]
AHEAD = 3
"""Batches that are on their way at a time: one computes, one is copied, one waits in the socket."""
NEVER_LATE = 1 << 62
_FIRST = 1


class Rate(NamedTuple):
    """What came of running batches of one size."""

    images_per_s: float
    compute_share: float
    """Of the time, what the card computed by its own clock; 0 where it cannot say."""
    gather_us: float
    write_us: float
    """Of a batch."""


class Worker:
    """A worker with one model, started and waited for; ended by `close`, or killed by `kill`."""

    def __init__(
        self,
        directory: Path,
        *,
        slot_count: int,
        engines: Path | None = None,
        profile: Sequence[ProfilePoint] = (),
        limit_s: float = 300.0,
    ) -> None:
        """Start it and wait until it is ready. Raises InvalidModel: it refused the model."""
        contract = read_version(directory).contract
        self._stack = contextlib.ExitStack()
        pixels = layout.stride(int(np.prod(contract.input.shape)))
        self.input = Segment.create("bench-in", pixels * slot_count)
        self._stack.callback(self.input.close)
        output = Segment.create("bench-out", layout.stride(output_size(contract)) * slot_count)
        self._stack.callback(output.close)
        recorder = Segment.create("bench-recorder", layout.RECORDER_SIZE)
        self._stack.callback(recorder.close)
        readonly = self.input.readonly_fd()
        self._stack.callback(os.close, readonly)
        rows = views.pixel_rows(self.input.map, contract.input.shape, slot_count)
        rows[:] = np.random.default_rng(1).integers(0, 256, rows.shape[1:], np.uint8)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._stack.callback(self._control.close)
        heritage = Heritage(
            parent=os.getpid(),
            socket_fd=theirs.fileno(),
            recorder=Grant(recorder.fd, recorder.size, writable=True),
            models=[
                ModelGrant(
                    index=0,
                    name="bench",
                    version=1,
                    directory=str(directory),
                    contract=msgspec.json.encode(contract).decode(),
                    slot_count=slot_count,
                    input=Grant(readonly, self.input.size, writable=False),
                    output=Grant(output.fd, output.size, writable=True),
                    profile=tuple(profile),
                )
            ],
            device=f"cuda:{visible()}",
            device_grant=DeviceGrant(engine_dir="" if engines is None else str(engines)),
        )
        self.slot_count = slot_count
        self._batch = 0
        self.stages: dict[str, float] = {}
        """Seconds from the start until each stage of loading was first reported."""
        fd = heritage.bequeath()
        self._begin = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpuworker", str(fd)], pass_fds=(fd, *heritage.fds()), cwd=ROOT
        )
        os.close(fd)
        theirs.close()
        self._control.settimeout(limit_s)
        try:
            self.loaded = self._born()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _born(self) -> Loaded:
        loaded: Loaded | None = None
        while True:
            said = self._receive()
            if isinstance(said, Loading):
                self.stages.setdefault(said.stage, time.monotonic() - self._begin)
            elif isinstance(said, Loaded):
                loaded = said
            elif isinstance(said, LoadFailed):
                raise InvalidModel(said.detail)
            elif isinstance(said, WorkerReady):
                assert loaded is not None
                self.ready_s = time.monotonic() - self._begin
                self.device = said.device
                return loaded

    def _receive(self) -> wire.FromWorker:
        frame = self._control.recv(wire.FRAME_SIZE_MAX)
        if not frame:
            raise RuntimeError(f"the worker ended with {self.process.wait(10)}; its log is above")
        return wire.read_from_worker(frame)

    def send(self, size: int) -> None:
        """One more batch of `size`, from the slots that follow those of the batch before."""
        first = self._batch * size % self.slot_count
        slots = [(first + place) % self.slot_count for place in range(size)]
        self._batch += 1
        self._control.send(wire.encode(Run(self._batch + _FIRST, 0, size, slots, 1, NEVER_LATE)))

    def receive(self) -> Ran:
        """The next answer. Raises RuntimeError where not every image was answered."""
        ran = self._receive()
        assert isinstance(ran, Ran)
        if set(ran.statuses) != {ItemStatus.OK}:
            raise RuntimeError(f"a batch was answered {ran.statuses[0].name}: {ran.detail}")
        return ran

    def rate(self, size: int, seconds: float) -> Rate:
        """Run batches of `size` for that long, always some ahead."""
        for _ in range(AHEAD):
            self.send(size)
        for _ in range(AHEAD):  # the pipeline fills
            self.receive()
            self.send(size)
        rans: list[Ran] = []
        begin = now = time.perf_counter()
        while now < begin + seconds or len(rans) < AHEAD:
            rans.append(self.receive())
            now = time.perf_counter()
            self.send(size)
        for _ in range(AHEAD):
            self.receive()
        took = now - begin
        count = len(rans)
        return Rate(
            images_per_s=count * size / took,
            compute_share=sum(ran.compute_ns for ran in rans) / 1e9 / took,
            gather_us=sum(ran.gather_ns for ran in rans) / count / 1e3,
            write_us=sum(ran.write_ns for ran in rans) / count / 1e3,
        )

    def kill(self) -> float:
        """SIGKILL, and wait until it was reaped; how long that took, in seconds."""
        begin = time.monotonic()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        return time.monotonic() - begin

    def close(self) -> None:
        """End it as its gateway would, by closing the socket, and give everything back."""
        self._control.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._stack.close()
