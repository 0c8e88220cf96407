"""Shared memory that the card may read by itself: whether CUDA registers a memfd's mapping, for how long, and what a
killed process leaves of it. The one module of the bench, beside `ways`, that calls CUDA past `gpuworker.gpu.card`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from cuda.bindings import runtime as cudart

from gpuworker.gpu.card import Card
from shm.segment import Segment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bench.gpu_lab.notes import Notes
    from bench.gpu_lab.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
MIB, GIB = 1 << 20, 1 << 30
VICTIM_SIZE = 4 * MIB
_LATE_WRITE_S = 0.5
"""How long a dead process' memory is watched for writes."""
_SOON_S = 30.0


def register(rows: NDArray[np.uint8], flags: int) -> str:
    """Register an array's memory. Returns CUDA's word for how that went; "cudaSuccess" if well."""
    (status,) = cudart.cudaHostRegister(rows.ctypes.data, rows.nbytes, flags)
    if status != cudart.cudaError_t.cudaSuccess:
        # Else a later call that has nothing to do with it reports it once more.
        cudart.cudaGetLastError()
    return str(cudart.cudaGetErrorName(status)[1].decode())


def unregister(rows: NDArray[np.uint8]) -> None:
    """Before it is unmapped: another mapping at that address could not be registered."""
    cudart.cudaHostUnregister(rows.ctypes.data)


@contextlib.contextmanager
def slots(size: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """A memfd of noise, mapped twice as the gateway and a worker have it: uint8[size] writable, and read-only."""
    with contextlib.ExitStack() as stack:
        whole = Segment.create("bench-registered", size)
        stack.callback(whole.close)
        writable = np.frombuffer(whole.map, np.uint8)
        chunk = np.random.default_rng(4).integers(0, 256, MIB, np.uint8)
        for first in range(0, size, MIB):
            writable[first : first + MIB] = chunk[: size - first]
        fd = whole.readonly_fd()
        readonly = Segment.attach(fd, size, writable=False)
        stack.callback(readonly.close)
        yield writable, np.frombuffer(readonly.map, np.uint8)


def measure(plan: Plan, notes: Notes) -> None:
    """Registration of a mapping for writing and one for reading: the return code, and ms for a GiB."""
    size = plan.scale.register_mib * MIB
    with slots(size) as (writable, readonly):
        for name, rows, flags in (
            ("writable", writable, cudart.cudaHostRegisterDefault),
            ("readonly_plain", readonly, cudart.cudaHostRegisterDefault),
            ("readonly_flagged", readonly, cudart.cudaHostRegisterReadOnly),
        ):
            begin = time.perf_counter()
            word = register(rows, flags)
            ms = (time.perf_counter() - begin) * 1e3 * GIB / size
            well = word == "cudaSuccess"
            notes.row("registering a memfd's mapping", mapping=name, answer=word, ms_per_gib=ms if well else "")
            if well:
                notes.figure(f"register_{name}", ms, "ms/GiB")
                unregister(rows)


def measure_kill(notes: Notes) -> None:
    """SIGKILL of a process into whose registered memory the card writes."""
    with contextlib.ExitStack() as stack:
        whole = Segment.create("bench-victim", VICTIM_SIZE)
        stack.callback(whole.close)
        rows = np.frombuffer(whole.map, np.uint8)
        victim = _start_victim(whole.fd)
        stack.callback(victim.kill)
        _wait_word(victim)
        before = rows.copy()
        end = time.monotonic() + _SOON_S
        while (rows == before).all():
            if time.monotonic() > end:
                raise TimeoutError("the card's writes are not seen in another process")
        begin = time.monotonic()
        victim.kill()
        victim.wait()
        reaped_s = time.monotonic() - begin
        after = rows.copy()
        end = time.monotonic() + _LATE_WRITE_S
        late = 0
        while time.monotonic() < end:
            late = max(late, int((rows != after).sum()))
        rows[:] = 7
        valid = bool((rows == 7).all())
        begin = time.monotonic()
        successor = _start_victim(whole.fd)
        stack.callback(successor.kill)
        word = _wait_word(successor)
        again_s = time.monotonic() - begin
        successor.kill()
        successor.wait()
    notes.figure("killed_reaped", reaped_s * 1e3, "ms")
    notes.figure("killed_late_bytes", late, "bytes")
    notes.figure("killed_registered_again", again_s, "s")
    notes.result(
        "SIGKILL while the card writes into registered slots",
        f"{late} bytes came after the reaping",
        f"reaped in {reaped_s * 1e3:.0f} ms; mapping {'valid' if valid else 'BROKEN'}; a new process: {word},"
        f" {again_s:.1f} s from its start",
    )
    if late or not valid or word != "cudaSuccess":
        notes.problem("SIGKILL with registered slots", f"{late} late bytes, mapping valid: {valid}, then {word}")


def _start_victim(fd: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.gpu_lab.registered", str(fd), str(VICTIM_SIZE)],
        pass_fds=(fd,),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def _wait_word(victim: subprocess.Popen[str]) -> str:
    assert victim.stdout is not None
    word = victim.stdout.readline().strip()
    if not word:
        raise RuntimeError(f"the process that registers ended with {victim.wait(10)}")
    return word


def be_victim(fd: int, size: int) -> None:
    """Register the segment and have the card write into it, again and again, until killed."""
    from gpuworker.gpu.card import Memory  # noqa: PLC0415 - of the victim only

    card = Card.open()
    rows = np.frombuffer(Segment.attach(fd, size, writable=True).map, np.uint8)
    word = register(rows, cudart.cudaHostRegisterDefault)
    print(word, flush=True)
    if word != "cudaSuccess":
        return
    pinned = Memory.pinned(size)
    patterns = []
    for value in (0x55, 0xAA):
        pinned.array()[:] = value
        patterns.append(Memory.on_device(size))
        card.copy.copy_in(patterns[-1].address, pinned.address, size)
        card.copy.wait()
    parent = os.getppid()
    while os.getppid() == parent:
        for pattern in patterns:
            card.copy.copy_out(rows.ctypes.data, pattern.address, size)
        card.copy.wait()


if __name__ == "__main__":
    be_victim(int(sys.argv[1]), int(sys.argv[2]))
