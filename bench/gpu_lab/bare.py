"""The engine alone: a batch that already lies on the card, computed again and again, timed by the card's own clock."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

from gateway.models.repository import read_version
from gpuworker.backend import Setup, open_backend
from gpuworker.device import parse
from gpuworker.gpu.card import Card, Event
from shm.heritage import DeviceGrant

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gpuworker.gpu.backend import CardBackend

_STRETCHES = 5
_LAUNCHES_MIN, _LAUNCHES_MAX = 3, 900
"""In one stretch; a card's queue holds about a thousand."""


class Bare(NamedTuple):
    """ns of a batch: as a recorded graph (0 where it could not be recorded), and begun kernel by kernel."""

    graph_ns: float
    plain_ns: float

    @property
    def best_ns(self) -> float:
        """As the worker runs it: recorded where that is possible."""
        return self.graph_ns or self.plain_ns


def opened(directory: Path, *, engines: Path | None = None) -> CardBackend:
    """The backend of a model, loaded in this process and warmed at every size. Raises InvalidModel, MemoryError."""
    contract = read_version(directory).contract
    grant = DeviceGrant(engine_dir="" if engines is None else str(engines))
    backend: CardBackend = open_backend(contract, directory, Setup(parse("cuda:0"), 1, grant))  # type: ignore[assignment]
    backend.load(lambda *_: None)
    for size in contract.batching.sizes:
        backend.warmup(size)
    return backend


def bare(backend: CardBackend, size: int, seconds: float) -> Bare:
    """Time a warmed size both ways."""
    graph_ns = 0.0
    graph = backend.graphs.get(size)
    if graph is not None:
        graph_ns = timed(lambda: backend.launch(size), seconds)
        del backend.graphs[size]
    try:
        return Bare(graph_ns, timed(lambda: backend.launch(size), seconds))
    finally:
        if graph is not None:
            backend.graphs[size] = graph


def timed(begin: Callable[[], None], seconds: float) -> float:
    """Median ns on the compute stream of what `begin` begins there, over stretches of `seconds` in all."""
    compute, first, last = Card.open().compute, Event(timed=True), Event(timed=True)

    def stretch(count: int) -> float:
        compute.record(first)
        for _ in range(count):
            begin()
        compute.record(last)
        last.wait()
        return last.elapsed_ns(first) / count

    stretch(_LAUNCHES_MIN)
    each = max(1.0, stretch(_LAUNCHES_MIN))
    count = int(min(_LAUNCHES_MAX, max(_LAUNCHES_MIN, seconds * 1e9 / _STRETCHES / each)))
    return statistics.median(stretch(count) for _ in range(_STRETCHES))
