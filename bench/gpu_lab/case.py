"""One model on one backend: the engine alone and the worker alone, at every size. Run by `backends`, in a process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.gpu_lab import models
from bench.gpu_lab.bare import bare, opened
from bench.gpu_lab.nvml import Watts
from bench.gpu_lab.worker import AHEAD, Worker
from gateway.errors import InvalidModel

if TYPE_CHECKING:
    from bench.gpu_lab.bare import Bare
    from bench.gpu_lab.notes import Notes
    from bench.gpu_lab.plan import Plan

SEED_SIZE = 10
"""The batch that is compared with as many single runs."""


def sizes_of(plan: Plan, case: models.Case) -> tuple[int, ...]:
    """TensorRT builds for each size, and building takes long."""
    return plan.scale.engine_sizes if case.backend == "tensorrt" else plan.scale.sizes


def measure(plan: Plan, notes: Notes) -> None:
    """`plan.case` is the case."""
    case = models.Case.parse(plan.case)
    folder = Path(plan.folder)
    sizes = sizes_of(plan, case)
    directory = models.write(
        folder / case.slug, case, sizes, side=plan.scale.side, optimization_level=plan.scale.optimization_level
    )
    engines = folder / "engines"
    engines.mkdir(mode=0o700, exist_ok=True)
    begin = time.monotonic()
    try:
        backend = opened(directory, engines=engines)
    except InvalidModel as refusal:
        notes.refused(str(case), refusal)
        return
    load_s = time.monotonic() - begin
    notes.figure(f"load_{case.slug}", load_s, "s")
    found: dict[int, Bare] = {}
    for size in sizes:
        each = found[size] = bare(backend, size, plan.scale.seconds / 2)
        notes.row(
            f"{case}: a batch of the engine alone",
            size=size,
            recorded_us=each.graph_ns / 1e3,
            plain_us=each.plain_ns / 1e3,
            images_per_s=size / each.best_ns * 1e9,
        )
    if len(backend.graphs) < len(sizes):
        notes.remark(f"{case}: sizes {sorted(set(sizes) - set(backend.graphs))} could not be recorded as CUDA graphs")
    backend.close()
    _tell_seed(case, found, notes)
    _measure_worker(plan, case, directory, engines, found, notes)


def _tell_seed(case: models.Case, found: dict[int, Bare], notes: Notes) -> None:
    if 1 in found and SEED_SIZE in found:
        share = found[SEED_SIZE].best_ns / (SEED_SIZE * found[1].best_ns)
        notes.figure(f"batch_{SEED_SIZE}_of_single_{case.slug}", share * 100, "percent")
        notes.result(f"{case}: batch of {SEED_SIZE} against {SEED_SIZE} single runs", f"{share * 100:.0f} %")


def _measure_worker(
    plan: Plan, case: models.Case, directory: Path, engines: Path, found: dict[int, Bare], notes: Notes
) -> None:
    sizes = sorted(found)
    best_rate, best_row = 0.0, ""
    with Worker(directory, slot_count=AHEAD * sizes[-1], engines=engines) as worker:
        notes.figure(f"worker_ready_{case.slug}", worker.ready_s, "s")
        for size in sizes:
            with Watts() as watts:
                rate = worker.rate(size, plan.scale.seconds)
            alone = size / found[size].best_ns * 1e9
            ratio = rate.images_per_s / alone
            notes.row(
                f"{case}: the worker alone, from slots",
                size=size,
                engine_images_per_s=alone,
                worker_images_per_s=rate.images_per_s,
                ratio=ratio,
                compute_share=rate.compute_share or "not told",
                gather_us=rate.gather_us,
                write_us=rate.write_us,
                watts="" if watts.mean is None else watts.mean,
            )
            if rate.images_per_s > best_rate:
                best_rate = rate.images_per_s
                best_row = f"batch {size}; engine alone {alone:,.0f}"
                if rate.compute_share:
                    best_row += f"; compute {rate.compute_share:.0%} of the time"
                best = (ratio, rate.compute_share, watts.mean)
    ratio, share, mean = best
    notes.figure(f"worker_rate_{case.slug}", best_rate, "images/s")
    notes.figure(f"worker_ratio_{case.slug}", ratio, "ratio")
    if share:
        notes.figure(f"compute_share_{case.slug}", share, "ratio")
    if mean:
        notes.figure(f"worker_per_watt_{case.slug}", best_rate / mean, "images/s/W")
    notes.result(f"{case}: worker alone", f"{best_rate:,.0f} images/s, {ratio:.2f} of the engine", best_row)
