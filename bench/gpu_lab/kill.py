"""Kill to free: what the card's memory is before, during and after a worker, and what clients notice of a death."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.gpu_lab import disturbed, models, starved
from bench.gpu_lab.nvml import MIB, Gpu, NoNvml
from bench.gpu_lab.worker import AHEAD, Worker
from gateway.errors import InvalidModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.gpu_lab.notes import Notes
    from bench.gpu_lab.plan import Plan
    from shm.wire import ProfilePoint

TOLERANCE = MIB
"""How near to the baseline memory has to come."""
FREED_S_MAX = 60.0
ENGINES = (("onnxruntime", "float32"), ("tensorrt", "float16"))


class _Memory:
    """The card's memory around one worker after another; without NVML only the times."""

    def __init__(self, notes: Notes) -> None:
        self._gpu: Gpu | None = None
        try:
            self._gpu = Gpu()
        except NoNvml as error:
            notes.remark(f"device memory around kills: not measured: {error}")
        self.baseline = 0

    def settle(self) -> None:
        """Take what is used now as the baseline, once it keeps still."""
        if self._gpu is not None:
            self.baseline = self._gpu.settled()

    def used_mib(self) -> float | None:
        """Over the baseline."""
        return None if self._gpu is None else (self._gpu.used() - self.baseline) / MIB

    def wait_freed(self) -> bool:
        """Until it is at the baseline again; False where nobody knows. Raises TimeoutError."""
        if self._gpu is None:
            return False
        self._gpu.wait_used(lambda used: abs(used - self.baseline) <= TOLERANCE, FREED_S_MAX)
        return True


class _Case(NamedTuple):
    case: models.Case
    directory: Path
    sizes: tuple[int, ...]
    engines: Path

    def worker(self, profile: Sequence[ProfilePoint] = ()) -> Worker:
        return Worker(self.directory, slot_count=AHEAD * self.sizes[-1], engines=self.engines, profile=profile)


def measure(plan: Plan, notes: Notes) -> None:
    """For each engine: workers by themselves, a gateway whose worker dies; in between a card without memory."""
    folder = Path(plan.folder)
    engines = folder / "engines"
    engines.mkdir(mode=0o700, exist_ok=True)
    memory = _Memory(notes)
    # Few sizes: what is looked at is how a worker dies and comes back, and engines of these are built already.
    sizes = plan.scale.engine_sizes
    for backend, precision in ENGINES:
        case = models.Case(plan.scale.models[0], backend, precision)
        directory = models.write(
            folder / f"killed_{case.slug}",
            case,
            sizes,
            side=plan.scale.side,
            optimization_level=plan.scale.optimization_level,
        )
        with notes.guarded(f"kill, {case}"):
            try:
                _measure_case(plan, _Case(case, directory, sizes, engines), memory, notes)
            except InvalidModel as refusal:
                notes.refused(f"kill, {case}", refusal)
                continue
        with notes.guarded(f"kill under a gateway, {case}"):
            disturbed.measure(plan, case, notes)
        if backend == ENGINES[0][0]:
            with notes.guarded("out of memory"):
                starved.measure(plan, case, notes)


def _measure_case(plan: Plan, case: _Case, memory: _Memory, notes: Notes) -> None:
    memory.settle()
    with case.worker() as first:
        loaded = memory.used_mib()
        profile = first.loaded.profile
        first.rate(case.sizes[-1], plan.scale.seconds / 2)
        busy = memory.used_mib()
        begin = time.monotonic()
    known = memory.wait_freed()
    unload_s = time.monotonic() - begin
    _tell(notes, case.case, "loaded", loaded)
    _tell(notes, case.case, "after batches", busy)
    _tell(notes, case.case, "unloaded", memory.used_mib(), unload_s if known else None)
    freed, ready = [], []
    for _ in range(plan.scale.kills):
        with contextlib.closing(case.worker(profile)) as victim:
            ready.append(victim.ready_s)
            for _ in range(AHEAD):
                victim.send(case.sizes[-1])
            victim.receive()
            begin = time.monotonic()
            reaped_s = victim.kill()
            memory.wait_freed()
            total_s = time.monotonic() - begin
            freed.append(total_s)
            _tell(
                notes,
                case.case,
                f"killed mid-batch, reaped in {reaped_s:.3f} s",
                memory.used_mib(),
                total_s if known else None,
            )
    with case.worker(profile) as successor:
        ready.append(successor.ready_s)
        stages = successor.stages
        successor.rate(case.sizes[0], plan.scale.seconds / 10)
    slug = case.case.slug
    for stage, at_s in stages.items():
        notes.row(f"a worker's start, {case.case}", stage=stage, begun_after_s=at_s)
    notes.row(f"a worker's start, {case.case}", stage="ready", begun_after_s=ready[-1])
    notes.figure(f"successor_ready_{slug}", max(ready), "s")
    if not known:
        notes.result(f"kill, {case.case}", f"a successor is ready after {max(ready):.2f} s", "no NVML, no memory")
        return
    notes.figure(f"unloaded_freed_{slug}", unload_s, "s")
    notes.figure(f"killed_freed_{slug}", max(freed), "s")
    notes.result(
        f"kill, {case.case}",
        f"memory back {max(freed):.3f} s after the kill",
        f"{busy:,.0f} MiB → baseline ± 1 MiB; a successor is ready {max(ready):.2f} s after its start",
    )


def _tell(notes: Notes, case: models.Case, moment: str, mib: float | None, seconds: float | None = None) -> None:
    notes.row(
        f"device memory over the baseline, {case}",
        moment=moment,
        mib="not measured" if mib is None else mib,
        after_s="" if seconds is None else seconds,
    )
