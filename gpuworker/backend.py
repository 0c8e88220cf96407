"""What a worker asks of an engine, and which engines there are. Engines are imported only when a model names them.

One backend is one model on one device. Its life::

    load ──▶ warmup(size), once for every size ──▶ { fill staging(size), run(size, count) } … ──▶ close

The buffers are the backend's own, so that one on a GPU can make them pinned. What `run` returns is valid until the next
`run`. A backend whose device works by itself is `Overlapping`: it takes a second batch while the first is computed::

    { fill staging(size), start(size, count) } … ──▶ finish, once for each, in order; at most `depth` between them
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from gateway.errors import InvalidModel
from shm.heritage import DeviceGrant

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

    def load(self, report: Report) -> None:
        """Open the model; say how far it is where that takes long. Raises InvalidModel."""

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


class Overlapping(Backend, Protocol):
    """A backend that takes a batch while it computes another one.

    `start` is called by one thread, the one that loaded it; `finish` by another one.
    """

    depth: int
    """Batches that may be started and not yet finished; at least 2."""

    compute_ns: int
    """What the device computed on the batch that `finish` gave last, by its own clock; 0 where it cannot say."""

    def start(self, size: int, count: int) -> None:
        """Begin to run what `staging(size)` was filled with, behind what was started before; do not wait for it.

        Raises as `run` does; then nothing was started, and `finish` knows nothing of it.
        """

    def finish(self) -> Outputs:
        """Wait for the oldest batch that was started. Valid until `depth` more were started. Raises as `run` does."""


def overlapping(backend: Backend) -> Overlapping | None:
    """The backend, if it takes a batch while it computes another one."""
    return cast("Overlapping", backend) if getattr(backend, "depth", 1) > 1 else None


Report = Callable[[str, float], None]
"""(stage in one word, share of it that is done, 0 to 1)"""


class Setup(NamedTuple):
    """What a worker has to run models with."""

    device: Device
    thread_count: int
    """Threads that an engine may use on the CPU."""
    grant: DeviceGrant = DeviceGrant()


class Engine(Protocol):
    """How a backend is made; nothing is opened yet."""

    def __call__(self, contract: Contract, directory: Path, setup: Setup) -> Backend:
        """Make it."""


ENGINES = {
    ("onnxruntime", "cpu"): ("gpuworker.onnxruntime_backend", "OnnxRuntimeBackend"),
    ("onnxruntime", "cuda"): ("gpuworker.gpu.onnxruntime_cuda", "OnnxRuntimeCudaBackend"),
    ("tensorrt", "cuda"): ("gpuworker.gpu.tensorrt_backend", "TensorRtBackend"),
    ("fake", "cpu"): ("gpuworker.fake_backend", "FakeBackend"),
    ("fake", "cuda"): ("gpuworker.fake_backend", "FakeBackend"),
}
"""`backend` of model.toml and the kind of device → module and class."""


def open_backend(contract: Contract, directory: Path, setup: Setup) -> Backend:
    """Make the backend that the contract names. Raises InvalidModel when it is not for this device or not installed."""
    return import_engine(contract, setup.device)(contract, directory, setup)


def import_engine(contract: Contract, device: Device) -> Engine:
    """Import what the contract names; only the first time takes time and memory. Raises InvalidModel."""
    found = ENGINES.get((contract.backend, device.kind))
    if found is None:
        kinds = " and ".join(kind for backend, kind in ENGINES if backend == contract.backend)
        raise InvalidModel(
            f"backend = '{contract.backend}' runs on {kinds}, and the worker is for {device}; start the server with"
            " --device cuda:0, or set residency.devices"
        )
    module, name = found
    try:
        engine: Engine = getattr(importlib.import_module(module), name)
    except ImportError as error:
        extra = "cpu" if device.kind == "cpu" else "gpu"
        missing = error.name or "a library"
        raise InvalidModel(
            f"backend = '{contract.backend}' needs {missing}, which does not import here; install penstock[{extra}],"
            " and see `penstock doctor`"
        ) from error
    return engine
