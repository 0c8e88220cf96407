"""One built engine on the card: its tensors by name, and an execution context for every batch size.

All contexts share one block of scratch memory, for they run one after the other on one stream; left to themselves each
would take as much as the largest size needs. What a context was bound to never changes afterwards: recorded graphs
hold its addresses and shapes.

Source: TensorRT's documentation of IExecutionContext, "CUDA Graphs" in its developer guide.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.errors import InvalidModel
from gpuworker.gpu import tensorrt_versions as versions
from gpuworker.gpu.backend import check_field
from gpuworker.gpu.card import Memory
from gpuworker.gpu.tensorrt_library import WORDS, failure, register_plugins, trt
from gpuworker.wording import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gpuworker.gpu.card import Stream
    from shm.layout import Field


class UnreadableEngine(Exception):
    """TensorRT does not take these bytes: of another version, for another GPU, or damaged."""


class Tensor(NamedTuple):
    """An input or output. `dtype`: NumPy's name, or TensorRT's own where NumPy has none. `shape`: -1 is free."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def _within(least: Sequence[int], shape: Sequence[int], most: Sequence[int]) -> bool:
    return len(least) == len(shape) and all(
        low <= axis <= high for low, axis, high in zip(least, shape, most, strict=True)
    )


class Engine:
    """An engine in device memory. All calls come from one thread."""

    def __init__(self, plan: memoryview, stream: Stream, row: Sequence[int], *, host_code: bool = False) -> None:
        """Load it; the bytes are not needed afterwards. `row`: its input's axes but the first.

        `host_code`: whether it may bring code for the CPU.

        Raises UnreadableEngine, MemoryError, DeviceLost.
        """
        self._stream = stream
        self._row = tuple(row)
        self._contexts: dict[int, Any] = {}
        self._spare: dict[str, Memory] = {}
        self._scratch: Memory | None = None
        self._free_profiles: set[int] = set()
        register_plugins()
        WORDS.take()
        self._runtime = trt.Runtime(WORDS)
        if host_code:
            versions.allow_host_code(self._runtime)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            error = failure("does not take this engine")
            raise UnreadableEngine(str(error)) if isinstance(error, InvalidModel) else error
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            kind = self._engine.get_tensor_dtype(name).name
            shape = tuple(int(axis) for axis in self._engine.get_tensor_shape(name))
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            tensor = Tensor(name, versions.DTYPES.get(kind, kind.lower()), shape)
            (inputs if is_input else outputs).append(tensor)
        self.inputs: tuple[Tensor, ...] = tuple(inputs)
        self.outputs: tuple[Tensor, ...] = tuple(outputs)
        self._free_profiles.update(range(self._engine.num_optimization_profiles))

    @property
    def scratch_size(self) -> int:
        """Bytes of device memory that runs share."""
        return versions.scratch_size(self._engine)

    def check_layouts(self) -> None:
        """Raise InvalidModel unless every tensor lies plainly in device memory."""
        for tensor in (*self.inputs, *self.outputs):
            plain = self._engine.get_tensor_format(tensor.name) == trt.TensorFormat.LINEAR
            if not plain or self._engine.get_tensor_location(tensor.name) != trt.TensorLocation.DEVICE:
                raise InvalidModel(
                    f"the engine's '{shown(tensor.name)}' is not a plain tensor in device memory; build it with linear"
                    " inputs and outputs"
                )

    def find_profile(self, size: int) -> int | None:
        """The optimization profile for a batch of `size`, one that no other size has if there is such; or None."""
        shape = (size, *self._row)
        fitting = [index for index, (least, most) in enumerate(self._profiles()) if _within(least, shape, most)]
        return min(fitting, key=lambda index: (index not in self._free_profiles, index), default=None)

    def describe_profiles(self) -> str:
        """Which shapes of the input it takes, for people."""
        return ", ".join(
            str(list(least)) if least == most else f"{list(least)} to {list(most)}" for least, most in self._profiles()
        )

    def _profiles(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """The least and the largest shape of the input in each optimization profile."""
        source, found = self.inputs[0], []
        for index in range(self._engine.num_optimization_profiles):
            if -1 not in source.shape:
                # Nothing is free: there is one shape, and a profile need not name it.
                found.append((source.shape, source.shape))
                continue
            least, _, most = self._engine.get_tensor_profile_shape(source.name, index)
            found.append((tuple(int(axis) for axis in least), tuple(int(axis) for axis in most)))
        return found

    def prepare(self, size: int) -> None:
        """Make the context for a batch of `size` rows and settle its shapes. Raises InvalidModel, MemoryError."""
        source, shape = self.inputs[0], (size, *self._row)
        profile = self.find_profile(size)
        if profile is None:
            raise InvalidModel(
                f"the engine takes {self.describe_profiles()}, and batching.sizes has {size}; build it with a profile"
                " for each of batching.sizes, or leave the size out"
            )
        WORDS.take()
        if self._scratch is None:
            self._scratch = Memory.on_device(self.scratch_size)
        context = versions.make_context(trt, self._engine, self._scratch.address, self._scratch.size)
        if context is None:
            raise failure(f"has no context for a batch of {size}")
        if not context.set_optimization_profile_async(profile, self._stream.address):
            raise failure(
                f"cannot run a batch of {size}: its optimization profile {profile} serves another size already; build"
                " the engine with one profile for each of batching.sizes"
            )
        self._stream.wait()
        self._free_profiles.discard(profile)
        if not context.set_input_shape(source.name, shape):
            raise failure(f"does not take a batch of {size}")
        self._contexts[size] = context

    def fields(self, size: int, names: Sequence[str]) -> tuple[Field, ...]:
        """Outputs of a prepared size, without their batch axis. Raises InvalidModel."""
        context, by_name = self._contexts[size], {tensor.name: tensor for tensor in self.outputs}
        found = []
        for name in names:
            shape = tuple(int(axis) for axis in context.get_tensor_shape(name))
            if not shape or shape[0] != size:
                raise InvalidModel(
                    f"the model's output '{shown(name)}' is {list(shape)} for a batch of {size}; its first axis has"
                    " to be the batch"
                )
            found.append(check_field(name, by_name[name].dtype, shape[1:]))
        return tuple(found)

    def bind(self, size: int, source: int, targets: Mapping[str, int]) -> None:
        """Settle where a prepared size reads and writes; outputs without a target get memory of their own.

        Raises InvalidModel, MemoryError.
        """
        context = self._contexts[size]
        addresses = {self.inputs[0].name: source}
        for tensor in self.outputs:
            addresses[tensor.name] = targets.get(tensor.name) or self._spare_target(context, tensor.name)
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise failure(f"takes no address for '{shown(name)}'")
        # Also chooses shapes of everything inside, so that the first run does not have to.
        if missing := list(context.infer_shapes()):
            raise failure(f"lacks shapes or addresses of {', '.join(shown(name) for name in missing)}")

    def _spare_target(self, context: Any, name: str) -> int:
        """Memory for an output that nobody reads, large enough for this context."""
        axes = [int(axis) for axis in context.get_tensor_shape(name)]
        # 8: the widest element there is.
        size = math.prod(max(1, axis) for axis in axes) * 8
        spare = self._spare.get(f"{name} {size}")
        if spare is None:
            spare = self._spare[f"{name} {size}"] = Memory.on_device(size)
        return spare.address

    def enqueue(self, size: int) -> None:
        """Begin a bound size on the stream. Raises MemoryError, DeviceLost, RuntimeError."""
        if not self._contexts[size].execute_async_v3(self._stream.address):
            error = failure(f"cannot begin a batch of {size}")
            raise RuntimeError(str(error)) if isinstance(error, InvalidModel) else error

    def close(self) -> None:
        """Let go of it: contexts, engine, runtime, then the memory that they used."""
        self._contexts.clear()
        self._engine = self._runtime = None
        with contextlib.suppress(Exception):
            for memory in (*self._spare.values(), *([self._scratch] if self._scratch is not None else [])):
                memory.close()
        self._spare.clear()
        self._scratch = None
