"""ONNX Runtime on CUDA: one session on the card's compute stream, and a binding for every batch size.

A run reads and writes at fixed addresses, begins its kernels and comes back, so that batches overlap and a run can be
recorded. Recording is ours (`gpuworker.gpu.backend`), not the library's: its own graphs are tied to the thread and the
run options that made them, and are launched through the whole of a run's bookkeeping.

cuBLAS and cuDNN handles belong to the thread that runs first: all calls come from one.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from onnx import external_data_helper

from gateway.errors import InvalidModel
from gpuworker import faults, log, sessions
from gpuworker.gpu.backend import CardBackend
from gpuworker.gpu.diagnosis import PROVIDER, card_problem, cuda_provider_problem, preload
from gpuworker.gpu.precision import to_float16
from gpuworker.graph import Prepared, prepare, serialize
from gpuworker.wording import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gateway.models.spec import Contract
    from gpuworker.backend import Report, Setup
    from gpuworker.gpu.card import Card
    from shm.layout import Field

_SHAPE_OPERATORS = """
Abs Add And Cast CastLike Ceil Clip Concat Constant ConstantOfShape Div Equal Expand Flatten Floor Gather GatherND
Greater GreaterOrEqual Identity Less LessOrEqual Max Min Mod Mul Neg Not Or Range ReduceMax ReduceMin ReduceProd
ReduceSum Reshape Round ScatterND Shape Sign Size Slice Split Squeeze Sub Tile Transpose Unsqueeze Where
"""
SHAPE_OPERATORS = frozenset(_SHAPE_OPERATORS.split())
"""CUDA has all of these. ONNX Runtime keeps one on the CPU only where it computes shapes, which are needed there."""

_NAMED_MAX = 5
"""Nodes of an operator, and operators, in a refusal."""


class OnnxRuntimeCudaBackend(CardBackend):
    """`backend = "onnxruntime"` on a GPU."""

    def __init__(self, contract: Contract, directory: Path, setup: Setup) -> None:
        super().__init__(contract, OnnxRuntimeRunner(contract, directory, setup))


class OnnxRuntimeRunner:
    """One session; `CardBackend` has the buffers."""

    provider = PROVIDER

    def __init__(self, contract: Contract, directory: Path, setup: Setup) -> None:
        self._contract = contract
        self._directory = directory
        self._thread_count = setup.thread_count
        self._memory_size_max = setup.grant.memory_size_max
        self._session: Any = None
        self._graph: Prepared | None = None
        self._fields: tuple[Field, ...] = ()
        self._runs: dict[int, Callable[[], None]] = {}
        # Without it every run ends with a wait for the stream, which nothing that is recorded may do.
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def open(self, card: Card, report: Report) -> tuple[Field, ...]:
        """Open the session, refuse what would not run on the card, and run the largest size that fits.

        Raises InvalidModel, MemoryError, DeviceLost.
        """
        report("session", 0.0)
        self._require_provider()
        graph = self._graph = self._prepared()
        options = sessions.make_options(self._thread_count, self._directory if graph.external else None)
        # With it a size that is run again takes one block for all of its tensors, beside what its first run took.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self._session = self._opened(graph.content, options, card)
        left = on_the_cpu(self._session.get_provider_graph_assignment_info())
        if left and not self._contract.gpu.cpu_nodes:
            raise InvalidModel(
                f"CUDA has no kernels for these operators of the graph: {left}; the CPU would run them and the rest"
                " wait for it: export the graph without them, or allow it with gpu.cpu_nodes = true"
            )
        if left:
            log.event("cpu_nodes", level="warning", operators=left)
        self._fields = sessions.fields_of(self._probe_largest())
        return self._fields

    def _probe_largest(self) -> dict[str, NDArray[Any]]:
        """Run the largest size that fits; whoever warms the others up finds out for itself. Raises as `_probe`."""
        # The largest first: what the arena takes for it serves every smaller size, the other way round nothing fits.
        *larger, smallest = reversed(self._contract.batching.sizes)
        for size in larger:
            with contextlib.suppress(MemoryError):
                return self._probe(size)
        return self._probe(smallest)

    def bind(self, size: int, source: int, targets: Mapping[str, int]) -> None:
        """Settle the addresses of a size and run it once. Raises InvalidModel, MemoryError, DeviceLost."""
        assert self._graph is not None
        binding = self._session.io_binding()
        shape = (size, *self._contract.input.shape)
        binding.bind_input(self._graph.input, "cuda", 0, np.uint8, shape, source)
        for field in self._fields:
            dtype, place = np.dtype(field.dtype), targets[field.name]
            binding.bind_output(field.name, "cuda", 0, dtype, (size, *field.shape), place)
        self._runs[size] = sessions.settled(self._session, binding, self._options)
        try:
            self.enqueue(size)
        except Exception as error:
            if faults.named(error) is not error or isinstance(error, MemoryError):
                raise
            sessions.compare(self._fields, self._probe(size), self._contract)
            raise InvalidModel(f"ONNX Runtime fails on a batch of {size} with buffers of its own size") from error

    def enqueue(self, size: int) -> None:
        """Begin a bound size. Raises MemoryError, DeviceLost, and whatever the library does."""
        try:
            self._runs[size]()
        except Exception as error:
            meaning = faults.named(error)
            if meaning is error:
                raise
            raise meaning from error

    def close(self) -> None:
        """Drop the session, behind the bindings that point into it."""
        self._runs.clear()
        self._session = None

    def _require_provider(self) -> None:
        """Raise InvalidModel where this ONNX Runtime has no CUDA in it, or cannot say what it put on the CPU."""
        if PROVIDER not in onnxruntime.get_available_providers():
            raise InvalidModel(f"ONNX Runtime has no CUDA here: {_advice()}")
        if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
            raise InvalidModel(
                f"onnxruntime-gpu {onnxruntime.__version__} is too old for this worker; install penstock[gpu]"
            )
        preload(onnxruntime)

    def _opened(self, content: bytes, options: Any, card: Card) -> Any:
        """The session. Raises InvalidModel, MemoryError, DeviceLost."""
        try:
            return sessions.open_session(content, options, PROVIDER, self._settings(card), _advice)
        except InvalidModel as refusal:
            # Its CUDA is another one than ours, so that a driver can be too old for it alone.
            codes = faults.cuda_codes(refusal.__cause__) if refusal.__cause__ is not None else set()
            problems = [problem for problem in map(card_problem, sorted(codes)) if problem is not None]
            if not problems:
                raise
            raise InvalidModel(
                f"ONNX Runtime {onnxruntime.__version__}, built for CUDA {getattr(onnxruntime, 'cuda_version', '?')},"
                f" cannot use the GPU: {problems[0]}; see `penstock doctor`"
            ) from refusal.__cause__

    def _prepared(self) -> Prepared:
        """The graph with its preprocessing, in the contract's precision. Raises InvalidModel."""
        graph = prepare(self._directory / "model.onnx", self._contract)
        if self._contract.gpu.precision != "float16":
            return graph
        model = onnx.load_model_from_string(graph.content)
        if graph.external:
            external_data_helper.load_external_data_for_model(model, str(self._directory.resolve()))
        return graph._replace(content=serialize(to_float16(model)), external=False)

    def _settings(self, card: Card) -> dict[str, str]:
        """Options of the provider, by its own names. Source: ONNX Runtime's documentation of the CUDA provider."""
        free = card.free_size()
        return {
            # One GPU is visible to a worker.
            "device_id": "0",
            "user_compute_stream": str(card.compute.address),
            # EXHAUSTIVE, the default, times every algorithm: 0.3 to 1.3 s for each shape.
            "cudnn_conv_algo_search": "HEURISTIC",
            # The default doubles what it takes each time.
            "arena_extend_strategy": "kSameAsRequested",
            "gpu_mem_limit": str(min(free, self._memory_size_max or free)),
            "use_tf32": "1" if self._contract.gpu.tf32 else "0",
            "enable_cuda_graph": "0",
        }

    def _probe(self, size: int) -> dict[str, NDArray[Any]]:
        """Run a size with the library's own buffers, and wait for it."""
        assert self._graph is not None
        pixels = np.zeros((size, *self._contract.input.shape), np.uint8)
        return sessions.probe(self._session, self._graph.outputs, self._graph.input, pixels)


def _advice() -> str:
    """What is missing for CUDA, and how to get it."""
    return f"{cuda_provider_problem() or 'its own words are in the log'}; see `penstock doctor`"


def on_the_cpu(assigned: Sequence[Any]) -> str:
    """What the CPU runs of a graph besides the arithmetic of its shapes: operators and nodes, for people; else empty.

    `assigned`: onnxruntime.OrtEpAssignedSubgraph, those of all providers.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for part in assigned:
        if part.ep_name != PROVIDER:
            for node in part.get_nodes():
                if node.domain not in {"", "ai.onnx"} or node.op_type not in SHAPE_OPERATORS:
                    found[node.op_type].append(node.name)
    operators = [f"{shown(kind)} ({_listed(names)})" for kind, names in sorted(found.items())]
    more = f" and {len(operators) - _NAMED_MAX} more" if len(operators) > _NAMED_MAX else ""
    return ", ".join(operators[:_NAMED_MAX]) + more


def _listed(names: Sequence[str]) -> str:
    """Names of nodes, as many as a message can bear; most exporters give them, some do not."""
    told = [f"'{shown(name)}'" for name in names if name][:_NAMED_MAX]
    rest = len(names) - len(told)
    if not told:
        return f"{rest} without a name" if rest > 1 else "without a name"
    return ", ".join(told) + (f" and {rest} more" if rest else "")
