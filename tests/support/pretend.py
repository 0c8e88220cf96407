"""The pretend card, for tests: in this process, or in the environment of children."""

import functools
import importlib.util
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


def nvml(monkeypatch, **environ):
    """Pretend NVML, as the gateway finds it in this process; `environ`: which GPUs, without PENSTOCK_PRETEND_."""
    from gateway import gpus  # noqa: PLC0415

    monkeypatch.syspath_prepend(str(FOLDER))
    for name, value in environ.items():
        monkeypatch.setenv(f"PENSTOCK_PRETEND_{name.upper()}", str(value))
    spec = importlib.util.spec_from_file_location("pynvml", FOLDER / "pynvml.py")
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(gpus, "nvml", functools.cache(gpus.nvml.__wrapped__))
    return library


def of_gateway(folder, **told):
    """Variables for a gateway and its children that find pretend GPUs; `told`: without PENSTOCK_PRETEND_."""
    folder.mkdir(exist_ok=True)
    named = {
        f"PENSTOCK_PRETEND_{name.upper()}": str(value)
        for name, value in {"dir": folder, "engine": "memory", **told}.items()
    }
    return {"PYTHONPATH": environment(folder)["PYTHONPATH"], **named}
