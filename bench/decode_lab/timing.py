"""CPU time per image, all ways in turn, round by round, so that a slow minute of the machine is everybody's.

Each turn is a stretch of calls behind a few that warm the caches, as a decoder that does nothing else has them warm.
Every round begins with another way, for it matters what ran before.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bench.decode_lab.rows import Row
    from bench.decode_lab.ways import Way

STRETCH_S = 0.012
"""CPU seconds of one turn, at least one call."""

WARM_S = 0.002
"""CPU seconds before it, at least one call."""

PLAIN_DIVISORS = (1, 4, 8)

CHILD = """
import sys, time, simplejpeg
for line in sys.stdin:
    path, width, height, factor, seconds = line.rstrip("\\n").split("\\t")
    body = open(path, "rb").read()
    def call():
        simplejpeg.decode_jpeg(body, "RGB", min_height=int(height), min_width=int(width), min_factor=int(factor))
    call()
    count, begin = 0, time.process_time_ns()
    while count == 0 or time.process_time_ns() - begin < float(seconds) * 1e9:
        call()
        count += 1
    print((time.process_time_ns() - begin) / count, flush=True)
"""


class PlainTurbo:
    """libjpeg-turbo without its SIMD code, in a child: `JSIMD_FORCENONE` is read once per process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JSIMD_FORCENONE": "1"},
        )

    def microseconds(self, row: Row, divisor: int) -> float:
        """One turn of a row's decode at 1 / `divisor`."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        path = self._folder / "body.jpg"
        path.write_bytes(row.body)
        width, height = -(-row.size[0] // divisor), -(-row.size[1] // divisor)
        factor = divisor if divisor > 1 else 16
        self._child.stdin.write(f"{path}\t{width}\t{height}\t{factor}\t{STRETCH_S}\n")
        self._child.stdin.flush()
        return float(self._child.stdout.readline()) / 1e3

    def close(self) -> None:
        """End the child."""
        self._child.communicate()


def turn(way: Way) -> float:
    """µs of CPU per call of one stretch, every thread of this process counted."""
    _stretch(way, WARM_S)
    return _stretch(way, STRETCH_S) / 1e3


def _stretch(way: Way, seconds: float) -> float:
    """CPU ns per call, over at least one call."""
    count, begin = 0, time.process_time_ns()
    while count == 0 or time.process_time_ns() - begin < seconds * 1e9:
        way()
        count += 1
    return (time.process_time_ns() - begin) / count


def rounds(row: Row, ways: Mapping[str, Way], count: int, plain: PlainTurbo | None = None) -> dict[str, list[float]]:
    """µs per image of each way, one value a round."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for _ in range(count):
        for name in order:
            taken[name].append(turn(ways[name]))
        order.append(order.pop(0))
        if plain is not None and row.kind == "JPEG":
            for divisor in PLAIN_DIVISORS:
                taken.setdefault(f"no SIMD 1/{divisor}", []).append(plain.microseconds(row, divisor))
    return taken


def ratio(taken: Mapping[str, list[float]], over: str, under: str) -> float:
    """How many times `under` `over` takes: the median of the rounds' quotients."""
    return statistics.median(a / b for a, b in zip(taken[over], taken[under], strict=True))
