"""Says in one sentence why CUDA, or ONNX Runtime on it, does not work here, and how to get it.

Looks at packages and shared libraries, and never at the card: no context is made, no device memory taken. Whatever is
read from words of others is pure, so that it is tested without a card.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

PROVIDER = "CUDAExecutionProvider"

CUDNN = "libcudnn.so.9"
"""Opened by name when the first convolution runs, so that a provider which loads can still lack it."""

_PROVIDER_FILE = "libonnxruntime_providers_cuda.so"
_CPU_PACKAGE, _GPU_PACKAGE = "onnxruntime", "onnxruntime-gpu"
_INSTALL = f"install {_GPU_PACKAGE}[cuda,cudnn], which brings CUDA's libraries and cuDNN"
_DRIVER_FILE = "libcuda.so.1"
_FOLDER = re.compile(r"\S*/")
_MISSING = re.compile(r"(lib[\w.+-]+): cannot open shared object file")

_CARD_PROBLEMS = {
    3: "CUDA does not initialise; look into the kernel's log for the NVIDIA driver's words",
    34: f"{_DRIVER_FILE} is the stub that programs are linked with; take its folder off LD_LIBRARY_PATH",
    35: (
        "the NVIDIA driver is older than this CUDA needs, or there is none; install or upgrade it, and in a container"
        " start it with --gpus"
    ),
    46: "the GPU is taken: another process has it to itself (nvidia-smi -q -d COMPUTE says its compute mode)",
    100: "no GPU is visible; see nvidia-smi -L for those there are, and in a container start it with --gpus",
    101: "the GPU of that number or UUID is not there; see nvidia-smi -L for those there are",
    802: "the GPU is not ready yet; on machines with NVSwitch start nvidia-fabricmanager",
    803: "the NVIDIA driver's library and kernel module are of different versions; reboot, or load the module again",
    804: "this GPU's driver does not take CUDA's forward-compatibility package; remove it, or upgrade the driver",
    999: "the NVIDIA driver failed for no reason it knows; load nvidia_uvm again, or reboot",
}
"""Codes with which a process never gets a card. Source: the documentation of cudaError_t."""


def card_problem(code: int) -> str | None:
    """What a cudaError_t says about this machine, and what to do; None: it is about something else."""
    return _CARD_PROBLEMS.get(code)


def cuda_provider_problem() -> str | None:
    """Why ONNX Runtime cannot use CUDA in this process, and how to get it; None: it can load all it needs.

    Maps up to 1 GB of libraries, and a broken one can end the process: ask in one that may die.
    """
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        return f"ONNX Runtime does not import ({error}); {_INSTALL}"
    if PROVIDER not in onnxruntime.get_available_providers():
        return package_problem(_installed(), onnxruntime.__version__)
    preload(onnxruntime)
    provider = Path(str(onnxruntime.__file__)).with_name("capi") / _PROVIDER_FILE
    if not provider.exists():
        return None
    # In this order, for the one leans on the other and CUDA's libraries are in both.
    for library in (str(provider.with_name("libonnxruntime_providers_shared.so")), str(provider), CUDNN):
        try:
            ctypes.CDLL(library)
        except OSError as error:
            return library_problem(str(error), getattr(onnxruntime, "cuda_version", None) or "?")
    return None


def preload(onnxruntime: Any) -> None:
    """Have the libraries that pip's packages bring loaded, where there are such; nothing is printed or raised.

    What is missing shows when the provider is loaded, which says it better.
    """
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
        onnxruntime.preload_dlls()


def package_problem(installed: Mapping[str, str], version: str) -> str:
    """Why the ONNX Runtime that imports has no CUDA in it. `installed`: its packages' versions by name."""
    if _GPU_PACKAGE in installed and _CPU_PACKAGE in installed:
        return (
            f"{_CPU_PACKAGE} {installed[_CPU_PACKAGE]} and {_GPU_PACKAGE} {installed[_GPU_PACKAGE]} are both installed"
            " and overwrite each other's files; uninstall both, then install penstock[gpu]"
        )
    if _CPU_PACKAGE in installed:
        return (
            f"{_CPU_PACKAGE} {installed[_CPU_PACKAGE]} is the build for CPUs only; uninstall it, then install"
            " penstock[gpu]"
        )
    return f"ONNX Runtime {version} was built without CUDA; {_INSTALL}"


def library_problem(words: str, cuda: str) -> str:
    """What dlopen's `words` mean. `cuda`: the version that ONNX Runtime was built for."""
    found = _MISSING.search(words)
    if found is None:
        # Clients read refusals: they are told names, not where things are on this machine.
        return f"ONNX Runtime's CUDA provider does not load ({_FOLDER.sub('', words)}); {_INSTALL}"
    library = found[1]
    if library == _DRIVER_FILE:
        return (
            f"{_DRIVER_FILE}, the NVIDIA driver's library, is not here; install the driver, and in a container start it"
            " with --gpus"
        )
    if library.startswith("libcudnn"):
        return f"{library} of cuDNN is not here; {_INSTALL}"
    return f"{library} of CUDA {cuda} is not here; {_INSTALL}"


def _installed() -> dict[str, str]:
    """Versions of ONNX Runtime's packages, by name."""
    found = {}
    for package in (_CPU_PACKAGE, _GPU_PACKAGE):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
