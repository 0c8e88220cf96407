"""`python -m gpuworker.doctor.questions NAME [ARGUMENT]`: one question to one library; the answer is JSON on stdout.

A question returns plain data; {"absent": True} where the library is not installed, {"problem": its words} where it does
not work. It may as well end the process: `grandchild` says so then.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from gpuworker.doctor import cards

if TYPE_CHECKING:
    from collections.abc import Callable

_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""As in a worker."""


class _Absent(Exception):
    """The library is not installed."""


def _import(name: str) -> Any:
    """The module. Raises _Absent, and whatever its import raises."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module of its own that is missing is a broken installation; that it is missing itself is none.
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise _Absent from None
        raise


def onnxruntime(_: str) -> dict[str, Any]:
    """Its version, the CUDA that it was built for, its providers, and why the one for CUDA does not load."""
    runtime = _import("onnxruntime")
    providers = list(runtime.get_available_providers())
    built = getattr(runtime, "cuda_version", "") or ""
    return {"version": runtime.__version__, "cuda": str(built), "providers": providers}


def provider(_: str) -> dict[str, Any]:
    """Why ONNX Runtime's CUDA provider does not load, and what to do."""
    diagnosis = importlib.import_module("gpuworker.gpu.diagnosis")
    return {"provider": diagnosis.cuda_provider_problem() or ""}


def onnx(_: str) -> dict[str, Any]:
    """Its version."""
    return {"version": _import("onnx").__version__}


def cuda(_: str) -> dict[str, Any]:
    """The version of cuda-python's bindings; what a worker calls is imported."""
    _import("cuda.bindings.runtime")
    return {"version": importlib.import_module("cuda.bindings").__version__}


def tensorrt(_: str) -> dict[str, Any]:
    """Its version, and whether it builds engines from ONNX."""
    library = _import("tensorrt")
    return {
        "version": library.__version__,
        "builder": hasattr(library, "Builder"),
        "parser": hasattr(library, "OnnxParser"),
    }


def libcuda(_: str) -> dict[str, Any]:
    """The newest CUDA that the driver's library knows."""
    library = ctypes.CDLL("libcuda.so.1")
    version = ctypes.c_int()
    status = library.cuDriverGetVersion(ctypes.byref(version))
    if status:
        return {"problem": f"cuDriverGetVersion says {status}"}
    return {"cuda": version.value}


def nvml(_: str) -> dict[str, Any]:
    """The driver's version and every GPU."""
    return cards.ask(_import("pynvml"))


def card(device: str) -> dict[str, Any]:
    """Open the one GPU that this process sees, as a worker does; with TensorRT too."""
    opened = importlib.import_module("gpuworker.gpu.card")
    try:
        found = opened.Card.open()
    except opened.CudaError as error:
        diagnosis = importlib.import_module("gpuworker.gpu.diagnosis")
        return {"problem": diagnosis.card_problem(error.code) or f"{device} cannot be opened: {error}"}
    return {"label": found.properties.label}


def builder(_: str) -> dict[str, Any]:
    """Have TensorRT begin on the GPU that this process sees, which a worker has opened before."""
    library = _import("tensorrt")
    importlib.import_module("gpuworker.gpu.card").Card.open()
    said: list[str] = []

    class Listener(library.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            # By name, as pybind11 asks: super() would not make the C++ part.
            library.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in {library.ILogger.Severity.INTERNAL_ERROR, library.ILogger.Severity.ERROR}:
                said.append(msg)

    try:
        made = library.Builder(Listener()).create_builder_config()
    except Exception as error:  # noqa: BLE001 - pybind11's words say less than TensorRT's own
        return {"problem": said[0] if said else f"{type(error).__name__}: {error}"}
    return {} if made is not None else {"problem": said[0] if said else "it makes no configuration"}


QUESTIONS: dict[str, Callable[[str], dict[str, Any]]] = {
    found.__name__: found for found in (onnxruntime, provider, onnx, cuda, tensorrt, libcuda, nvml, card, builder)
}


def main(arguments: list[str]) -> None:
    """Answer; whatever is printed meanwhile goes to stderr."""
    name, *rest = arguments
    os.environ.setdefault(_NO_TELEMETRY, "1")
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        found = QUESTIONS[name](rest[0] if rest else "")
    except _Absent:
        found = {"absent": True}
    except Exception as error:  # noqa: BLE001 - a library's words, whatever it raises, are the answer
        found = {"problem": f"{type(error).__name__}: {error}" if str(error) else type(error).__name__}
    os.write(answers, json.dumps(found).encode())
    # Not by the interpreter's end: a library that crashes while it is taken down has answered all the same.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
