"""What clients send: pixels as msgpack tensors, and JPEGs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgpack
import numpy as np

from bench import rig

if TYPE_CHECKING:
    from pathlib import Path

MSGPACK, JPEG = "application/msgpack", "image/jpeg"


def tensor(folder: Path, count: int, side: int) -> Path:
    """`count` images of noise, uint8[side, side, 3] each, in one request."""
    pixels = np.random.default_rng(2).integers(0, 256, (count, side, side, 3), np.uint8)
    file = folder / f"tensor_{count}_{side}.msgpack"
    file.write_bytes(
        msgpack.packb({"tensor": {"shape": list(pixels.shape), "dtype": "uint8", "data": pixels.tobytes()}})
    )
    return file


def jpeg(folder: Path, width: int, height: int) -> Path:
    """A real photo as JPEG."""
    file = folder / f"photo_{width}x{height}.jpg"
    file.write_bytes(rig.jpeg(width, height, 85))
    return file
