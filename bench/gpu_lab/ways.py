"""The ways of a batch's bytes from slots to the card, each with its CPU and its wall time, and its bytes compared."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import numpy as np
from cuda.bindings import runtime as cudart

from bench.gpu_lab import registered
from gpuworker.gpu.card import Card, Event, Memory, check
from shm import layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from bench.gpu_lab.notes import Notes
    from bench.gpu_lab.plan import Plan

_REPEATS_MIN = 5
_STAGED, _DIRECT, _BATCHED, _PAGEABLE, _COPY_ONLY = "gathered", "direct", "batched", "pageable", "copy_only"


class _Bench:
    """One batch: `count` scattered slots, staging both pinned and not, and their place on the card."""

    def __init__(self, pixels: NDArray[np.uint8], row_size: int, count: int) -> None:
        self.card = Card.open()
        self.count, self.row_size, self.size = count, row_size, count * row_size
        stride = layout.stride(row_size)
        places = np.random.default_rng(6).permutation(len(pixels) // stride)[:count]
        self.rows = [pixels[place * stride : place * stride + row_size] for place in places]
        self.pinned = Memory.pinned(self.size)
        self.staging = list(self.pinned.array().reshape(count, row_size))
        self.pageable = np.zeros((count, row_size), np.uint8)
        self.device = Memory.on_device(self.size)
        self.back = Memory.pinned(self.size)
        self.done = Event()
        self.targets = [self.device.address + place * row_size for place in range(count)]
        self.sources = [row.ctypes.data for row in self.rows]
        self.attributes = cudart.cudaMemcpyAttributes()
        self.attributes.srcAccessOrder = cudart.cudaMemcpySrcAccessOrder.cudaMemcpySrcAccessOrderStream

    def wait(self) -> None:
        self.card.copy.record(self.done)
        self.done.wait()

    def gathered(self) -> None:
        """Into the worker's own pinned rows, then one copy."""
        for target, row in zip(self.staging, self.rows, strict=True):
            target[:] = row
        self.copy_only()

    def copy_only(self) -> None:
        """What of that the copy is."""
        self.card.copy.copy_in(self.device.address, self.pinned.address, self.size)
        self.wait()

    def direct(self) -> None:
        """A copy for each image, from registered slots."""
        for target, source in zip(self.targets, self.sources, strict=True):
            self.card.copy.copy_in(target, source, self.row_size)
        self.wait()

    def batched(self) -> None:
        """One call for all of them."""
        sizes = [self.row_size] * self.count
        stream = self.card.copy.handle
        check(
            cudart.cudaMemcpyBatchAsync(
                self.targets, self.sources, sizes, self.count, [self.attributes], [0], 1, stream
            )
        )
        self.wait()

    def pageable_copy(self) -> None:
        """As without CUDA's memory: gathered into ordinary memory, which the driver copies once more."""
        for target, row in zip(self.pageable, self.rows, strict=True):
            target[:] = row
        kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(cudart.cudaMemcpy(self.device.address, self.pageable.ctypes.data, self.size, kind))

    def verify(self) -> None:
        """Raises RuntimeError where the card has other bytes than the slots."""
        self.card.copy.copy_out(self.back.address, self.device.address, self.size)
        self.card.copy.wait()
        if not (self.back.array().reshape(self.count, self.row_size) == np.stack(self.rows)).all():
            raise RuntimeError("the card has other bytes than the slots")

    def close(self) -> None:
        for memory in (self.pinned, self.device, self.back):
            memory.close()


def measure(plan: Plan, notes: Notes) -> None:
    """Every way at every size. Direct ways need registered slots: read-only where that goes, as workers have them."""
    row_size = plan.scale.side**2 * 3
    largest = max(plan.scale.ways)
    with registered.slots(layout.stride(row_size) * 2 * largest) as (writable, readonly):
        pixels, word = readonly, registered.register(readonly, cudart.cudaHostRegisterReadOnly)
        if word != "cudaSuccess":
            notes.remark(f"direct copies: read-only slots cannot be registered ({word}); measured from writable ones")
            pixels, word = writable, registered.register(writable, cudart.cudaHostRegisterDefault)
        try:
            for count in plan.scale.ways:
                bench = _Bench(pixels, row_size, count)
                try:
                    _measure_count(bench, plan.scale.seconds / 4, notes, registered_well=word == "cudaSuccess")
                finally:
                    bench.close()
        finally:
            if word == "cudaSuccess":
                registered.unregister(pixels)


def _measure_count(bench: _Bench, seconds: float, notes: Notes, *, registered_well: bool) -> None:
    ways: dict[str, Callable[[], None]] = {_STAGED: bench.gathered, _COPY_ONLY: bench.copy_only}
    if registered_well:
        ways |= {_DIRECT: bench.direct, _BATCHED: bench.batched}
    ways[_PAGEABLE] = bench.pageable_copy
    found: dict[str, tuple[float, float]] = {}
    for name, way in ways.items():
        with notes.guarded(f"bytes of {bench.count} images, {name}"):
            cpu_us, wall_us = found[name] = _timed(way, seconds)
            bench.verify()
            notes.row(
                "bytes from slots to the card",
                images=bench.count,
                way=name,
                cpu_us=cpu_us,
                wall_us=wall_us,
                gb_per_s=bench.size / wall_us / 1e3,
            )
            notes.figure(f"bytes_{name}_{bench.count}_wall", wall_us, "us")
            notes.figure(f"bytes_{name}_{bench.count}_cpu", cpu_us, "us")
    rivals = {name: found[name] for name in (_STAGED, _DIRECT, _BATCHED) if name in found}
    if rivals:
        quickest, least = (min(rivals, key=lambda name: rivals[name][part]) for part in (1, 0))
        notes.result(
            f"bytes of {bench.count} images to the card",
            f"fastest: {quickest}; least CPU: {least}",
            ", ".join(f"{name} {wall:.0f} µs ({cpu:.0f} of CPU)" for name, (cpu, wall) in rivals.items()),
        )


def _timed(way: Callable[[], None], seconds: float) -> tuple[float, float]:
    """Median µs of CPU of this thread, and of wall time."""
    way()
    cpu, wall = [], []
    end = time.perf_counter() + seconds
    while len(wall) < _REPEATS_MIN or time.perf_counter() < end:
        cpu_begin, begin = time.thread_time_ns(), time.perf_counter_ns()
        way()
        wall.append((time.perf_counter_ns() - begin) / 1e3)
        cpu.append((time.thread_time_ns() - cpu_begin) / 1e3)
    return statistics.median(cpu), statistics.median(wall)
