"""What grows with what: CPU per request and memory against connections, models, workers, images and the queue.

Every part has a null model behind a real gateway, a 224x224 JPEG, and CPU of all processes. A curve is called flat,
falling or linear by least squares (bench/growth_lab/fits.py); figures are

* growth_PART_cpu_rise: CPU per request (per image for `images` and `queue`) at the largest size over the lowest.
* growth_PART_cpu_slope_us, growth_PART_memory_slope_kib: per connection, model, worker or image, by regression.

`soak` sends a million requests to one gateway, in a hundred pieces, and says what was found so far after each:

* soak_p99_drift: p99 of the last tenth of the requests over that of the first, with its noise.
* soak_memory_slope_kib: resident memory of the gateway per 100,000 requests, by regression without the first tenth of
  the pieces, with its noise (two standard errors, counted for values that hang together).

    python bench/growth.py [--quick] [--only PART ...] [--rounds 3] [--plots DIR]
    python bench/growth.py soak [--requests 1000000] [--minutes 20] [--plots DIR]

10,000 connections take as many descriptors here and in the gateway: `ulimit -Hn` must be 11,000 or more, or the sizes
above it are left out, and that is said.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # else bench/gateway.py would hide the package `gateway`

import argparse
from typing import Any

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from bench import rig
from bench.growth_lab import crowd, fits, parts, plots, soak

console = Console(width=None if sys.stdout.isatty() else 150)

FDS_RESERVED = 512
"""Descriptors that are no connections."""

ROLES = ("gateway", "decoder", "worker")

Found = tuple[parts.Part, list[parts.Point], fits.Fit, fits.Fit]


def chosen_sizes(part: parts.Part, effort: str, connections_max: int) -> tuple[int, ...]:
    """The sizes of a part that descriptors allow; what is left out is said."""
    sizes: tuple[int, ...] = {"full": part.sizes, "quick": part.quick, "small": part.small}[effort]
    if part.name in ("active", "idle"):
        left = tuple(size for size in sizes if size <= connections_max)
        if left != sizes:
            console.print(
                f"  {part.name}: descriptors allow {connections_max} connections; left out {sizes[len(left) :]}"
            )
        return left
    return sizes


def table(part: parts.Part, points: list[parts.Point], cpu: fits.Fit, memory: fits.Fit, noise: float) -> Table:
    """One part, size by size."""
    shown = Table(
        part.what,
        *(f"{role} µs" for role in ROLES),
        "all µs",
        f"{part.per}s/s",
        *(f"{role} MiB" for role in ROLES),
        title=f"{part.name}: CPU per {part.per} is {cpu.kind} (rise {cpu.rise:.2f}, noise {noise:.0%}), "
        f"memory {memory.kind}",
    )
    for point in points:
        shown.add_row(
            f"{point.size:,}",
            *(f"{point.cpu_us[role]:.1f}" for role in ROLES),
            f"{point.cpu_total_us:.1f}",
            f"{point.rate:,.0f}",
            *(f"{point.memory[role] / 2**20:.1f}" for role in ROLES),
        )
    return shown


def figures(found: list[Found]) -> dict[str, tuple[float, str]]:
    """Name → (value, unit), of all parts."""
    made: dict[str, tuple[float, str]] = {}
    for part, _, cpu, memory in found:
        made[f"growth_{part.name}_cpu_rise"] = cpu.rise, "ratio"
        made[f"growth_{part.name}_cpu_slope_us"] = cpu.slope, "us"
        made[f"growth_{part.name}_memory_slope_kib"] = memory.slope / 1024, "KiB"
    return made


def grow(arguments: argparse.Namespace) -> None:
    """All parts that were asked for."""
    size = "small" if arguments.small else "quick" if arguments.quick else "full"
    connections_max = crowd.raise_fd_limit() - FDS_RESERVED
    requests = arguments.requests or {"small": 32, "quick": 2000, "full": 8000}[size]
    effort = parts.Effort(requests, arguments.rounds or (1 if size == "small" else 3), connections_max)
    found: list[Found] = []
    raw: dict[str, Any] = {}
    for part in parts.PARTS:
        if arguments.only and part.name not in arguments.only:
            continue
        sizes = chosen_sizes(part, size, connections_max)
        if len(sizes) < 2:
            continue
        with console.status(f"{part.name}: {part.what}, {sizes}"):
            points, noise, took_s = uvloop.run(parts.run(part, effort, sizes))
        cpu = fits.fit(sizes, [point.cpu_total_us for point in points], noise)
        memory = fits.fit(sizes, [point.memory_total for point in points])
        found.append((part, points, cpu, memory))
        raw[part.name] = {
            "points": [point._asdict() for point in points],
            "cpu": cpu._asdict(),
            "memory": memory._asdict(),
            "noise_share": noise,
            "seconds": took_s,
        }
        console.print(table(part, points, cpu, memory, noise))
    print("raw results:", rig.save("growth", raw))
    if arguments.plots is not None:
        arguments.plots.mkdir(parents=True, exist_ok=True)
        print("plot:", plots.growth(found, arguments.plots / "growth.png"))
    for name, (value, unit) in figures(found).items():
        rig.figure(name, value, unit)


def endure(arguments: argparse.Namespace) -> None:
    """The soak."""
    crowd.raise_fd_limit()
    seconds_max = arguments.minutes * 60

    def progress(pieces: list[soak.Piece]) -> None:
        last = pieces[-1]
        if len(pieces) % 10 == 0 or len(pieces) == 1:
            count = sum(len(piece.latencies) for piece in pieces)
            p50, p99 = (1e3 * np.percentile(last.latencies, share) for share in (50, 99))
            console.print(
                f"  {count:,} requests: p50 {p50:.2f} ms, p99 {p99:.2f} ms, {last.cpu_us:.0f} µs,",
                f"gateway {last.memory['gateway'] / 2**20:.2f} MiB",
                style="dim",
            )

    pieces = uvloop.run(soak.run(arguments.requests or 1_000_000, seconds_max, progress))
    account = soak.judge(pieces)
    found = account.figures()
    for role, slope in account.memory.items():
        kib = soak.REQUESTS_SHOWN / soak.KIB
        verdict = "0 within noise" if slope.is_zero else "not 0"
        console.print(
            f"  {role}: {slope.slope * kib:+.1f} ± {slope.noise * kib:.1f} KiB in 100,000 requests, {verdict}"
        )
    raw = {
        "pieces": [
            {
                "p50_ms": 1e3 * float(np.percentile(piece.latencies, 50)),
                "p99_ms": 1e3 * float(np.percentile(piece.latencies, 99)),
                "memory": piece.memory,
                "cpu_us": piece.cpu_us,
            }
            for piece in pieces
        ],
        "figures": {name: value for name, (value, _) in found.items()},
    }
    print("raw results:", rig.save("soak", raw))
    if arguments.plots is not None:
        arguments.plots.mkdir(parents=True, exist_ok=True)
        print("plot:", plots.soak(pieces, arguments.plots / "soak.png"))
    for name, (value, unit) in found.items():
        rig.figure(name, value, unit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("grow", "soak"), default="grow")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in parts.PARTS], help="these parts")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under two minutes")
    parser.add_argument("--small", action="store_true", help="the smallest that runs at all, for tests")
    parser.add_argument("--requests", type=int, help="at each size, default 8,000; of a soak, default 1,000,000")
    parser.add_argument("--rounds", type=int, help="measurements of each size, default 3")
    parser.add_argument("--minutes", type=float, default=30.0, help="a soak ends after that, with what it has")
    parser.add_argument("--plots", type=Path, help="folder for pictures")
    arguments = parser.parse_args()
    if arguments.what == "soak":
        endure(arguments)
    else:
        grow(arguments)


if __name__ == "__main__":
    main()
