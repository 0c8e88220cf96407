"""What a worker asks of an engine, and which engines there are. Engines are imported only when a model names them.

One backend is one model on one device. Its life::

    load ──▶ warmup(size), once for every size ──▶ { fill staging(size), run(size, count) } … ──▶ close

The buffers are the backend's own, so that one on a GPU can make them pinned, and can hand out another staging buffer
while the last is still being copied. What `run` returns is valid until the next `run`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from gateway.errors import InvalidModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from gateway.models.spec import Contract
    from gpuworker.device import Device
    from shm.layout import Field


class Interrupted(Exception):
    """A run was ended by `Backend.interrupt` before it was done."""


class DeviceLost(Exception):
    """Every call on this device fails in this process from now on, as after a sticky CUDA error; not in another one."""


class Outputs(NamedTuple):
    """What a batch gave: one row per image, in order; there may be more rows (padding) than images.

    `arrays`: name → dtype[rows, *shape]. `failed`: rows that have no answer.
    """

    arrays: Mapping[str, NDArray[Any]]
    failed: Sequence[int] = ()


class Backend(Protocol):
    """An engine with one model in it. Not thread-safe but for `interrupt`; everything else blocks."""

    @property
    def provider(self) -> str:
        """What runs it, by the engine's own name."""

    @property
    def fields(self) -> Sequence[Field]:
        """The tensors that `run` gives, without their batch axis. Known after `load`."""

    @property
    def ranked_class_count(self) -> int:
        """Classes that `run` ranks by itself (top-k on the device), giving "index" and "probability"; else 0."""

    def load(self) -> None:
        """Open the model. Raises InvalidModel."""

    def warmup(self, size: int) -> None:
        """Run `size` rows once and make what later runs of that size reuse. Raises InvalidModel."""

    def staging(self, size: int) -> Sequence[NDArray[np.uint8]]:
        """Rows to gather the next batch of `size` into: uint8[h * w * c] each, C-order, the contract's colours.

        They hold anything. The caller fills the first ones and calls `run` before it asks again.
        """

    def run(self, size: int, count: int) -> Outputs:
        """Run a warmed `size` of which the first `count` rows are images; the others' answers are never read.

        Raises:
            Interrupted: by `interrupt`; the next run is as good as any.
            MemoryError: it did not fit; a smaller size may.
            DeviceLost: so is everything that comes.
        """

    def interrupt(self) -> None:
        """From another thread: end the run in progress soon. Forgotten when the next run begins."""

    def close(self) -> None:
        """Let go of the model. Memory of a GPU comes back only when the process ends."""


class Engine(Protocol):
    """How a backend is made; nothing is opened yet."""

    def __call__(self, contract: Contract, directory: Path, device: Device, thread_count: int) -> Backend:
        """Make it."""


ENGINES = {
    "onnxruntime": ("gpuworker.onnxruntime_backend", "OnnxRuntimeBackend"),
    "fake": ("gpuworker.fake_backend", "FakeBackend"),
}
"""`backend` of model.toml → module and class."""


def open_backend(contract: Contract, directory: Path, device: Device, thread_count: int) -> Backend:
    """Make the backend that the contract names. Raises InvalidModel when it is not built in or not installed."""
    return import_engine(contract, device)(contract, directory, device, thread_count)


def import_engine(contract: Contract, device: Device) -> Engine:
    """Import what the contract names; only the first time takes time and memory. Raises InvalidModel."""
    found = ENGINES.get(contract.backend)
    if found is None:
        known = ", ".join(f"'{name}'" for name in ENGINES)
        raise InvalidModel(f"backend = '{contract.backend}' is not part of this version; it has {known}")
    module, name = found
    try:
        engine: Engine = getattr(importlib.import_module(module), name)
    except ImportError as error:
        extra = "cpu" if device.kind == "cpu" else "gpu"
        missing = error.name or "a library"
        raise InvalidModel(
            f"backend = '{contract.backend}' needs {missing}, which does not import here; install penstock[{extra}]"
        ) from error
    return engine
