"""TensorRT itself, imported once, and its words. Its calls answer False or None, and say why only to a logger.

Its state is the one logger of this process: TensorRT keeps the first that it is given, whatever comes later.
"""

from __future__ import annotations

import collections
import contextlib
import functools
from typing import Any

from gateway.errors import InvalidModel
from gpuworker import faults, log

try:
    import tensorrt as trt
except OSError as error:
    # Its own libraries are opened by name, and a missing one is no ImportError there.
    raise ImportError(str(error), name="tensorrt") from error

__all__ = ["WORDS", "failure", "register_plugins", "trt"]

WORDS_MAX = 16
"""Errors that are kept for whoever asks why."""


class Words(trt.ILogger):  # type: ignore[misc]
    """Errors and warnings go to the worker's log; errors are kept, too. Called from any thread."""

    def __init__(self) -> None:
        # By name, as pybind11 asks: super() would not make the C++ part.
        trt.ILogger.__init__(self)
        self._errors: collections.deque[str] = collections.deque(maxlen=WORDS_MAX)
        severity = trt.ILogger.Severity
        self._levels = {severity.INTERNAL_ERROR: "error", severity.ERROR: "error", severity.WARNING: "warning"}

    def log(self, severity: Any, msg: str) -> None:
        """Take one line of TensorRT's."""
        level = self._levels.get(severity)
        if level is None:
            return
        # It is called by C++ that takes no exception: one would end the process.
        with contextlib.suppress(Exception):
            if level == "error":
                self._errors.append(msg)
            log.event("tensorrt_said", level=level, detail=msg)

    def take(self) -> str:
        """All errors since the last time, which are forgotten."""
        found = "; ".join(self._errors)
        self._errors.clear()
        return found


WORDS = Words()


@functools.cache
def register_plugins() -> None:
    """Let the parser and engines use TensorRT's own plugins: some of ONNX's operators are such, by its version others.

    Source: onnx-tensorrt's importers, which take InstanceNormalization and RoiAlign from the registry; without this
    they find nothing there (NVIDIA/Stable-Diffusion-WebUI-TensorRT issue 315, with TensorRT 10.0).
    """
    if not trt.init_libnvinfer_plugins(WORDS, ""):
        log.event("plugins_not_registered", level="warning", detail="TensorRT's plugins cannot be used")


def failure(sentence: str) -> Exception:
    """What to raise after a call that said no: MemoryError or DeviceLost by TensorRT's words, else a refusal.

    `sentence` goes on after "TensorRT <version> ".
    """
    words = WORDS.take()
    meaning = faults.named(RuntimeError(words))
    if isinstance(meaning, RuntimeError):
        return InvalidModel(f"TensorRT {trt.__version__} {sentence}; its own words are in the log")
    return meaning
