"""What a worker runs on: reads the device's name as the gateway writes it, and labels it for people."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Literal, NamedTuple

_SMAPS_ROLLUP = Path("/proc/self/smaps_rollup")
_PRIVATE = re.compile(r"^Private_\w+: *(\d+) kB$", re.MULTILINE)

_DEVICE = re.compile(r"cpu|cuda:(\d{1,3}|(?:GPU|MIG)-[0-9A-Za-z/-]+)")


class Device(NamedTuple):
    """A place to run models. `which`: of the GPUs, an index in the order of the bus, or a UUID; empty for the CPU."""

    kind: Literal["cpu", "cuda"]
    which: str = ""

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.which}"

    def hide_others(self) -> None:
        """Let this process see no other GPU. Before CUDA is loaded: a context costs memory and time for each in sight.

        Source: CUDA's environment variables.
        """
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ["CUDA_VISIBLE_DEVICES"] = self.which


def parse(text: str) -> Device:
    """Read "cpu", "cuda:N", "cuda:GPU-UUID" or "cuda:MIG-UUID". Raises ValueError."""
    found = _DEVICE.fullmatch(text)
    if found is None:
        raise ValueError(f"'{text}' is no device; there are cpu, cuda:N, cuda:GPU-UUID and cuda:MIG-UUID")
    return Device("cpu") if found[1] is None else Device("cuda", found[1])


def label(device: Device, thread_count: int) -> str:
    """Say what the device is, e.g. "AMD EPYC, 2 threads" or "NVIDIA H200, 141 GiB"; its name if nothing opened it."""
    if device.kind != "cpu":
        card = sys.modules.get("gpuworker.gpu.card")
        properties = card.Card.properties_if_open() if card is not None else None
        return str(device) if properties is None else str(properties.label)
    threads = f"{thread_count} thread{'' if thread_count == 1 else 's'}"
    return f"{_processor_name()}, {threads}"


def rss_size() -> int:
    """Bytes of memory that this process has resident now. Source: proc(5), statm."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory_size() -> int:
    """Bytes of memory that are this process's alone, which its death gives back; shared slots are not in it.

    Source: proc(5), smaps_rollup; kernels without it have statm, which counts the pages of libraries too.
    """
    try:
        rollup = _SMAPS_ROLLUP.read_text(encoding="ascii")
    except OSError:
        resident, shared = map(int, Path("/proc/self/statm").read_text(encoding="ascii").split()[1:3])
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    return sum(int(size) for size in _PRIVATE.findall(rollup)) * 1024


def _processor_name() -> str:
    """The processor's name as Linux knows it, or its architecture (not every one has a name)."""
    with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return os.uname().machine
