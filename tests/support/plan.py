"""What a seed draws: the size of a world, its models, its load, and which classes of faults it has at all."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import msgspec

from shm.wire import ProfilePoint

if TYPE_CHECKING:
    from collections.abc import Collection

MS = 1_000_000
S = 1_000 * MS

FAULTS = (
    "worker_kill",
    "worker_crash",
    "worker_start_death",
    "worker_hang",
    "worker_slow",
    "worker_failed",
    "worker_broken",
    "worker_poison",
    "worker_spin",
    "worker_stuck",
    "worker_memory",
    "worker_device",
    "changes",
    "spawn_fails",
    "shadow",
    "decoder_poison",
    "decoder_stuck",
    "decoder_kill",
    "decoder_start_death",
    "decoder_hang",
    "decoder_slow",
    "decoder_refuse",
    "decoder_broken",
    "start_hang",
    "cancel",
    "bad_timers",
    "lazy_pump",
    "pokes",
    "slow_reader",
    "bodies_tight",
    "drain",
)
"""Classes of faults; each seed turns whole classes on or off."""

ALIBIS = {"worker_crash", "worker_hang", "worker_spin", "worker_slow", "worker_stuck", "worker_broken", "worker_device"}
"""Faults that look as if an image had crashed its worker. Without them only poison does."""

POISONS = ("crash", "spin", "stop", "kill")
"""What an image does to its worker: crashes it, has it work for ever, stops it, or has somebody kill it."""


class ModelPlan:
    """One model: its line's settings and what a batch of it costs."""

    def __init__(self, draw: Random, longest_ms: int) -> None:
        largest = draw.choice((1, 2, 4, 8, 16, 32))
        sizes = [
            size for size in (1, 2, 4, 8, 16, 32) if size <= largest and (size in (1, largest) or draw.random() < 0.8)
        ]
        base_ns, each_ns, bend = draw.choice(
            ((2 * MS, MS // 20, 0.0), (MS // 10, 4 * MS, 0.02), (MS // 2, MS // 4, 0.0), (20_000, 10_000, 0.0))
        )
        self.points = []
        for size in sizes:
            p50_ns = int(base_ns + size * each_ns * (1 + bend * size))
            self.points.append(ProfilePoint(size, p50_ns, int(p50_ns * draw.uniform(1.0, 1.3))))
        self.times_ns = {point.size: point.p99_ns for point in self.points}
        self.quick_ns = {point.size: point.p50_ns for point in self.points}
        self.leads_ns = dict.fromkeys(sizes, 0)
        """How much longer a batch takes that meets an idle device; 0 where batches do not overlap."""
        self.fits_size = draw.choice(sizes)
        """Larger batches do not fit in memory, in worlds where that matters."""
        self.slot_count = draw.choice((0, 0, 0, 1, 2, 8, 32))
        """0: as many as the gateway would have, see `Plan`."""
        self.queue_max = draw.choice((2, 8, 32, 128))
        self.window_ns = draw.choice((0, 0, 0, MS, 5 * MS, 20 * MS))
        slowest_ns = max(self.times_ns.values())
        self.deadline_ns = int(draw.choice((1.2, 3, 10, 30)) * slowest_ns) + draw.choice((5, 50, 300, longest_ms)) * MS

    def overlap(self, lead_share: float) -> None:
        """A batch is gathered and copied for that share of its time before its device begins with it."""
        self.points = [msgspec.structs.replace(p, lead_ns=int(lead_share * p.p50_ns)) for p in self.points]
        self.leads_ns = {point.size: point.lead_ns for point in self.points}


class Plan:
    """One world. Every figure is drawn here or from the world's own `Random`, never anywhere else."""

    def __init__(self, draw: Random, *, calm: bool = False, faults: Collection[str] = ()) -> None:
        """`calm`: no faults at all, and slots enough. `faults`: just these, instead of those that are drawn."""
        share = draw.choice((0.0, 0.15, 0.3, 0.5, 0.9))
        self.faults = {fault for fault in FAULTS if draw.random() < share}
        if calm:
            self.faults &= {"changes"}
        elif faults:
            self.faults = set(faults)
        self.models = [ModelPlan(draw, 50 if calm else 3000) for _ in range(draw.choice((1, 1, 2, 3)))]
        # From a generator of its own: the worlds without it stay what they were.
        lead_share = Random(self.models[0].points[0].p99_ns).choice((0.0, 0.0, 0.0, 0.1, 0.5))
        for model in self.models:
            model.overlap(lead_share)
        self.worker_count = draw.randint(1, 3)
        self.decoder_count = draw.randint(1, 4)
        self.frame_count_max = draw.choice((1, 2, 8))
        self.is_roomy = calm or all(not model.slot_count for model in self.models)
        """Whether no model runs short of slots, as none does in a real gateway."""
        for model in self.models:
            batches, frames = 2 * self.worker_count + 1, 2 * self.decoder_count
            model.slot_count = (model.slot_count * (not calm)) or max(
                model.times_ns
            ) * batches + self.frame_count_max * frames
        self.restarts_max = draw.choice((0, 2, 5, 5))
        self.restarts_window_ns = draw.choice((1, 3, 10)) * S
        self.poison_share = draw.choice((0.05, 0.05, 0.3))
        self.client_count = draw.choice((0, 2, 20))
        """0: nobody says who he is."""
        self.change_count = draw.choice((1, 2, 4, 8))
        self.overlap_share = 1.0 if calm else draw.choice((0.0, 0.5, 1.0))
        """Of changes, those where a successor starts beside its predecessor."""
        self.bad_version_share = 0.0 if calm else draw.choice((0.0, 0.3))
        self.decoder_hang_ns = draw.choice((50, 200, 1000)) * MS
        self.start_timeout_ns = draw.choice((100, 1000)) * MS
        self.bodies_size = draw.choice((1, 4)) * 1_000_000 if "bodies_tight" in self.faults else 1_000_000_000
        self.request_count = draw.choice((10, 30, 60, 100))
        self.length_ns = draw.choice((50, 300, 1500, 300 if calm else 8000)) * MS
        self.tensor_share = draw.choice((0.0, 0.0, 0.3, 1.0))
        self.many_share = draw.choice((0.0, 0.2, 0.6))
        self.batch_share = draw.choice((0.0, 0.0, 0.5))
        self.tight_share = draw.choice((0.0, 0.3, 0.8))
        self.large_share = draw.choice((0.0, 0.1, 0.5))
