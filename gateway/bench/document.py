"""A run as plain data: what the JSON report holds, and what the table and the page are drawn from."""

from __future__ import annotations

import math
import os
import platform
from typing import TYPE_CHECKING, Any

import numpy as np

from gateway import __version__
from gateway.bench import mlperf
from gateway.bench.wish import SCENARIOS, Load
from gateway.loadtest.shots import NAMES, OK, percentile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.bench.runs import Outcome, Probe, Traffic
    from gateway.bench.target import Target
    from gateway.bench.wish import Wish

PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.99)
SPANS = 60
"""Points of the lines over time."""

FORM = 1
"""Of this document; grows when a key changes its meaning."""


def document(
    wish: Wish, server: Target, traffic: Traffic, outcome: Outcome, probes: Sequence[Probe], began: str
) -> dict[str, Any]:
    """Everything that is known of a run. `began`: a date for people. Values that are not there are None."""
    shots = outcome.shots
    good = shots.count(OK)
    latency_ms = shots.latency_s(OK) * 1e3
    rate = good / outcome.length_s if outcome.length_s else 0.0
    found: dict[str, Any] = {
        "form": FORM,
        "penstock": __version__,
        "began": began,
        "machine": {"kernel": platform.release(), "cores": len(os.sched_getaffinity(0)), "python": _python()},
        "url": server.address.base + server.path,
        "model": server.model or None,
        "load": _load(wish, outcome),
        "request": {
            "images": traffic.images,
            "bytes_mean": float(np.mean([len(request) for request in traffic.requests])),
        },
        "length_s": outcome.length_s,
        "count": len(shots),
        "good_count": good,
        "failed_count": len(shots) - good,
        "rate": rate,
        "images_rate": rate * traffic.images,
        "statuses": {_name(status): count for status, count in shots.counts().items()},
        "failures": {_name(status): body.decode(errors="replace") for status, body in outcome.kept.items()},
        "latency_ms": {
            **{f"p{share:g}": _known(percentile(latency_ms, share)) for share in PERCENTILES},
            "mean": _known(float(np.mean(latency_ms)) if good else math.nan),
            "max": _known(float(np.max(latency_ms)) if good else math.nan),
        },
        "latency_from_sent_ms": {
            f"p{share:g}": _known(shots.percentile_ms(share, OK, from_sent=True)) for share in PERCENTILES
        },
        "over_time": _over_time(outcome),
        "generator": {**outcome.own._asdict(), "limits": outcome.limits},
        "processes": _processes(outcome),
        "inside": outcome.inside.document() if outcome.inside is not None else None,
        "search": _search(wish, probes) if wish.search else None,
        "mlperf": _scenario(wish, traffic, outcome) if wish.load in SCENARIOS else None,
    }
    return found


def _python() -> str:
    return platform.python_version()


def _load(wish: Wish, outcome: Outcome) -> dict[str, Any]:
    return {
        "kind": wish.load.value,
        "connections": wish.connections,
        "rate": _known(outcome.rate),
        "burst_size": wish.burst_size if wish.load is Load.BURSTS else None,
        "trace": str(wish.trace) if wish.trace is not None else None,
        "bound_ms": wish.bound_ms,
        "percentile": wish.percentile,
        "seed": wish.seed,
        "warmup_s": wish.warmup_s,
    }


def _over_time(outcome: Outcome) -> list[dict[str, Any]]:
    """Equal spans of the run: what was answered in each, and how long that had taken; failures when they were due."""
    shots = outcome.shots
    length = max(outcome.length_s, 1e-9)
    right = shots.status == OK
    ended = np.where(right, shots.answered, np.fmin(np.nan_to_num(shots.sent, nan=0.0), length))
    spans = np.minimum((ended / length * SPANS).astype(np.int64), SPANS - 1)
    latency_ms = (shots.answered - shots.due) * 1e3
    found = []
    for span in range(SPANS):
        here = spans == span
        taken = latency_ms[here & right]
        found.append(
            {
                "at_s": (span + 0.5) * length / SPANS,
                "rate": len(taken) * SPANS / length,
                "failed_rate": int(np.count_nonzero(here & ~right)) * SPANS / length,
                "p50_ms": _known(percentile(taken, 50)),
                "p99_ms": _known(percentile(taken, 99)),
            }
        )
    return found


def _processes(outcome: Outcome) -> list[dict[str, Any]]:
    """The server's processes; their CPU time per request that was answered, whatever the answer was."""
    answered = max(int(np.count_nonzero(np.isfinite(outcome.shots.answered))), 1)
    return [
        {
            "pid": process.pid,
            "role": process.role,
            "cpu_us_per_request": spent / 1e3 / answered,
            "cpu_share": spent / 1e9 / outcome.length_s if outcome.length_s else 0.0,
        }
        for process, spent in sorted(outcome.cpu_ns.items())
    ]


def _search(wish: Wish, probes: Sequence[Probe]) -> dict[str, Any]:
    confirmed = [probe.rate for probe in probes if probe.met and probe.confirms]
    return {
        "bound_ms": wish.bound_ms,
        "percentile": wish.percentile,
        "rate": confirmed[0] if confirmed else None,
        "probes": [{**probe._asdict(), "tail_ms": _known(probe.tail_ms)} for probe in probes],
    }


def _scenario(wish: Wish, traffic: Traffic, outcome: Outcome) -> dict[str, Any]:
    shots = outcome.shots
    last_s = float(shots.due[-1]) if len(shots) and wish.load is not Load.OFFLINE else outcome.length_s
    run = mlperf.Run(outcome.latency_ms(), last_s, traffic.images, outcome.rate, wish.bound_ms or math.inf)
    verdict = mlperf.judge(wish.load, run)
    return {
        "scenario": verdict.scenario,
        "metric": verdict.metric,
        "value": _known(verdict.value),
        "unit": verdict.unit,
        "valid": verdict.valid,
        "rules": [rule._asdict() for rule in verdict.rules],
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _name(status: int) -> str:
    return NAMES.get(status, str(status))
