"""Every way from a row's bytes to 224 x 224 pixels in memory: ours, plain Pillow, and what else people use.

All take the same geometry (the contract's, `gateway.decoding.geometry`) and end with RGB in one array. Each is a
function without arguments, so that only its work is timed; what is prepared once per process is prepared outside.
"""

from __future__ import annotations

import importlib
import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg
from PIL import Image

from gateway.decoding import geometry
from gateway.decoding.imaging import Recipe, Scratch, decode_into
from gateway.decoding.pillow import RESAMPLING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.decode_lab.rows import Row
    from gateway.models.spec import Contract

    Way = Callable[[], object]

# One thread for all: libvips reads it when it is loaded.
os.environ["VIPS_CONCURRENCY"] = "1"

INSTALL = "pip install -e '.[bench]'"
REDUCED_MARGIN = 1.0
"""OpenCV's reduced decode is allowed wherever it still covers what is asked for: its fastest, not its most faithful."""


def optional(name: str) -> Any:
    """A package of the `bench` extra, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def missing() -> list[str]:
    """What this run goes without."""
    return [name for name in ("cv2", "pyvips") if optional(name) is None]


def ways(row: Row, contract: Contract) -> dict[str, Way]:
    """Ways by name, ours first. Those named "turbo" stop at decoded pixels."""
    slot = np.zeros(contract.input.shape, np.uint8)
    found: dict[str, Way] = {"ours": ours(row, contract, slot)}
    if row.kind == "JPEG":
        found |= {f"turbo 1/{divisor}": turbo(row, divisor) for divisor in (1, 2, 4, 8)}
    found["Pillow"] = pillow(row, contract, slot, draft=False)
    if row.kind == "JPEG":
        found["Pillow draft"] = pillow(row, contract, slot, draft=True)
    return found | opencv(row, contract, slot) | vips(row, contract, slot)


def ours(row: Row, contract: Contract, slot: np.ndarray) -> Way:
    """As a decoder does it."""
    recipe, scratch, body = Recipe(contract), Scratch(), memoryview(row.body)

    def way() -> np.ndarray:
        decode_into(body, slot, recipe, scratch)
        return slot

    return way


def turbo(row: Row, divisor: int) -> Way:
    """libjpeg-turbo's decode to RGB at 1 / `divisor`, and nothing else."""
    width, height = -(-row.size[0] // divisor), -(-row.size[1] // divisor)
    factor = divisor if divisor > 1 else 16
    return lambda: simplejpeg.decode_jpeg(row.body, "RGB", min_height=height, min_width=width, min_factor=factor)


def pillow(row: Row, contract: Contract, slot: np.ndarray, *, draft: bool) -> Way:
    """Open, draft when asked to, resize the whole, crop."""
    fit = geometry.fit(contract.input, row.size, 1)
    kernel = RESAMPLING[contract.input.resample]

    def way() -> np.ndarray:
        image = Image.open(io.BytesIO(row.body))
        if draft:
            image.draft("RGB", fit.resized)
        slot[...] = np.asarray(image.convert("RGB").resize(fit.resized, kernel).crop(fit.crop))
        return slot

    return way


def opencv(row: Row, contract: Contract, slot: np.ndarray) -> dict[str, Way]:
    """imdecode, resize the whole by two of its methods, crop, swap the channels. Reduced where it has that (JPEG)."""
    cv2 = optional("cv2")
    if cv2 is None:
        return {}
    cv2.setNumThreads(1)
    fit = geometry.fit(contract.input, row.size, 1)
    left, top, right, bottom = fit.crop

    def way(flag: int, method: int) -> Way:
        def run() -> np.ndarray:
            pixels = cv2.imdecode(np.frombuffer(row.body, np.uint8), flag)
            resized = cv2.resize(pixels, fit.resized, interpolation=method)
            cv2.cvtColor(resized[top:bottom, left:right], cv2.COLOR_BGR2RGB, dst=slot)
            return slot

        return run

    found = {
        "OpenCV area": way(cv2.IMREAD_COLOR, cv2.INTER_AREA),
        "OpenCV linear": way(cv2.IMREAD_COLOR, cv2.INTER_LINEAR),
    }
    reduced = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
    ratio = min(size / resized for size, resized in zip(row.size, fit.resized, strict=True))
    divisor = max((one for one in reduced if one * REDUCED_MARGIN <= ratio), default=1)
    if row.kind == "JPEG" and divisor > 1:
        found["OpenCV reduced"] = way(reduced[divisor], cv2.INTER_LINEAR)
    return found


def vips(row: Row, contract: Contract, slot: np.ndarray) -> dict[str, Way]:
    """`thumbnail`, which decodes smaller where it can, then the crop."""
    pyvips = optional("pyvips")
    if pyvips is None:
        return {}
    # Else the second run of an operation is a look-up.
    pyvips.cache_set_max(0)
    fit = geometry.fit(contract.input, row.size, 1)
    left, top, right, bottom = fit.crop

    def way() -> np.ndarray:
        image = pyvips.Image.thumbnail_buffer(row.body, fit.resized[0], height=fit.resized[1], size="force")
        pixels = image.crop(left, top, right - left, bottom - top).write_to_memory()
        slot[...] = np.frombuffer(pixels, np.uint8).reshape(*slot.shape[:2], -1)[:, :, :3]
        return slot

    return {"libvips": way}
