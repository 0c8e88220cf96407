"""How much is measured: three scales, and what one part is told. Only the standard library."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path

PARTS = ("facts", "backends", "answers", "gateway", "tail", "kill")
"""In this order: what decides most comes first, should time run out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes and times of one run."""

    seconds: float
    """Of one stretch of measuring."""
    rounds: int
    sizes: tuple[int, ...]
    """Batch sizes; 1 and 10 are among them, for the seed figure."""
    engine_sizes: tuple[int, ...]
    """Of TensorRT, where each one is built for."""
    models: tuple[str, ...]
    served: tuple[str, ...]
    """Models, as "NAME BACKEND PRECISION", that the whole gateway serves."""
    side: int
    """Pixels of an image's sides, of the models that are drawn here."""
    ways: tuple[int, ...]
    """Images of a batch, in the measurement of the bytes' ways."""
    register_mib: int
    """Memory that is registered, to time it."""
    connections: int
    """Images that clients have on the way at a time."""
    optimization_level: int
    """TensorRT's builder; 3 is what users get."""
    kills: int
    starved_sizes: tuple[int, ...]
    """Of a model that does not fit on the card with all of them."""
    limits_s: dict[str, float]
    """What a part may take of the whole time, in proportion."""


FULL = Scale(
    seconds=1.0,
    rounds=1,
    sizes=(1, 2, 4, 8, 10, 16, 32, 64, 128),
    engine_sizes=(1, 8, 10, 32, 128),
    models=("efficientnet_lite0", "resnet50", "googlenet"),
    served=("resnet50 onnxruntime float32", "efficientnet_lite0 tensorrt float16"),
    side=224,
    ways=(1, 8, 32, 64, 256),
    register_mib=1024,
    connections=512,
    optimization_level=3,
    kills=3,
    starved_sizes=(1, 4, 64, 512),
    limits_s={"facts": 35, "backends": 240, "answers": 45, "gateway": 80, "tail": 30, "kill": 110},
)

QUICK = dataclasses.replace(
    FULL,
    seconds=0.4,
    rounds=1,
    sizes=(1, 8, 10, 32, 128),
    engine_sizes=(1, 10, 32),
    models=("efficientnet_lite0", "googlenet"),
    served=("efficientnet_lite0 onnxruntime float32",),
    ways=(1, 8, 32, 64),
    register_mib=256,
    optimization_level=1,
    kills=1,
    limits_s={"facts": 15, "backends": 65, "answers": 20, "gateway": 28, "tail": 22, "kill": 72},
)

SMALL = dataclasses.replace(
    QUICK,
    seconds=0.02,
    sizes=(1, 4, 10),
    engine_sizes=(1, 4, 10),
    models=("tiny",),
    served=("tiny onnxruntime float32",),
    side=32,
    ways=(1, 4),
    register_mib=1,
    connections=4,
    starved_sizes=(1, 4, 64),
    limits_s=dict.fromkeys(PARTS, 60.0),
)
"""Shows that the script works; its figures mean nothing."""

SCALES = {"full": FULL, "quick": QUICK, "small": SMALL}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a part is told. `end_s`: `time.monotonic()` at which it is killed. `folder`: its own and the others'."""

    part: str
    scale_name: str
    folder: str
    notes: str
    end_s: float
    parent: int = 0
    """Pid of whoever starts it, with whom it dies."""
    case: str = ""
    """Of `backends` and `answers`: one model on one backend."""

    @property
    def scale(self) -> Scale:
        return SCALES[self.scale_name]

    @property
    def left_s(self) -> float:
        return self.end_s - time.monotonic()

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Self:
        found: dict[str, Any] = json.loads(path.read_text())
        return cls(**found)
