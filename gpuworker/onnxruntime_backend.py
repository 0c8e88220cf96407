"""ONNX Runtime on the CPU.

Every warmed size has its binding: input rows, output arrays and their addresses are settled once, so that a run passes
nothing and copies nothing. Measured on a graph of one node: 2.4 µs a run so, 4.9 µs with `InferenceSession.run`.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnxruntime

from gateway.errors import InvalidModel
from gpuworker import faults
from gpuworker.backend import DeviceLost, Interrupted, Outputs
from gpuworker.graph import prepare
from gpuworker.wording import shown
from shm import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from gateway.models.spec import Contract
    from gpuworker.backend import Report, Setup

OUTPUTS_MAX = 64
_NAME_SIZE_MAX = 256
_SILENT = 4
"""Fatal only. Its errors come as exceptions too, and its own lines on stderr are no JSON."""


class _Bound(NamedTuple):
    """What one batch size reuses: the binding, the memory it points to, views of it, and the call that runs it."""

    binding: Any
    pinned: tuple[Any, ...]
    arrays: dict[str, NDArray[Any]]
    run: Callable[[], None]


class OnnxRuntimeBackend:
    """One session on one device."""

    ranked_class_count = 0

    provider = "CPUExecutionProvider"

    def __init__(self, contract: Contract, directory: Path, setup: Setup) -> None:
        self.fields: tuple[layout.Field, ...] = ()
        self._contract = contract
        self._directory = directory
        self._thread_count = setup.thread_count
        self._session: Any = None
        self._options = onnxruntime.RunOptions()
        self._input = ""
        self._names: tuple[str, ...] = ()
        self._bound: dict[int, _Bound] = {}
        batch_max = contract.batching.sizes[-1]
        self._pixels = np.zeros((batch_max, *contract.input.shape), np.uint8)
        self._rows = list(self._pixels.reshape(batch_max, -1))

    def load(self, report: Report) -> None:
        """Check and rewrite the graph, open the session, and learn what it gives. Raises InvalidModel."""
        report("session", 0.0)
        graph = prepare(self._directory / "model.onnx", self._contract)
        options = self._session_options(external=graph.external)
        with _translated("does not take this graph; check that it is valid and that its opset is not too new"):
            self._session = onnxruntime.InferenceSession(graph.content, options, providers=[self.provider])
        in_use = self._session.get_providers()
        if self.provider not in in_use:
            raise InvalidModel(
                f"{self.provider} was asked for, ONNX Runtime uses {', '.join(in_use)}; install a build that has it"
            )
        self._input = graph.input
        self._names = graph.outputs
        size = self._contract.batching.sizes[0]
        arrays = self._probe(size)
        self.fields = tuple(layout.Field(name, array.dtype.name, array.shape[1:]) for name, array in arrays.items())

    def _session_options(self, *, external: bool) -> Any:
        """Session options: as many threads as were given, which sleep when there is nothing to do."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._thread_count
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _SILENT
        # Threads that spin burn the cores that decoders and the gateway need. EfficientNet-Lite0 on 2 threads, CPU an
        # image without and with: 9.2 and 10.1 ms on an idle machine, 9.6 and 18.5 ms (and twice the wall time) beside
        # other work. Alone and one image at a time, spinning is faster: 5.1 ms against 6.6.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        if external:
            folder = str(self._directory.resolve())
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        return options

    def warmup(self, size: int) -> None:
        """Run the size once and settle its buffers. Raises InvalidModel when its outputs are not one row an image."""
        arrays: dict[str, NDArray[Any]] = {}
        binding = self._session.io_binding()
        # On the CPU an OrtValue is a view: it points at the rows that staging() gives out.
        pixels = onnxruntime.OrtValue.ortvalue_from_numpy(self._pixels[:size])
        for field in self.fields:
            out = arrays[field.name] = np.empty((size, *field.shape), field.dtype)
            binding.bind_output(field.name, "cpu", 0, out.dtype, out.shape, out.ctypes.data)
        binding.bind_ortvalue_input(self._input, pixels)
        # Not InferenceSession's own method: that of 1.31 takes 35 µs more, to look at the options.
        call = self._session._sess.run_with_iobinding  # noqa: SLF001
        run = functools.partial(call, binding._iobinding, self._options)  # noqa: SLF001
        self._bound[size] = _Bound(binding, (pixels,), arrays, run)
        try:
            self.run(size, 0)
        except (DeviceLost, MemoryError):
            raise
        except Exception as error:
            self._explain(size)
            raise InvalidModel(f"ONNX Runtime fails on a batch of {size} with buffers of its own size") from error

    def staging(self, size: int) -> list[NDArray[np.uint8]]:
        """Rows for the next batch."""
        del size
        return self._rows

    def run(self, size: int, count: int) -> Outputs:
        """Run a warmed size. Raises Interrupted, MemoryError, DeviceLost, and whatever the library does."""
        bound = self._bound[size]
        self._options.terminate = False
        try:
            bound.run()
        except Exception as error:
            if self._options.terminate:
                raise Interrupted from error
            meaning = faults.named(error)
            if meaning is error:
                raise
            raise meaning from error
        return Outputs({name: array[:count] for name, array in bound.arrays.items()})

    def interrupt(self) -> None:
        """End the run in progress before its next node."""
        self._options.terminate = True

    def close(self) -> None:
        """Drop the session and every buffer it points to, the session first."""
        self._session = None
        self._bound.clear()

    def _explain(self, size: int) -> None:
        """After a run into settled buffers failed: raise InvalidModel if free buffers tell why."""
        for field, array in zip(self.fields, self._probe(size).values(), strict=True):
            if array.shape[1:] != field.shape:
                raise InvalidModel(
                    f"the graph's output '{shown(field.name)}' is {list(array.shape)} for a batch of {size}, where"
                    f" {[size, *field.shape]} follows from smaller ones; export it with fixed axes but for the first,"
                    f" or set batching.sizes = [{self._contract.batching.sizes[0]}]"
                )

    def _probe(self, size: int) -> dict[str, NDArray[Any]]:
        """Run once without settled buffers and check what comes out. Raises InvalidModel."""
        with _translated(f"fails on a batch of {size}; check the graph, or leave the size out of batching.sizes"):
            found = self._session.run(list(self._names), {self._input: self._pixels[:size]})
        if len(found) > OUTPUTS_MAX:
            raise InvalidModel(f"the graph has {len(found)} outputs, at most {OUTPUTS_MAX} are read; export fewer")
        arrays = dict(zip(self._names, found, strict=True))
        for name, array in arrays.items():
            said = f"the graph's output '{shown(name)}'"
            if len(name.encode()) > _NAME_SIZE_MAX:
                raise InvalidModel(f"{said} has a name of over {_NAME_SIZE_MAX} bytes; rename it")
            if not isinstance(array, np.ndarray) or array.dtype.name not in layout.DTYPE_SIZES:
                kind = array.dtype.name if isinstance(array, np.ndarray) else "no tensor"
                raise InvalidModel(f"{said} is {kind}, which cannot be passed on; export it as float32")
            if array.ndim == 0 or len(array) != size:
                raise InvalidModel(
                    f"{said} is {list(array.shape)} for a batch of {size}; its first axis has to be the batch"
                )
        return arrays


@contextlib.contextmanager
def _translated(sentence: str) -> Iterator[None]:
    """Turn whatever the library raises into a refusal in our words; its own are the cause, which the log gets.

    MemoryError and DeviceLost, by their meaning, are not the model's fault and pass.
    """
    try:
        yield
    except InvalidModel:
        raise
    except Exception as error:  # the library's exceptions share no base but this
        meaning = faults.named(error)
        if meaning is not error or isinstance(error, MemoryError):
            raise meaning from error
        raise InvalidModel(
            f"ONNX Runtime {onnxruntime.__version__} {sentence}; its own words are in the log"
        ) from error
