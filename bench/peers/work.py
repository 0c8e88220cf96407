"""What every peer does with one photo: this project's own decoding, the same graph, the same ranking.

Peers import it beside their server file, with this checkout on PYTHONPATH, so that pixels and model are the same to the
last bit and the only difference left is the server. What a peer is told comes in the environment:

    PEER_MODEL   a version's folder with model.toml and, unless the model is null, model.onnx (uint8[n, h, w, c] in)
    PEER_PORT    to listen on, on 127.0.0.1
    PEER_CORES   cores that it may use, 1 or more
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson

from gateway.decoding.imaging import Recipe, Scratch, decode_into
from gateway.models.repository import read_version
from gpuworker.ranking import rank

if TYPE_CHECKING:
    from numpy.typing import NDArray

PORT = int(os.environ.get("PEER_PORT", "8000"))
CORES = int(os.environ.get("PEER_CORES", "1"))
TOP = 5


class Work:
    """Decoder and model of one process. Not for several threads at once: the decoder keeps one scratch buffer."""

    def __init__(self) -> None:
        directory = Path(os.environ["PEER_MODEL"])
        version = read_version(directory)
        self._contract = version.contract
        self._labels = version.labels
        self._recipe, self._scratch = Recipe(self._contract), Scratch()
        self._session = None if self._contract.backend == "fake" else _session(directory / "model.onnx")

    def decode(self, body: bytes) -> NDArray[np.uint8]:
        """Encoded bytes to uint8[h, w, 3], of which the caller is the owner. Raises gateway.errors.UndecodableImage."""
        pixels = np.empty(self._contract.input.shape, np.uint8)
        decode_into(body, pixels, self._recipe, self._scratch)
        return pixels

    def run(self, batch: list[NDArray[np.uint8]]) -> list[dict[str, object]]:
        """Answers to decoded images, one each."""
        if self._session is None:
            # As this project's own null model: the ranks are made once and no pixel is looked at.
            return [self._answer(range(TOP), (1.0, 0.0, 0.0, 0.0, 0.0)) for _ in batch]
        stacked = batch[0][None] if len(batch) == 1 else np.stack(batch)
        scores = self._session.run(None, {self._session.get_inputs()[0].name: stacked})[0]
        index, probability, _ = rank(scores, "softmax", TOP)
        return [self._answer(*row) for row in zip(index.tolist(), probability.tolist(), strict=True)]

    def answer(self, body: bytes) -> dict[str, object]:
        """Everything for one image."""
        return self.run([self.decode(body)])[0]

    def reply(self, body: bytes) -> bytes:
        """Everything for one image, as JSON."""
        return orjson.dumps(self.answer(body))

    def _answer(self, index, probability) -> dict[str, object]:  # noqa: ANN001 - sequences of numbers
        labels = self._labels
        return {
            "prediction": [
                {"class": labels[place] if labels else str(place), "index": place, "probability": share}
                for place, share in zip(index, probability, strict=True)
            ]
        }


def _session(path: Path):  # noqa: ANN202 - ONNX Runtime has no types
    import onnxruntime  # noqa: PLC0415 - the null model does without

    options = onnxruntime.SessionOptions()
    # One process per core, each with one thread: threads of several on one core would only displace each other.
    # On given cores the number has to be said, or it takes the machine's.
    # Source: ONNX Runtime, "Thread management", https://onnxruntime.ai/docs/performance/tune-performance/threading.html
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
