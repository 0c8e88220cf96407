"""What both ONNX Runtime backends do with a session: open it quietly, check what it gives, and translate what it says.

Its only state is the library's: from the first import on ONNX Runtime logs nothing.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from gateway.errors import InvalidModel
from gpuworker import faults
from gpuworker.wording import shown
from shm import layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gateway.models.spec import Contract

OUTPUTS_MAX = 64
_NAME_SIZE_MAX = 256
_SILENT = 4
"""Fatal only. Its errors come as exceptions too, and its own lines on stderr are no JSON."""

# What is said before there is a session, or outside of one: that a provider does not load, first of all.
onnxruntime.set_default_logger_severity(_SILENT)


def make_options(thread_count: int, folder: Path | None) -> Any:
    """Session options: as many threads as were given, which sleep when there is nothing to do.

    `folder`: where the graph's external weights are; None: it has none.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _SILENT
    # Threads that spin burn the cores that decoders and the gateway need. EfficientNet-Lite0 on 2 threads, CPU an
    # image without and with: 9.2 and 10.1 ms on an idle machine, 9.6 and 18.5 ms (and twice the wall time) beside
    # other work. Alone and one image at a time, spinning is faster: 5.1 ms against 6.6.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    return options


def open_session(
    content: bytes, options: Any, provider: str, settings: dict[str, str], advise: Callable[[], str]
) -> Any:
    """An InferenceSession on one provider, with its settings, and on no other in its place.

    `advise` says what to do when it would be on another.

    Raises:
        InvalidModel: the library does not take the graph, or it does not use the provider.
        MemoryError, DeviceLost: as the device says.
    """
    with translated("does not take this graph; check that it is valid and that its opset is not too new"):
        # By itself it would try again on the CPU, and say so on stdout.
        session = onnxruntime.InferenceSession(content, options, providers=[(provider, settings)], enable_fallback=0)
    in_use = session.get_providers()
    if in_use[0] != provider:
        raise InvalidModel(f"{provider} was asked for, ONNX Runtime uses {', '.join(in_use)}; {advise()}")
    return session


def probe(session: Any, names: Sequence[str], source: str, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Run once without settled buffers and check what comes out: one array an output, the library's own.

    `pixels`: uint8[size, h, w, c] for the input `source`. Raises InvalidModel, MemoryError, DeviceLost.
    """
    size = len(pixels)
    with translated(f"fails on a batch of {size}; check the graph, or leave the size out of batching.sizes"):
        found = session.run(list(names), {source: pixels})
    if len(found) > OUTPUTS_MAX:
        raise InvalidModel(f"the graph has {len(found)} outputs, at most {OUTPUTS_MAX} are read; export fewer")
    arrays = dict(zip(names, found, strict=True))
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


def settled(session: Any, binding: Any, options: Any) -> Callable[[], None]:
    """A run of what is bound, without arguments."""
    # Not InferenceSession's own method: that of 1.31 takes 35 µs more, to look at the options.
    call = session._sess.run_with_iobinding  # noqa: SLF001
    return functools.partial(call, binding._iobinding, options)  # noqa: SLF001


def fields_of(arrays: dict[str, NDArray[Any]]) -> tuple[layout.Field, ...]:
    """The outputs of a probe without their batch axis."""
    return tuple(layout.Field(name, array.dtype.name, array.shape[1:]) for name, array in arrays.items())


def compare(fields: Sequence[layout.Field], found: dict[str, NDArray[Any]], contract: Contract) -> None:
    """Raise InvalidModel if a probe of another size gave other shapes than `fields`."""
    for field, array in zip(fields, found.values(), strict=True):
        if array.shape[1:] != field.shape:
            size = len(array)
            raise InvalidModel(
                f"the graph's output '{shown(field.name)}' is {list(array.shape)} for a batch of {size}, where"
                f" {[size, *field.shape]} follows from other sizes; export it with fixed axes but for the first,"
                f" or set batching.sizes = [{contract.batching.sizes[0]}]"
            )


@contextlib.contextmanager
def translated(sentence: str) -> Iterator[None]:
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
