"""`python -m gpuworker.doctor ENGINE_DIR`, or `… open DEVICE`: prints one `shm.checkup` document; changes nothing."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Any

import msgspec

from gpuworker import device as devices
from gpuworker.doctor import grandchild, machine
from shm.checkup import Checkup, Driver, Gpu, Opened, Package, Runtime, TensorRt

OPEN = "open"

_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "onnx": ("onnx",),
    "cuda": ("cuda-python", "cuda-bindings"),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-lean", "tensorrt-dispatch"),
    "nvml": ("nvidia-ml-py",),
}
"""Question → the distributions that bring its library."""


def examine(engine_dir: str) -> Checkup:
    """Everything that is known without opening a GPU."""
    answers = grandchild.ask_all((*_DISTRIBUTIONS, "libcuda"))
    nvml = answers["nvml"]
    runtime = answers["onnxruntime"]
    cuda_build = "CUDAExecutionProvider" in runtime.get("providers", ())
    loading = grandchild.ask("provider", timeout_s=grandchild.ANSWER_TIMEOUT_S) if cuda_build else {}
    return Checkup(
        host=machine.host(),
        driver=Driver(
            **machine.driver(),
            libcuda=answers["libcuda"].get("problem", ""),
            cuda=answers["libcuda"].get("cuda", 0),
            nvml=nvml.get("problem", ""),
            nvml_code=nvml.get("code", 0),
            version=nvml.get("driver", ""),
        ),
        gpus=tuple(msgspec.convert(nvml.get("gpus", []), list[Gpu])),
        onnxruntime=Runtime(
            **_package("onnxruntime", runtime),
            cuda=runtime.get("cuda", ""),
            providers=tuple(runtime.get("providers", ())),
            provider=loading.get("provider") or loading.get("problem", ""),
        ),
        onnx=Package(**_package("onnx", answers["onnx"])),
        cuda=Package(**_package("cuda", answers["cuda"])),
        tensorrt=TensorRt(
            **_package("tensorrt", answers["tensorrt"]),
            builder=answers["tensorrt"].get("builder", False),
            parser=answers["tensorrt"].get("parser", False),
        ),
        # That there is no driver for it is nothing wrong with the package.
        nvml=Package(**_package("nvml", {"version": "" if nvml.get("absent") else "imports"})),
        engines=machine.engines(engine_dir),
    )


def _package(name: str, answer: dict[str, Any]) -> dict[str, Any]:
    """What `shm.checkup.Package` has."""
    installed = {}
    for distribution in _DISTRIBUTIONS[name]:
        try:
            installed[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return {"installed": installed, "version": answer.get("version", ""), "problem": answer.get("problem", "")}


def open_device(name: str) -> Opened:
    """Open one GPU as a worker on `name` would; with TensorRT too, where it imports. Raises ValueError."""
    devices.parse(name).hide_others()
    card = grandchild.ask("card", name, timeout_s=grandchild.ANSWER_TIMEOUT_S)
    tensorrt = {} if "problem" in card else grandchild.ask("builder", timeout_s=grandchild.ANSWER_TIMEOUT_S)
    return Opened(
        device=name,
        label=card.get("label", ""),
        problem=card.get("problem", ""),
        tensorrt=tensorrt.get("problem", ""),
    )


def main(arguments: list[str]) -> None:
    """Print one document."""
    found: Checkup | Opened
    found = open_device(arguments[1]) if arguments[0] == OPEN else examine(arguments[0])
    os.write(1, msgspec.json.encode(found))


if __name__ == "__main__":
    main(sys.argv[1:])
