"""MLPerf's inference scenarios: what a run of each needs, and what it gave. Pure.

Sources: MLCommons, inference_policies/inference_rules.adoc (table of scenarios, appendix on early stopping) and the
LoadGen's mlperf.conf and results. Latency counts from when a query was scheduled. These are its rules for load and
counting; a result that is called MLPerf needs its data, its models, its accuracy run and its LoadGen too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gateway.bench.wish import Load

if TYPE_CHECKING:
    from numpy.typing import NDArray

SECONDS_MIN = 600.0
"""From the first query to the last one that is scheduled or, offline, to the last answer."""

SLACK = 1.01
"""Runs are planned this much longer, for the last query is sent before their end."""

OFFLINE_SAMPLES_MIN = 24_576
MULTI_STREAM_SAMPLES = 8
"""Samples in one query of a multi-stream run."""

CONFIDENCE = 0.99

_PERCENTILES = {Load.SINGLE_STREAM: 0.90, Load.MULTI_STREAM: 0.99, Load.SERVER: 0.99}


class Rule(NamedTuple):
    """One rule, whether it was kept, and the words for it."""

    name: str
    kept: bool
    words: str


class Verdict(NamedTuple):
    """What a scenario gave: `value` in `unit`, nan when there is none; valid when every rule was kept."""

    scenario: str
    metric: str
    value: float
    unit: str
    rules: tuple[Rule, ...]

    @property
    def valid(self) -> bool:
        """Whether every rule was kept."""
        return all(rule.kept for rule in self.rules)


class Run(NamedTuple):
    """What a run gave. `latency_ms`: of each query, from when it was scheduled, inf for one that failed.

    `last_s`: when the last query was scheduled or, offline, answered; from the begin. `rate`: asked for, a second.
    """

    latency_ms: NDArray[np.float64]
    last_s: float
    samples_per_query: int
    rate: float
    bound_ms: float


def at_most(count: int, probability: float) -> NDArray[np.float64]:
    """float64[count + 1]: the binomial distribution's P(k or fewer of `count`), each with `probability`."""
    k = np.arange(1, count + 1)
    # Logarithms: 0.99 to the power of a million is 0 in float64, and its products with huge coefficients are not.
    steps = np.log((count - k + 1) / k) + math.log(probability) - math.log1p(-probability)
    logs = count * math.log1p(-probability) + np.concatenate([[0.0], np.cumsum(steps)])
    summed: NDArray[np.float64] = np.minimum(np.cumsum(np.exp(logs)), 1.0)
    return summed


def over_allowed(count: int, percentile: float) -> int:
    """Of `count` queries so many may take longer than a bound that `percentile` of all are then known to keep.

    Known with CONFIDENCE; -1 when there are too few to know anything. The early-stopping criterion of the LoadGen.
    """
    return int(np.searchsorted(at_most(count, 1 - percentile), 1 - CONFIDENCE, side="right")) - 1


def queries_min(percentile: float) -> int:
    """The least queries of which one may be over: fewer give no estimate."""
    count = 2
    while over_allowed(count, percentile) < 1:
        count += 1
    return count


def estimate_ms(latency_ms: NDArray[np.float64], percentile: float) -> float:
    """The early-stopping estimate: at least `percentile` of queries are this fast, with CONFIDENCE. nan for too few."""
    allowed = over_allowed(len(latency_ms), percentile) if len(latency_ms) else -1
    return float(np.sort(latency_ms)[len(latency_ms) - allowed]) if allowed >= 1 else math.nan


def judge(scenario: Load, run: Run) -> Verdict:
    """What a run of a scenario is worth."""
    failed = int(np.count_nonzero(np.isinf(run.latency_ms)))
    rules = [
        Rule("duration", run.last_s >= SECONDS_MIN, f"{run.last_s:.1f} s of {SECONDS_MIN:g}"),
        Rule("every query answered", failed == 0, f"{failed} failed"),
    ]
    if scenario is Load.OFFLINE:
        samples = len(run.latency_ms) * run.samples_per_query
        words = f"{samples} samples of {OFFLINE_SAMPLES_MIN}"
        rules.append(Rule("samples", samples >= OFFLINE_SAMPLES_MIN, words))
        good = samples - failed * run.samples_per_query
        rate = good / run.last_s if run.last_s else math.nan
        return Verdict(scenario.value, "samples a second", rate, "samples/s", tuple(rules))
    percentile = _PERCENTILES[scenario]
    count = len(run.latency_ms)
    if scenario is Load.SERVER:
        over = int(np.count_nonzero(run.latency_ms > run.bound_ms))
        allowed = over_allowed(count, percentile) if count else -1
        words = f"{over} of {count} queries took over {run.bound_ms:g} ms, {max(allowed, 0)} may"
        if allowed < 0:
            words = f"{count} queries are too few to know"
        rules.append(Rule("latency bound, p99", over <= allowed, words))
        return Verdict(scenario.value, "queries a second within the bound", run.rate, "queries/s", tuple(rules))
    least = queries_min(percentile)
    rules.append(Rule("queries", count >= least, f"{count} queries of {least}"))
    if scenario is Load.MULTI_STREAM:
        words = f"{run.samples_per_query} of {MULTI_STREAM_SAMPLES} in a query"
        rules.append(Rule("samples in a query", run.samples_per_query == MULTI_STREAM_SAMPLES, words))
    name = f"p{100 * percentile:g} latency, early-stopping estimate"
    return Verdict(scenario.value, name, estimate_ms(run.latency_ms, percentile), "ms", tuple(rules))
