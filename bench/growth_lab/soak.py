"""The soak of bench/growth.py: very many requests to one gateway, in pieces; is the last one served as the first was?

After each piece memory is read and the metrics are scraped, as whoever watches a gateway does: observations wait for a
scrape, up to 8,192 of each kind. What was found so far is handed over after each piece, so that an end that comes early
loses nothing.
"""

from __future__ import annotations

import time
import urllib.request
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench import rig
from bench.growth_lab import fits
from bench.growth_lab.parts import crowd, message, served

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTIONS = 32

WARM_SHARE = 0.1
"""Of the pieces, at the begin: what is kept for ever is taken then, and the slope is that of the rest."""

PIECES = 100

PIECES_MIN = 5
"""A soak that runs out of time goes on until it has so many: fewer say nothing."""

REQUESTS_SHOWN = 100_000
"""What a slope of memory is told for."""

KIB = 1024


class Piece(NamedTuple):
    """One piece of a soak. Memory is resident bytes by role; latencies in s, as they came."""

    latencies: np.ndarray
    memory: dict[str, int]
    cpu_us: float
    """Per request, all processes."""


class Soak(NamedTuple):
    """What a soak said."""

    requests: int
    drift: float
    drift_noise: float
    memory: dict[str, fits.Slope]
    """By role: bytes per request."""

    def figures(self) -> dict[str, tuple[float, str]]:
        """Name → (value, unit)."""
        shown = REQUESTS_SHOWN / KIB
        gateway = self.memory["gateway"]
        unit = f"KiB/{REQUESTS_SHOWN}-requests"
        return {
            "soak_requests": (self.requests, "requests"),
            "soak_p99_drift": (self.drift, "ratio"),
            "soak_p99_drift_noise": (self.drift_noise, "ratio"),
            "soak_memory_slope_kib": (gateway.slope * shown, unit),
            "soak_memory_noise_kib": (gateway.noise * shown, unit),
            "soak_children_memory_slope_kib": (
                sum(slope.slope for role, slope in self.memory.items() if role != "gateway") * shown,
                unit,
            ),
        }


def judge(pieces: list[Piece]) -> Soak:
    """The account of a soak. Raises ValueError when it ended with fewer than five pieces."""
    warm = max(1, int(len(pieces) * WARM_SHARE))
    ends = np.cumsum([len(piece.latencies) for piece in pieces])
    memory = {
        role: fits.slope(ends[warm:], [piece.memory[role] for piece in pieces[warm:]]) for role in pieces[0].memory
    }
    return Soak(int(ends[-1]), *fits.drift([piece.latencies for piece in pieces]), memory)


async def run(requests: int, seconds_max: float, progress: Callable[[list[Piece]], Any]) -> list[Piece]:
    """Send `requests`, or as many as `seconds_max` allow, in equal pieces. `progress` is told after each."""
    body = rig.jpeg(224, 224, 85)
    each = max(CONNECTIONS, requests // PIECES)
    pieces: list[Piece] = []
    with served(["m"]) as running:
        ours = message(running, "m", body)
        async with crowd(running) as clients:
            await clients.ask([ours], connections=CONNECTIONS, count=min(each, 2000))
            _scrape(running)
            end = time.monotonic() + seconds_max
            for _ in range(max(1, requests // each)):
                before = sum(running.cpu_ns().values())
                await clients.ask([ours], connections=CONNECTIONS, count=each)
                used = sum(running.cpu_ns().values()) - before
                _scrape(running)
                pieces.append(Piece(clients.check(), running.rss(), used / 1e3 / each))
                progress(pieces)
                if len(pieces) >= PIECES_MIN and time.monotonic() > end:
                    break
    return pieces


def _scrape(running: rig.Gateway) -> None:
    with urllib.request.urlopen(running.url + "/metrics", timeout=10) as answer:
        answer.read()
