"""Clients of a gateway in processes of their own, so that loading it is not what limits it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
PROCESSES_MAX = 4
PATIENCE_S = 90.0
"""Longer than any request may take."""


class Load(NamedTuple):
    """What is sent. `rate`: requests a second, drawn as Poisson arrivals; 0: each connection sends when answered."""

    url: str
    body: Path
    content_type: str
    image_count: int
    """Images in a request."""
    connections: int
    seconds: float
    warmup_s: float
    rate: float = 0.0


class Seen(NamedTuple):
    """What all of them saw. `answered`: requests with a 200, from first to last."""

    latencies_ms: NDArray[np.float64]
    statuses: dict[int, int]
    answered: int
    seconds: float

    @property
    def rate(self) -> float:
        """Requests answered with a 200 each second."""
        return self.statuses.get(200, 0) / self.seconds

    @property
    def refused(self) -> int:
        """Requests that got anything else."""
        return sum(count for status, count in self.statuses.items() if status != 200)


class Clients:
    """Sends a load from its start on; `wait` for what came of it."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._folder = tempfile.TemporaryDirectory(prefix="penstock-clients-")
        cores = len(os.sched_getaffinity(0))
        count = max(1, min(PROCESSES_MAX, cores // 4, load.connections))
        shares = [load.connections // count + (number < load.connections % count) for number in range(count)]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.gpu_lab.generator", self._told(seed, share, count)],
                cwd=ROOT,
            )
            for seed, share in enumerate(shares, 1)
        ]

    def _told(self, seed: int, connections: int, count: int) -> str:
        load = self._load
        return json.dumps(
            {
                **load._asdict(),
                "body": str(load.body),
                "connections": connections,
                "rate": load.rate / count,
                "seed": seed,
                "result": str(self._result(seed)),
            }
        )

    def _result(self, seed: int) -> Path:
        return Path(self._folder.name) / f"{seed}.json"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._folder.cleanup()

    def wait(self) -> Seen:
        """Until the load is over. Raises RuntimeError when a client failed."""
        latencies: list[float] = []
        statuses: dict[int, int] = {}
        answered = 0
        for seed, process in enumerate(self._processes, 1):
            if status := process.wait(self._load.seconds + self._load.warmup_s + PATIENCE_S):
                raise RuntimeError(f"a client ended with {status}; its words are above")
            found = json.loads(self._result(seed).read_text())
            latencies += found["latencies_ms"]
            answered += found["answered"]
            for status, number in found["statuses"].items():
                statuses[int(status)] = statuses.get(int(status), 0) + number
        return Seen(np.array(latencies), statuses, answered, self._load.seconds)


def run(load: Load) -> Seen:
    """Send it and wait."""
    with Clients(load) as clients:
        return clients.wait()
