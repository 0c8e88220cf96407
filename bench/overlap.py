"""How much of what a worker does beside computing is hidden behind it: batches one at a time, and two.

    python bench/overlap.py                                     on the pretend card: copies of 2 ms, 5 ms of computing
    python bench/overlap.py --model FOLDER --device cuda:0      a version's folder, on a real one

One worker, its slots full of noise, batches of its largest size; a next one is sent as soon as one is answered.
`overlap_share`: of the time that a batch alone takes beyond its computing, the part that costs nothing when the next
one is in flight. 1: the device computes without a pause.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import rig
from gateway.models.repository import read_version
from shm.wire import WorkerReady
from tests.support import pretend
from tests.support.worker_process import Worker, fake, spawning

BATCHES = 100
COPY_MS, COMPUTE_MS = 2.0, 5.0


def period_ms(worker: Worker, size: int, depth: int) -> tuple[float, float]:
    """(time of a batch, of which computing by the device's clock) with `depth` of them in flight, in ms."""
    for number in range(1, depth + 1):
        worker.send(list(range(size)), batch=number)
    begun_ns, computed_ns = time.monotonic_ns(), []
    for number in range(depth + 1, BATCHES + 1):
        computed_ns.append(worker.receive().compute_ns)
        worker.send(list(range(size)), batch=number)
    ended_ns = time.monotonic_ns()
    for _ in range(depth):
        worker.receive()
    return (ended_ns - begun_ns) / len(computed_ns) / 1e6, statistics.median(computed_ns) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a version's folder; its batching.sizes may not go beyond 8")
    parser.add_argument("--device", default="cuda:0")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, spawning() as start:
        if arguments.model is None:
            model = fake(base_ms=COMPUTE_MS)
            settings = {"PENSTOCK_PRETEND_COPY_MS": str(COPY_MS), "PENSTOCK_PRETEND_ENGINE": "1"}
            worker = start(model, device="cuda:0", environment=pretend.environment(folder, **settings))
        else:
            model = (read_version(arguments.model).contract, arguments.model)
            worker = start(model, device=arguments.device)
        if not isinstance(worker.born()[-1], WorkerReady):
            sys.exit("the worker did not come up; its log is above")
        slots = worker.models[0].pixels
        slots[:] = np.random.default_rng(0).integers(0, 256, slots.shape, np.uint8)
        size = model[0].batching.sizes[-1]
        alone_ms, compute_ms = period_ms(worker, size, 1)
        row_ms, _ = period_ms(worker, size, 2)
    rig.figure("overlap_alone_ms", alone_ms, "ms")
    rig.figure("overlap_period_ms", row_ms, "ms")
    rig.figure("overlap_compute_ms", compute_ms, "ms")
    rig.figure("overlap_compute_share", compute_ms / row_ms, "")
    rig.figure("overlap_share", (alone_ms - row_ms) / (alone_ms - compute_ms), "")


if __name__ == "__main__":
    main()
