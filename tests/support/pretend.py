"""The pretend card, for tests: in this process, or in the environment of children."""

import importlib
import os
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "pretend_gpu"

QUIET = {"PENSTOCK_PRETEND_COPY_MS": "0"}


def in_process(monkeypatch):
    """A fresh pretend card behind the real cuda.bindings.runtime of this process. Returns it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    pretend_cuda = importlib.import_module("pretend_cuda")
    from cuda.bindings import runtime as cudart  # noqa: PLC0415

    for name in pretend_cuda.CALLS:
        monkeypatch.setattr(cudart, name, getattr(cudart, name))
    from gpuworker.gpu.card import Card  # noqa: PLC0415

    monkeypatch.setattr(Card, "_opened", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return pretend_cuda.install(cudart)


def onnxruntime(monkeypatch):
    """The real onnxruntime of this process passes for the build with CUDA, on the card that `in_process` gave."""
    import onnxruntime as real  # noqa: PLC0415

    importlib.import_module("pretend_onnxruntime").install(real, monkeypatch.setattr)
    return real


def environment(folder, **extra):
    """What a child needs to find a pretend card; `folder`: where processes say what they hold."""
    before = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(FOLDER), *([before] if before else [])]),
        "PENSTOCK_PRETEND_DIR": str(folder),
        **extra,
    }


def forget(*names):
    """Modules of the pretence that were imported."""
    for name in names:
        sys.modules.pop(name, None)
