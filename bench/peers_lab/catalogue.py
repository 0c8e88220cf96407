"""Who is measured: what to install, how to start it, how it wants a photo and where its answer stands. Data only."""

from __future__ import annotations

import json
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

from bench import rig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FOLDER = rig.ROOT / "bench" / "peers"
VENVS = rig.ROOT / ".venv" / "peers"

SHARED = (
    "numpy>=1.26",  # PyTriton takes no later one
    "onnxruntime>=1.23",
    "orjson>=3.11.6",
    "msgspec>=0.20",
    "simplejpeg>=1.9",
    "Pillow>=13.0.0,<14",
    "cykooz-resizer>=4.0.1,<5; platform_machine == 'x86_64'",
)
"""What bench/peers/work.py imports, in every peer's environment. Floors as in pyproject.toml."""


class Ask(NamedTuple):
    """One request: path, headers and body as this server wants the photo."""

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Peer(NamedTuple):
    """One server. `script`: its file in bench/peers; None: this project's own gateway.

    `top`: from the bytes of a reply to the index of the best class. Raises KeyError, IndexError or ValueError.
    """

    name: str
    requirements: tuple[str, ...]
    script: str | None
    ask: Callable[[str, bytes], Ask]
    top: Callable[[bytes], int]
    settings: str

    @property
    def venv(self) -> Path:
        return VENVS / self.name

    def python(self) -> str:
        """The interpreter that runs it."""
        return sys.executable if self.script is None else str(self.venv / "bin" / "python")


def _raw(path: str) -> Callable[[str, bytes], Ask]:
    return lambda _model, photo: Ask(path, (("Content-Type", "image/jpeg"),), photo)


def _ours(model: str, photo: bytes) -> Ask:
    return Ask(f"/predictions/{model}", (("Content-Type", "image/jpeg"),), photo)


def _triton(_model: str, photo: bytes) -> Ask:
    """Open Inference Protocol with the binary extension: a BYTES element is its length, little-endian, and itself."""
    element = struct.pack("<I", len(photo)) + photo
    head = {
        "inputs": [
            {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(element)}}
        ],
        "outputs": [{"name": "answer", "parameters": {"binary_data": True}}],
    }
    encoded = json.dumps(head).encode()
    headers = (
        ("Content-Type", "application/octet-stream"),
        ("Inference-Header-Content-Length", str(len(encoded))),
    )
    return Ask("/v2/models/photos/infer", headers, encoded + element)


def top_of_json(reply: bytes) -> int:
    """The best class of `{"prediction": [{"index": ...}, ...]}`. Raises KeyError, IndexError or ValueError."""
    return int(json.loads(reply)["prediction"][0]["index"])


def top_of_triton(reply: bytes) -> int:
    """The same document as the reply's only BYTES element, behind the protocol's header. Raises as above."""
    return top_of_json(reply[reply.index(b'{"prediction"') :])


OURS = Peer("penstock", (), None, _ours, top_of_json, "as it comes")

PEERS = (
    Peer(
        "fastapi",
        ("fastapi>=0.121", "uvicorn[standard]>=0.38"),
        "serve_fastapi.py",
        _raw("/predict"),
        top_of_json,
        "uvicorn, uvloop, httptools; a process per core; all inline",
    ),
    Peer(
        "flask",
        ("flask>=3.1", "gunicorn>=23"),
        "serve_flask.py",
        _raw("/predict"),
        top_of_json,
        "gunicorn, gthread, 2 x cores + 1 workers",
    ),
    Peer(
        "mosec",
        ("mosec>=0.9.7",),
        "serve_mosec.py",
        _raw("/inference"),
        top_of_json,
        "one stage, a worker per core, batches of 8 in 1 ms",
    ),
    Peer(
        "litserve",
        ("litserve>=0.2.16",),
        "serve_litserve.py",
        _raw("/predict"),
        top_of_json,
        "fast_queue, a worker and a front per core, batches of 8 without a wait",
    ),
    Peer(
        "bentoml",
        ("bentoml>=1.4.39",),
        "serve_bentoml.py",
        _raw("/predict"),
        top_of_json,
        "a worker per core, inline, without its batcher",
    ),
    Peer(
        "ray",
        ("ray[serve]>=2.60",),
        "serve_ray.py",
        _raw("/predict"),
        top_of_json,
        "RAY_SERVE_THROUGHPUT_OPTIMIZED, a replica per core, its own proxy",
    ),
    Peer(
        "triton",
        ("nvidia-pytriton>=0.7.0",),
        "serve_triton.py",
        _triton,
        top_of_triton,
        "dynamic batcher without delay, an instance per core, binary tensors",
    ),
)

BY_NAME = {peer.name: peer for peer in PEERS}
