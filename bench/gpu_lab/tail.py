"""p99 against p50 at nine tenths of the largest rate, in an open loop: arrivals do not wait for answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bench.gpu_lab import clients, models
from bench.gpu_lab.served import loads, serving
from gateway.errors import InvalidModel

if TYPE_CHECKING:
    from bench.gpu_lab.notes import Notes
    from bench.gpu_lab.plan import Plan

SHARE = 0.9
KINDS = ("tensor_1", "tensor_8")


def measure(plan: Plan, notes: Notes) -> None:
    """The first served case."""
    case = models.Case.parse(plan.scale.served[0])
    try:
        with serving(plan, case) as served:
            for name, load in loads(plan, served):
                if name in KINDS:
                    with notes.guarded(f"tail, {case}, {name}"):
                        _measure(name, case, load, notes)
    except InvalidModel as refusal:
        notes.refused(f"tail, {case}", refusal)


def _measure(name: str, case: models.Case, load: clients.Load, notes: Notes) -> None:
    largest = clients.run(load)
    if not largest.answered:
        raise RuntimeError(f"the gateway answered {largest.statuses}")
    seen = clients.run(load._replace(rate=SHARE * largest.rate, seconds=2 * load.seconds))
    if not len(seen.latencies_ms):
        raise RuntimeError("no request was answered in the open loop")
    p50, p99 = (float(np.percentile(seen.latencies_ms, share)) for share in (50, 99))
    notes.row(
        f"tail, {case}, at {SHARE} of the largest rate",
        requests=name,
        largest_requests_per_s=largest.rate,
        sent_per_s=SHARE * largest.rate,
        answered_per_s=seen.rate,
        not_200=seen.refused,
        p50_ms=p50,
        p99_ms=p99,
        ratio=p99 / p50,
    )
    notes.figure(f"tail_ratio_{case.slug}_{name}", p99 / p50, "ratio")
    notes.figure(f"tail_p99_{case.slug}_{name}", p99, "ms")
    notes.result(
        f"tail, {case}, {name}",
        f"p99/p50 {p99 / p50:.2f}",
        f"{p50:.2f} → {p99:.2f} ms at {SHARE} of {largest.rate:,.0f} requests/s; {seen.refused} not 200",
    )
