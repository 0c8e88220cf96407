"""One backend's scores of the real photos, at several batch sizes, into a file. Run by `answers`, in a process."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.gpu_lab import models
from bench.gpu_lab.answers import CPU, answer_file
from bench.gpu_lab.case import sizes_of
from gateway.decoding.imaging import Recipe, Scratch, decode_into
from gateway.errors import InvalidModel
from gateway.models.repository import read_version
from gpuworker.backend import Setup, open_backend
from gpuworker.device import parse
from shm.heritage import DeviceGrant

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bench.gpu_lab.notes import Notes
    from bench.gpu_lab.plan import Plan
    from gateway.models.spec import Contract

SIZE_MAX = 10
"""The largest batch that the few photos fill."""
PHOTOS = {
    "skimage": ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png", "motorcycle_left.png"),
    "matplotlib": ("grace_hopper.jpg",),
    "sklearn": ("china.jpg", "flower.jpg"),
}
"""Package → files in it; those that are not installed are left out."""


def photos() -> list[bytes]:
    """Every real photo that is here, encoded. Raises FileNotFoundError: there is none."""
    found = []
    for package, names in PHOTOS.items():
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        assert module.__file__ is not None
        for name in names:
            found += [file.read_bytes() for file in sorted(Path(module.__file__).parent.rglob(name))[:1]]
    if not found:
        raise FileNotFoundError("there is no photo here; install scikit-image")
    return found


def measure(plan: Plan, notes: Notes) -> None:
    """`plan.case` is the case; its precision `cpu` means the CPU."""
    case = models.Case.parse(plan.case)
    on_cpu = case.precision == CPU
    folder = Path(plan.folder)
    engines = folder / "engines"
    engines.mkdir(mode=0o700, exist_ok=True)
    # The same sizes as elsewhere, so that an engine is built once.
    sizes = sizes_of(plan, case)
    directory = models.write(
        folder / f"answers_{case.slug}",
        case._replace(precision="float32") if on_cpu else case,
        sizes,
        side=plan.scale.side,
        optimization_level=plan.scale.optimization_level,
    )
    contract = read_version(directory).contract
    setup = Setup(parse("cpu" if on_cpu else "cuda:0"), 2, DeviceGrant(engine_dir=str(engines)))
    try:
        backend = open_backend(contract, directory, setup)
        backend.load(lambda *_: None)
    except InvalidModel as refusal:
        notes.refused(f"answers, {case}", refusal)
        return
    pixels = _decoded(contract)
    found: dict[str, NDArray[np.float32]] = {}
    for size in (sizes[0], max(size for size in sizes if size <= SIZE_MAX)):
        backend.warmup(size)
        rows = []
        for first in range(0, len(pixels), size):
            part = pixels[first : first + size]
            for row, image in zip(backend.staging(size), part, strict=False):
                row[:] = image.reshape(-1)
            (scores,) = backend.run(size, len(part)).arrays.values()
            rows.append(scores[: len(part)].reshape(len(part), -1).astype(np.float32))
        found[str(size)] = np.concatenate(rows)
    backend.close()
    np.savez(answer_file(folder, case), **found)  # type: ignore[arg-type]


def _decoded(contract: Contract) -> list[NDArray[np.uint8]]:
    recipe, scratch = Recipe(contract), Scratch()
    found = []
    for body in photos():
        slot = np.zeros(contract.input.shape, np.uint8)
        decode_into(body, slot, recipe, scratch)
        found.append(slot)
    return found
