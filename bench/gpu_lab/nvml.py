"""What NVML says of the card: memory that is used, who uses it, and energy. Reads only; opens no context on it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
SETTLED_S = 0.5
"""Memory that has not changed for so long keeps still."""


class NoNvml(Exception):
    """NVML does not work here; the text says why."""


def visible() -> str:
    """The card that is measured, by index or UUID: the first that CUDA_VISIBLE_DEVICES leaves."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] or "0"


class Gpu:
    """The card that is measured."""

    def __init__(self) -> None:
        """Raises NoNvml."""
        try:
            import pynvml  # noqa: PLC0415 - it may be missing, which is to be said
        except ImportError as error:
            raise NoNvml(f"nvidia-ml-py does not import ({error})") from error
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            which = visible()
            self._handle = (
                pynvml.nvmlDeviceGetHandleByUUID(which)
                if which.startswith(("GPU-", "MIG-"))
                else pynvml.nvmlDeviceGetHandleByIndex(int(which))
            )
        except (pynvml.NVMLError, ValueError) as error:
            raise NoNvml(f"NVML does not work here ({error})") from error

    def used(self) -> int:
        """Bytes of device memory that anybody has."""
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def settled(self) -> int:
        """Bytes that are used, once they keep still: whoever died lately has given back what it had."""
        used, since = self.used(), time.monotonic()
        while time.monotonic() < since + SETTLED_S:
            time.sleep(0.005)
            now = self.used()
            if now != used:
                used, since = now, time.monotonic()
        return used

    def driver(self) -> str:
        """The driver's version."""
        found = self._nvml.nvmlSystemGetDriverVersion()
        return found.decode() if isinstance(found, bytes) else str(found)

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded; None where the card does not count them."""
        with contextlib.suppress(self._nvml.NVMLError, AttributeError):
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        return None

    def power_w(self) -> float:
        """Watts now, or over the last second, as the card has it."""
        return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1e3

    def wait_used(self, enough: Callable[[int], bool], limit_s: float) -> None:
        """Look every ms until `enough(used)`. Raises TimeoutError."""
        begin = time.monotonic()
        while not enough(used := self.used()):
            if time.monotonic() > begin + limit_s:
                raise TimeoutError(f"{used / MIB:,.0f} MiB are used after {limit_s:.0f} s")
            time.sleep(0.001)


class Watts:
    """Mean power while the block runs: by energy where the card counts it, else by samples. `mean`: watts, or None."""

    POLL_S = 0.02

    def __init__(self) -> None:
        self.mean: float | None = None
        self._gpu: Gpu | None = None
        with contextlib.suppress(NoNvml):
            self._gpu = Gpu()
        self._samples: list[float] = []
        self._done = threading.Event()

    def __enter__(self) -> Self:
        self._begin = time.monotonic()
        if self._gpu is not None:
            self._energy = self._gpu.energy_j()
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._gpu is None:
            return
        self._done.set()
        self._thread.join()
        energy, seconds = self._gpu.energy_j(), time.monotonic() - self._begin
        if energy is not None and self._energy is not None and energy > self._energy:
            self.mean = (energy - self._energy) / seconds
        elif self._samples:
            self.mean = sum(self._samples) / len(self._samples)

    def _sample(self) -> None:
        assert self._gpu is not None
        while not self._done.wait(self.POLL_S):
            with contextlib.suppress(Exception):  # a sample that is missed
                self._samples.append(self._gpu.power_w())
