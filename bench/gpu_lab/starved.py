"""A card without memory, on purpose: another process takes it, before a model is loaded and after. Nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench import rig
from bench.gpu_lab import bodies, clients, models
from bench.gpu_lab.clients import Load
from bench.gpu_lab.hog import holding
from bench.gpu_lab.nvml import MIB, Gpu, NoNvml
from bench.gpu_lab.served import settle
from bench.gpu_lab.worker import Worker
from gateway.errors import InvalidModel

if TYPE_CHECKING:
    from bench.gpu_lab.notes import Notes
    from bench.gpu_lab.plan import Plan

SMALL = (1, 4)
"""Batch sizes that are to fit; of `Scale.starved_sizes` the largest are not."""
REQUEST_IMAGES = 8
READY_S_MAX = 40.0
"""A model that is refused for want of memory never gets ready."""
SHARE = 0.5
"""Of what the large sizes take over the small ones, so much is free."""


def measure(plan: Plan, case: models.Case, notes: Notes) -> None:
    """Find what sizes take, leave less than that, and send requests."""
    folder, sizes = Path(plan.folder), plan.scale.starved_sizes
    side = plan.scale.side if case.model == "tiny" else 224
    try:
        small = _taken(models.write(folder / "starved_small", case, SMALL, side=side), SMALL)
        repository = folder / "starved_large"
        large = _taken(models.write(repository, case, sizes, side=side), sizes)
    except (InvalidModel, NoNvml) as refusal:
        notes.refused("out of memory on purpose", refusal)
        return
    leave = int(small + SHARE * (large - small))
    body = bodies.tensor(folder, REQUEST_IMAGES, side)
    settle(folder / "engines")
    for moment, loaded_first in (("while it loads", False), ("once it is loaded", True)):
        with notes.guarded(f"out of memory {moment}"):
            seen = (
                _loaded_then_starved(repository, case, body)
                if loaded_first
                else _starved(repository, case, body, leave)
            )
            slug = "after_load" if loaded_first else "at_load"
            answered, refused = seen.statuses.get(200, 0), seen.refused
            notes.figure(f"starved_refused_{slug}", refused, "requests")
            left = "next to nothing" if loaded_first else f"{leave / MIB:,.0f} MiB"
            notes.result(
                f"out of memory {moment}",
                f"{answered} requests of {REQUEST_IMAGES} images answered, {refused} not",
                f"{left} free; sizes {list(sizes)} take {large / MIB:,.0f} MiB, {list(SMALL)} {small / MIB:,.0f}",
            )
            if refused or not answered:
                notes.problem(f"out of memory {moment}", f"requests were answered {seen.statuses}")


def _taken(directory: Path, sizes: tuple[int, ...]) -> int:
    """Bytes of the card that a worker takes with these sizes. Raises InvalidModel, NoNvml."""
    gpu = Gpu()
    before = gpu.settled()
    with Worker(directory, slot_count=sizes[-1]):
        taken = gpu.used() - before
    gpu.wait_used(lambda used: used <= before + MIB, 60.0)
    return taken


def _starved(repository: Path, case: models.Case, body: Path, leave: int) -> clients.Seen:
    with holding(leave), rig.gateway(repository, "--device", "cuda:0", ready_timeout_s=READY_S_MAX) as running:
        return clients.run(_load(running, case, body))


def _loaded_then_starved(repository: Path, case: models.Case, body: Path) -> clients.Seen:
    with rig.gateway(repository, "--device", "cuda:0") as running, holding(0):
        return clients.run(_load(running, case, body))


def _load(running: rig.Gateway, case: models.Case, body: Path) -> Load:
    return Load(f"{running.url}/predictions/{case.model}", body, bodies.MSGPACK, REQUEST_IMAGES, 4, 1.0, 0.0)
