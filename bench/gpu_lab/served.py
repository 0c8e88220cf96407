"""The whole gateway on the card: tensor requests of 1, 8 and 32 images, and JPEGs on the machine's cores."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import rig
from bench.gpu_lab import bodies, clients, models
from bench.gpu_lab.case import sizes_of
from bench.gpu_lab.clients import Load
from bench.gpu_lab.nvml import Watts
from bench.gpu_lab.worker import AHEAD, Worker
from gateway.errors import InvalidModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.gpu_lab.notes import Notes
    from bench.gpu_lab.plan import Plan

WARMUP_S = 1.0
SECONDS_MIN = 0.5
"""Of one load; in less there may be no answer."""
TENSORS = (1, 8, 32)
"""Images of a request."""


class Served(NamedTuple):
    """A gateway that serves one case, and what a worker alone does of it."""

    case: models.Case
    running: rig.Gateway
    side: int
    worker_rate: float

    @property
    def url(self) -> str:
        return f"{self.running.url}/predictions/{self.case.model}"


def settle(engines: Path) -> None:
    """Settings of the gateways that this process starts."""
    os.environ |= {"PENSTOCK_STOP_DELAY_S": "0", "PENSTOCK_ENGINE_DIR": str(engines)}


@contextlib.contextmanager
def serving(plan: Plan, case: models.Case) -> Iterator[Served]:
    """The case's worker alone first, then a gateway around the same model. Raises InvalidModel: it is refused."""
    folder = Path(plan.folder)
    repository = folder / f"served_{case.slug}"
    sizes = sizes_of(plan, case)
    side = plan.scale.side if case.model == "tiny" else 224
    directory = models.write(repository, case, sizes, side=side, optimization_level=plan.scale.optimization_level)
    engines = folder / "engines"
    engines.mkdir(mode=0o700, exist_ok=True)
    with Worker(directory, slot_count=AHEAD * sizes[-1], engines=engines) as worker:
        rate = max(worker.rate(size, plan.scale.seconds).images_per_s for size in sizes[-2:])
    settle(engines)
    with rig.gateway(repository, "--device", "cuda:0") as running:
        yield Served(case, running, side, rate)


def loads(plan: Plan, served: Served) -> Iterator[tuple[str, Load]]:
    """Every kind of request, by name."""
    folder, scale = Path(plan.folder), plan.scale
    seconds = max(SECONDS_MIN, 2 * scale.seconds)
    warmup_s = min(WARMUP_S, seconds)
    for count in TENSORS:
        body = bodies.tensor(folder, count, served.side)
        connections = max(4, scale.connections // count)
        yield (
            f"tensor_{count}",
            Load(served.url, body, bodies.MSGPACK, count, connections, seconds, warmup_s),
        )
    for width, height in ((224, 224), (500, 375)):
        body = bodies.jpeg(folder, width, height)
        connections = max(4, scale.connections // 2)
        yield f"jpeg_{width}", Load(served.url, body, bodies.JPEG, 1, connections, seconds, warmup_s)


def measure(plan: Plan, notes: Notes) -> None:
    """Every served case, every kind of request; the median round counts."""
    for text in plan.scale.served:
        case = models.Case.parse(text)
        with notes.guarded(f"gateway, {case}"):
            try:
                with serving(plan, case) as served:
                    for name, load in loads(plan, served):
                        with notes.guarded(f"gateway, {case}, {name}"):
                            _measure(plan, served, name, load, notes)
            except InvalidModel as refusal:
                notes.refused(f"gateway, {case}", refusal)


def _measure(plan: Plan, served: Served, name: str, load: Load, notes: Notes) -> None:
    rounds = []
    for _ in range(plan.scale.rounds):
        before = served.running.cpu_ns()
        with Watts() as watts:
            seen = clients.run(load)
        after = served.running.cpu_ns()
        if not seen.rate:
            raise RuntimeError(f"the gateway answered {seen.statuses}")
        if seen.refused:
            notes.remark(f"gateway, {served.case}, {name}: {seen.refused} requests were refused: {seen.statuses}")
        images = seen.answered * load.image_count
        cpu_us = {role: (after[role] - before[role]) / images / 1e3 for role in after}
        rounds.append((seen.rate * load.image_count, cpu_us, watts.mean))
    rate, cpu_us, mean = sorted(rounds, key=lambda each: each[0])[len(rounds) // 2]
    ratio = rate / served.worker_rate
    whole = sum(cpu_us.values()) * served.worker_rate / 1e6
    own = cpu_us["gateway"] * served.worker_rate / 1e6
    notes.row(
        f"gateway, {served.case} (worker alone {served.worker_rate:,.0f} images/s)",
        requests=name,
        images_per_s=rate,
        ratio=ratio,
        **{f"{role}_us_per_image": value for role, value in cpu_us.items()},
        cores_for_worker_rate_extrapolated=whole,
        of_that_gateway_process=own,
        images_per_s_per_watt="" if not mean else rate / mean,
    )
    slug = f"{served.case.slug}_{name}"
    notes.figure(f"gateway_rate_{slug}", rate, "images/s")
    notes.figure(f"gateway_ratio_{slug}", ratio, "ratio")
    notes.figure(f"gateway_cpu_{slug}", sum(cpu_us.values()), "us/image")
    notes.figure(f"cores_to_saturate_extrapolated_{slug}", whole, "cores")
    if mean:
        notes.figure(f"gateway_per_watt_{slug}", rate / mean, "images/s/W")
    notes.result(
        f"gateway, {served.case}, {name}",
        f"{rate:,.0f} images/s, {ratio:.2f} of the worker",
        f"{sum(cpu_us.values()):.0f} µs of CPU an image; {whole:.1f} cores for the worker's rate, extrapolated"
        + (f"; the one gateway process would need {own:.1f} of them" if own > 1 else ""),
    )
