"""What differs between TensorRT 8.5 and 11, each with its source. Everything else of it is one code for all of them.

No state, and no import of the library: each function is given the module, so that tests can have every version.

===============  ===========================  =================================  =======================
                 8.5, 8.6                     10                                 11
===============  ===========================  =================================  =======================
types            by flags (FP16, INT8)        by the graph, or by flags (BF16)   by the graph
scratch memory   `..._without_device_memory`  USER_MANAGED, set_device_memory    the same
progress         elapsed time only            IProgressMonitor                   the same
===============  ===========================  =================================  =======================

Source: the Python bindings 8.6.1, 10.13 and 11.4 themselves; where the documentation is meant it is named.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.errors import InvalidModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.models.spec import Gpu

VERSION_MIN = (8, 5)
"""The first with tensors by name (execute_async_v3) and uint8 inputs. Source: release notes of 8.5."""

BFLOAT16_CAPABILITY_MIN = (8, 0)
"""Compute capability. Source: TensorRT's support matrix."""

_BATCH_AXIS_ALWAYS = 10
_STRONG_ALWAYS = 11

_STEP = 0.01
"""Share that progress has to grow by to be told."""

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""DataType's names → NumPy's. Not `tensorrt.nptype`: that of 8.x asks NumPy for a name which it no longer has."""


class Typing(msgspec.Struct, frozen=True):
    """How a network's types come about. `strong`: as the graph says; else `flags` are what layers may use besides."""

    strong: bool
    flags: tuple[str, ...] = ()


def numbers(trt: Any) -> tuple[int, int]:
    """Major and minor version."""
    major, minor = str(trt.__version__).split(".")[:2]
    return int(major), int(minor)


def check_version(trt: Any) -> None:
    """Raise InvalidModel for a library that is too old."""
    if numbers(trt) < VERSION_MIN:
        wanted = ".".join(map(str, VERSION_MIN))
        raise InvalidModel(f"TensorRT {trt.__version__} is installed, {wanted} is the oldest that is used; upgrade it")


def choose_typing(trt: Any, gpu: Gpu, types: frozenset[str], capability: tuple[int, int]) -> Typing:
    """How to get the contract's precision. `types`: those of "float16", "bfloat16", "quantised" that the graph holds.

    Raises InvalidModel: this version, or this GPU, cannot.
    """
    precision, version = gpu.precision, trt.__version__
    flags = set(trt.BuilderFlag.__members__)
    strong = "STRONGLY_TYPED" in trt.NetworkDefinitionCreationFlag.__members__
    if precision == "bfloat16":
        if capability < BFLOAT16_CAPABILITY_MIN:
            shown = ".".join(map(str, capability))
            raise InvalidModel(
                f"this GPU, of compute capability {shown}, has no bfloat16; set gpu.precision = 'float16'"
            )
        if strong and "bfloat16" in types:
            return Typing(strong=True)
        if "BF16" not in flags:
            if strong:
                raise InvalidModel(
                    f"TensorRT {version} takes types from the graph, and this one holds no bfloat16; export it in"
                    " bfloat16, or set gpu.precision = 'float16'"
                )
            raise InvalidModel(f"TensorRT {version} has no bfloat16; set gpu.precision = 'float16', or use TensorRT 10")
        return Typing(strong=False, flags=("BF16", "FP16") if "float16" in types else ("BF16",))
    if strong:
        return Typing(strong=True)
    wanted = []
    if precision == "float16" or "float16" in types:
        wanted.append("FP16")
    if precision == "int8":
        wanted.append("INT8")
    return Typing(strong=False, flags=tuple(wanted))


def make_network(trt: Any, builder: Any, typing: Typing) -> Any:
    """An empty INetworkDefinition with a batch axis of its own."""
    creation, major = trt.NetworkDefinitionCreationFlag, numbers(trt)[0]
    if major < _BATCH_AXIS_ALWAYS:
        return builder.create_network(1 << int(creation.EXPLICIT_BATCH))
    if typing.strong and major < _STRONG_ALWAYS:
        return builder.create_network(1 << int(creation.STRONGLY_TYPED))
    return builder.create_network(0)


def set_flags(trt: Any, config: Any, typing: Typing, *, tf32: bool, optimization_level: int) -> None:
    """Put precision and effort into an IBuilderConfig."""
    flags = trt.BuilderFlag
    for name in typing.flags:
        config.set_flag(getattr(flags, name))
    # On by default.
    if tf32:
        config.set_flag(flags.TF32)
    else:
        config.clear_flag(flags.TF32)
    if hasattr(config, "builder_optimization_level"):  # since 8.6
        config.builder_optimization_level = optimization_level


def scratch_size(engine: Any) -> int:
    """Bytes of device memory that one run of any of its profiles needs besides weights, inputs and outputs."""
    # The first, since 10.1, counts in 64 bits; 11 has dropped the other one.
    return int(engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size)


def make_context(trt: Any, engine: Any, scratch: int, size: int) -> Any:
    """An IExecutionContext on `size` bytes of scratch memory at `scratch`, which others may share that never run at
    the same time; None when the library refuses.
    """
    if hasattr(trt, "ExecutionContextAllocationStrategy"):  # since 10
        context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    else:
        context = engine.create_execution_context_without_device_memory()
    if context is not None:
        if hasattr(context, "set_device_memory"):  # since 10.1
            context.set_device_memory(scratch, size)
        else:
            context.device_memory = scratch
    return context


def allow_host_code(runtime: Any) -> None:
    """Let a Runtime take engines that bring code for the CPU, as version-compatible ones do. Since 8.6."""
    if hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True


class Progress:
    """Adds up TensorRT's nested phases to one share, 0 to 1, that never falls. Called from several threads.

    `tell` gets the share whenever it grew by a hundredth.
    """

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[str | None, int, int]] = {}
        """By name: the phase around it, its steps, and how many of them are done."""
        self._told = 0.0

    def start(self, phase: str, parent: str | None, step_count: int) -> None:
        """A phase begins."""
        with self._lock:
            self._phases[phase] = (parent, max(1, step_count), 0)

    def step(self, phase: str, step: int) -> None:
        """Step number `step` of a phase, counted from 0, is done."""
        with self._lock:
            if phase in self._phases:
                parent, step_count, _ = self._phases[phase]
                self._phases[phase] = (parent, step_count, min(step + 1, step_count))
                self._say()

    def finish(self, phase: str) -> None:
        """A phase is over, however far it came."""
        with self._lock:
            self._phases.pop(phase, None)

    def _say(self) -> None:
        outer = next((name for name, (parent, _, _) in self._phases.items() if parent not in self._phases), None)
        share = 0.0 if outer is None else self._share(outer)
        if share - self._told >= _STEP - 1e-9:
            self._told = share
            self._tell(share)

    def _share(self, name: str) -> float:
        _, step_count, done = self._phases[name]
        inner = [self._share(other) for other, (parent, _, _) in self._phases.items() if parent == name]
        return min(1.0, (done + max(inner, default=0.0)) / step_count)


def make_monitor(trt: Any, progress: Progress) -> Any:
    """An IProgressMonitor for an IBuilderConfig, to be kept until the build is over; None before 9.0."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            # By name, as pybind11 asks: super() would not make the C++ part.
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.step(phase_name, step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()
