"""What the server costs on top of the work it serves. Every ratio is taken round by round, interleaved, in one run.

* cpu_ratio_*: CPU per request of all processes of the gateway, against a bare loop in one process that decodes the
  same bytes into a slot and gathers the slot into a batch, with the same libraries and no server.
* small_p99_ratio_with_uploads: p99 of small requests (open loop) beside a stream of 12-megapixel uploads, against
  without.
* throughput_ratio_efficientnet: images/s of EfficientNet-Lite0 through the gateway, against a bare loop
  (decode, model) with the same threads on the same cores.

    python bench/gateway.py [--long] [--only null|uploads|efficientnet]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # else bench/gateway.py would hide the package `gateway`

import argparse
import statistics
import subprocess
import time
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from bench import load, rig
from gateway.decoding.imaging import Recipe, Scratch, decode_into
from gateway.models.repository import read_version

if TYPE_CHECKING:
    from gateway.models.spec import Contract

console = Console()

GATHER_ROWS = 8
"""Rows of the bare loop's batch buffer."""


def bare_null(body: bytes, contract: Contract, seconds: float) -> float:
    """CPU ns per image of decoding `body` into a slot and gathering the slot into a batch."""
    recipe, scratch = Recipe(contract), Scratch()
    slot = np.zeros(contract.input.shape, np.uint8)
    batch = np.zeros((GATHER_ROWS, *contract.input.shape), np.uint8)
    count = 0
    begin, end = time.process_time_ns(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        decode_into(body, slot, recipe, scratch)
        batch[count % GATHER_ROWS] = slot
        count += 1
    return (time.process_time_ns() - begin) / count


def served_null(running: rig.Gateway, body: bytes, connections: int, seconds: float) -> tuple[dict[str, float], float]:
    """(CPU ns per request by role, requests/s) of the null model in a closed loop."""
    before = running.cpu_ns()
    result = uvloop.run(load.closed(f"{running.url}/predictions/null", body, "image/jpeg", connections, 0.0, seconds))
    after = running.cpu_ns()
    count = result.statuses.get(200, 0)
    if set(result.statuses) - {200} or not count:
        raise SystemExit(f"the gateway answered {result.statuses}")
    return {role: (after[role] - before[role]) / count for role in after}, result.rate


def null_ratios(rounds: int, seconds: float) -> dict[str, Any]:
    """cpu_ratio_224_null_c32 and cpu_ratio_1080_null_c32."""
    found: dict[str, Any] = {}
    table = Table("body", "bare µs", "gateway µs", "decoder µs", "worker µs", "all µs", "requests/s", "ratio")
    with rig.temporary_repository() as repository:
        rig.write_null(repository)
        contract = read_version(repository / "null" / "1").contract
        with rig.gateway(repository) as running:
            for name, body in (("224", rig.jpeg(224, 224, 85)), ("1080", rig.jpeg(1920, 1080, 90))):
                served_null(running, body, 32, 1.0)
                bare_null(body, contract, 0.3)
                rows = []
                for _ in range(rounds):
                    bare = bare_null(body, contract, seconds / 2)
                    roles, rate = served_null(running, body, 32, seconds)
                    rows.append((bare, roles, rate, sum(roles.values()) / bare))
                    console.print(f"  {name}: ratio {rows[-1][3]:.2f} at {rate:,.0f} requests/s", style="dim")
                middle = sorted(rows, key=lambda row: row[3])[len(rows) // 2]
                bare, roles, rate, ratio = middle
                table.add_row(
                    name,
                    f"{bare / 1e3:.0f}",
                    *(f"{roles[role] / 1e3:.0f}" for role in ("gateway", "decoder", "worker")),
                    f"{sum(roles.values()) / 1e3:.0f}",
                    f"{rate:,.0f}",
                    f"{ratio:.2f}",
                )
                found[f"cpu_ratio_{name}_null_c32"] = ratio
    console.print(table)
    return found


def upload_ratio(rounds: int, seconds: float) -> dict[str, Any]:
    """small_p99_ratio_with_uploads."""
    small, large = rig.jpeg(224, 224, 85), rig.jpeg(4000, 3000, 85)
    ratios, table = [], Table("round", "p50 ms", "p99 ms", "with uploads p50", "p99", "uploads/s", "ratio")
    with rig.temporary_repository() as repository:
        rig.write_null(repository)
        photo = repository.parent / f"{repository.name}.jpg"
        photo.write_bytes(large)
        try:
            with rig.gateway(repository) as running:
                url = f"{running.url}/predictions/null"
                uvloop.run(load.poisson(url, small, "image/jpeg", 200, 0.0, 1.0))
                for number in range(rounds):
                    quiet = uvloop.run(load.poisson(url, small, "image/jpeg", 200, 0.3, seconds, number))
                    with _uploads(url, photo, seconds + 1.5) as uploads:
                        busy = uvloop.run(load.poisson(url, small, "image/jpeg", 200, 0.8, seconds, number))
                    ratios.append(busy.percentile(99) / quiet.percentile(99))
                    table.add_row(
                        str(number),
                        *(f"{run.percentile(share):.2f}" for run in (quiet, busy) for share in (50, 99)),
                        f"{uploads.rate():.1f}",
                        f"{ratios[-1]:.2f}",
                    )
        finally:
            photo.unlink()
    console.print(table)
    return {"small_p99_ratio_with_uploads": statistics.median(ratios)}


class _uploads:  # noqa: N801 - reads as a function
    """A stream of uploads on one connection, from a process of its own, while the block runs."""

    def __init__(self, url: str, photo: Path, seconds: float) -> None:
        self._command = [
            *(sys.executable, load.__file__, "--url", url, "--file", str(photo), "--connections", "1"),
            *("--closed-only", "--warmup", "0", "--seconds", str(seconds)),
        ]
        self._output = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        time.sleep(0.7)  # the generator imports and connects
        return self

    def __exit__(self, *_: object) -> None:
        self._output, _ = self._process.communicate(timeout=60)

    def rate(self) -> float:
        """Uploads per second."""
        line = next(line for line in self._output.splitlines() if line.startswith("figure load_closed_rate"))
        return float(line.split()[2])


def bare_efficientnet(directory: Path, body: bytes, size: int, threads: int, seconds: float) -> float:
    """Images/s of one process: decode `size` images, run the model on them, again."""
    from gpuworker.backend import Setup, open_backend  # noqa: PLC0415 - imports ONNX Runtime
    from gpuworker.device import parse  # noqa: PLC0415

    contract = read_version(directory).contract
    backend = open_backend(contract, directory, Setup(parse("cpu"), threads))
    backend.load(lambda *_: None)
    backend.warmup(size)
    recipe, scratch = Recipe(contract), Scratch()
    slot = np.zeros(contract.input.shape, np.uint8)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() < begin + seconds:
        for row in backend.staging(size)[:size]:
            decode_into(body, slot, recipe, scratch)
            row[:] = slot.reshape(-1)
        backend.run(size, size)
        count += size
    return count / (time.perf_counter() - begin)


def efficientnet_ratio(rounds: int, seconds: float) -> dict[str, Any]:
    """throughput_ratio_efficientnet."""
    import json  # noqa: PLC0415 - one look
    import urllib.request  # noqa: PLC0415

    from gateway.config import cores  # noqa: PLC0415

    repository = rig.demo_repository()
    directory = repository / "efficientnet_lite0" / "1"
    body = rig.jpeg(500, 375, 90)
    ratios, table = [], Table("round", "batch", "bare images/s", "gateway images/s", "ratio")
    with rig.gateway(repository) as running:
        with urllib.request.urlopen(f"{running.url}/models/efficientnet_lite0") as response:
            size = json.load(response)["versions"][0]["batching"]["size_best"]
        url = f"{running.url}/predictions/efficientnet_lite0"
        uvloop.run(load.closed(url, body, "image/jpeg", 16, 0.0, 1.0))
        for number in range(rounds):
            bare = bare_efficientnet(directory, body, size, cores(), seconds)
            served = uvloop.run(load.closed(url, body, "image/jpeg", 16, 0.5, seconds)).rate
            ratios.append(served / bare)
            table.add_row(str(number), str(size), f"{bare:.0f}", f"{served:.0f}", f"{ratios[-1]:.3f}")
    console.print(table)
    return {"throughput_ratio_efficientnet": statistics.median(ratios)}


PARTS = {"null": null_ratios, "uploads": upload_ratio, "efficientnet": efficientnet_ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="more and longer rounds")
    parser.add_argument("--only", choices=PARTS)
    arguments = parser.parse_args()
    rounds, seconds = (9, 8.0) if arguments.long else (5, 3.0)
    found: dict[str, Any] = {}
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            console.rule(name)
            found |= part(rounds, seconds)
    print("raw results:", rig.save("gateway", found))
    for name, value in found.items():
        rig.figure(name, value, "ratio")


if __name__ == "__main__":
    main()
