"""CUDA, as this worker uses it: the one module that calls it. Streams, events, memory and graphs, through cuda-python.

Its state is the card: the device, and the two streams that all models of this process share. What one thread starts on
`compute` runs in that order, so that batches of several models do not slow each other down while being timed::

    copy     ── host to device (k+1) ─┐            ┌── host to device (k+2) …
    compute  ──── batch k ────────────┴─ batch k+1 ┴─ …

Addresses are integers; what lies there belongs to the `Memory` that gave them.

One device is visible, so every thread is on it without having chosen it, and on the same context as the engines are,
whatever CUDA runtime each of them brought along: a device has one primary context in a process. Source: CUDA's runtime
API, "Interactions with the CUDA Driver API".
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from cuda.bindings import runtime as cudart
from cuda.bindings.utils import get_cuda_native_handle

from gpuworker import faults

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_TO_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
_ON_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
_TO_HOST = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost


class CudaError(Exception):
    """A call that CUDA refused. `code`: cudaError_t."""

    def __init__(self, code: int, name: str, words: str) -> None:
        super().__init__(f"CUDA error {code} ({name}): {words}")
        self.code = code


class NotReplayable(Exception):
    """Recorded work that may run only once."""


def check(result: tuple[Any, ...]) -> Any:
    """What a call of cuda-python gave: its one value, several as a tuple, or None.

    Raises:
        MemoryError: the device has no memory for it.
        DeviceLost: the context is broken, and stays so.
        CudaError: anything else.
    """
    status, *values = result
    if status != cudart.cudaError_t.cudaSuccess:
        name, words = (cudart.cudaGetErrorName(status)[1], cudart.cudaGetErrorString(status)[1])
        # Taken back, or a later call that has nothing to do with it reports it once more.
        cudart.cudaGetLastError()
        error = CudaError(int(status), name.decode(), words.decode())
        meaning = faults.named(error)
        raise meaning from (None if meaning is error else error)
    return values[0] if len(values) == 1 else tuple(values) or None


class Event:
    """A mark in a stream. `timed`: for `elapsed_ns`."""

    def __init__(self, *, timed: bool = False) -> None:
        # Who waits sleeps instead of burning a core that decoders need.
        flags = cudart.cudaEventBlockingSync | (0 if timed else cudart.cudaEventDisableTiming)
        self.handle: Any = check(cudart.cudaEventCreateWithFlags(flags))

    def wait(self) -> None:
        """Sleep until the stream has come to the mark; other threads run. Raises what failed before it."""
        check(cudart.cudaEventSynchronize(self.handle))

    def elapsed_ns(self, since: Event) -> int:
        """Device time between two timed marks that were reached, to about 1 µs."""
        return int(check(cudart.cudaEventElapsedTime(since.handle, self.handle)) * 1e6)


class Stream:
    """Work that the device does in order."""

    def __init__(self) -> None:
        self.handle: Any = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))

    @property
    def address(self) -> int:
        """As other libraries take it: a cudaStream_t as an integer."""
        return int(get_cuda_native_handle(self.handle))

    def record(self, event: Event) -> None:
        """Put the mark behind everything that was begun."""
        check(cudart.cudaEventRecord(event.handle, self.handle))

    def follow(self, event: Event) -> None:
        """Begin nothing more before that mark of another stream is reached."""
        check(cudart.cudaStreamWaitEvent(self.handle, event.handle, 0))

    def copy_in(self, target: int, source: int, size: int) -> None:
        """Host to device; the source is pinned and keeps its bytes until it is done."""
        check(cudart.cudaMemcpyAsync(target, source, size, _TO_DEVICE, self.handle))

    def copy_on(self, target: int, source: int, size: int) -> None:
        """Device to device."""
        check(cudart.cudaMemcpyAsync(target, source, size, _ON_DEVICE, self.handle))

    def copy_out(self, target: int, source: int, size: int) -> None:
        """Device to host; the target is pinned."""
        check(cudart.cudaMemcpyAsync(target, source, size, _TO_HOST, self.handle))

    def wait(self) -> None:
        """Until all of it is done. Raises what failed."""
        check(cudart.cudaStreamSynchronize(self.handle))

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` begins on this stream, without running it.

        Raises what `work` does, NotReplayable, and CudaError.
        """
        self.wait()
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cudart.cudaStreamBeginCapture(self.handle, mode))
        try:
            work()
        except BaseException:
            # A capture has to be ended, however it went; that it is no good is known.
            status, graph = cudart.cudaStreamEndCapture(self.handle)
            if status == cudart.cudaError_t.cudaSuccess and graph is not None:
                cudart.cudaGraphDestroy(graph)
            cudart.cudaGetLastError()
            raise
        graph = check(cudart.cudaStreamEndCapture(self.handle))
        try:
            _check_nodes(graph)
            return Graph(check(cudart.cudaGraphInstantiate(graph, 0)))
        finally:
            cudart.cudaGraphDestroy(graph)


def _check_nodes(graph: Any) -> None:
    """Raise NotReplayable unless every run of a recorded graph is as good as the first.

    Two things are not. A call of the host: engines record one to free what that run used, and the second run frees it
    again, which ends the process (seen with ONNX Runtime: its pull request 32081). And a copy from memory that is not
    pinned: it is the engine's own, long used for something else when the graph runs.
    """
    kinds, places = cudart.cudaGraphNodeType, cudart.cudaMemoryType
    _, count = check(cudart.cudaGraphGetNodes(graph))
    nodes = check(cudart.cudaGraphGetNodes(graph, count))[0] if count else []
    for node in nodes:
        kind = check(cudart.cudaGraphNodeGetType(node))
        if kind == kinds.cudaGraphNodeTypeHost:
            raise NotReplayable("the engine calls the host in the middle of a run")
        if kind == kinds.cudaGraphNodeTypeMemcpy:
            source = check(cudart.cudaGraphMemcpyNodeGetParams(node)).srcPtr.ptr
            if check(cudart.cudaPointerGetAttributes(source)).type == places.cudaMemoryTypeUnregistered:
                raise NotReplayable("the engine copies from memory of the host that it only has during a run")


class Graph:
    """Recorded work, begun with one call instead of one for each kernel."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def launch(self, stream: Stream) -> None:
        """Begin it."""
        check(cudart.cudaGraphLaunch(self._handle, stream.handle))

    def close(self) -> None:
        """Forget it. It must not run."""
        check(cudart.cudaGraphExecDestroy(self._handle))


class Memory:
    """Bytes on the device, or pinned on the host, until `close`."""

    def __init__(self, address: int, size: int, free: Callable[[int], tuple[Any, ...]]) -> None:
        self.address = address
        self.size = size
        self._free = free

    @classmethod
    def on_device(cls, size: int) -> Self:
        """At least one byte, aligned to 256. Raises MemoryError."""
        return cls(int(check(cudart.cudaMalloc(max(1, size)))), size, cudart.cudaFree)

    @classmethod
    def pinned(cls, size: int) -> Self:
        """On the host, where the device reads and writes by itself. Raises MemoryError."""
        address = int(check(cudart.cudaHostAlloc(max(1, size), cudart.cudaHostAllocDefault)))
        return cls(address, size, cudart.cudaFreeHost)

    def array(self) -> NDArray[np.uint8]:
        """Pinned bytes as uint8[size]; only while this lives."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.address))

    def close(self) -> None:
        """Give it back."""
        if self.address:
            check(self._free(self.address))
            self.address = 0


class Properties(NamedTuple):
    """What card it is."""

    name: str
    memory_size: int
    """Bytes."""
    capability: tuple[int, int]
    """Compute capability, major and minor."""
    multiprocessor_count: int
    driver: int
    """Newest CUDA that the driver knows, as 1000 x major + 10 x minor."""
    runtime: int
    """CUDA of cuda-python, likewise."""

    @property
    def label(self) -> str:
        """For people, and the kind of device that profiles belong to."""
        return f"{self.name}, {round(self.memory_size / (1 << 30))} GiB"


class Card:
    """The one device that this process sees."""

    _opened: Card | None = None

    def __init__(self) -> None:
        check(cudart.cudaSetDevice(0))
        found = check(cudart.cudaGetDeviceProperties(0))
        self.properties = Properties(
            name=found.name.partition(b"\0")[0].decode(),
            memory_size=int(found.totalGlobalMem),
            capability=(int(found.major), int(found.minor)),
            multiprocessor_count=int(found.multiProcessorCount),
            driver=int(check(cudart.cudaDriverGetVersion())),
            runtime=int(check(cudart.cudaRuntimeGetVersion())),
        )
        self.copy = Stream()
        self.compute = Stream()

    @classmethod
    def open(cls) -> Card:
        """The card, opened once in a process. Raises CudaError: there is none, or its driver is too old."""
        if cls._opened is None:
            cls._opened = cls()
        return cls._opened

    @staticmethod
    def count() -> int:
        """Cards that this process sees; opens none. Raises CudaError: none, or no driver that is new enough."""
        return int(check(cudart.cudaGetDeviceCount()))

    @classmethod
    def properties_if_open(cls) -> Properties | None:
        """What card it is, if any model runs on it."""
        return None if cls._opened is None else cls._opened.properties

    @staticmethod
    def wait() -> None:
        """Until all is done that anybody in this process began on the device. Raises what failed."""
        check(cudart.cudaDeviceSynchronize())

    @staticmethod
    def free_size() -> int:
        """Bytes of device memory that nobody has."""
        return int(check(cudart.cudaMemGetInfo())[0])
