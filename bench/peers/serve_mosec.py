"""mosec: its Rust front, one stage of Python workers, one per core."""

from __future__ import annotations

import sys

import orjson
from mosec import Server, Worker
from work import CORES, PORT, Work


class Predict(Worker):
    """Decodes and runs the model: a second stage would send every image through the front once more."""

    def __init__(self) -> None:
        self._work = Work()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[dict[str, object]]:
        return self._work.run([self._work.decode(body) for body in data])

    def serialize(self, data: dict[str, object]) -> bytes:
        return orjson.dumps(data)


if __name__ == "__main__":
    # Batches save frames between front and worker; 1 ms is the shortest wait that it takes, and 8 images fill it.
    # Source: mosec, docstring of Server.append_worker (0 would mean the command line's 10 ms).
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(PORT), "--log-level", "warning", "--capacity", "4096"]
    server = Server()
    server.append_worker(Predict, num=CORES, max_batch_size=8, max_wait_time=1, timeout=30)
    server.run()
