"""The rules of MLPerf's scenarios, held against numbers that its LoadGen printed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gateway.bench import mlperf
from gateway.bench.mlperf import Run, judge
from gateway.bench.wish import Load


@pytest.mark.parametrize(("percentile", "least"), [(0.90, 64), (0.99, 662)])
def test_the_least_queries_are_the_rules(percentile, least):
    # "Need to process at least 64 queries", and multi-stream's min_query_count.
    assert mlperf.queries_min(percentile) == least


@pytest.mark.parametrize(("count", "discarded"), [(2048, 172), (2116, 178), (4_776_846, 476_158)])
def test_as_many_are_discarded_as_the_loadgen_says(count, discarded):
    # Summaries of published results: "Would discard N highest latency queries".
    assert mlperf.over_allowed(count, 0.90) - 1 == discarded


def test_a_distribution_adds_up():
    assert mlperf.at_most(3, 0.5) == pytest.approx([1 / 8, 4 / 8, 7 / 8, 1.0])
    assert mlperf.at_most(1_000_000, 0.01)[-1] == pytest.approx(1.0)


def test_an_estimate_is_slower_than_the_plain_percentile():
    latency_ms = np.arange(1.0, 65.0)
    assert mlperf.estimate_ms(latency_ms[::-1], 0.90) == 64.0
    assert math.isnan(mlperf.estimate_ms(latency_ms[:63], 0.90))
    assert math.isnan(mlperf.estimate_ms(np.empty(0), 0.90))


def run_of(count, *, over=0, failed=0, last_s=600.0, samples=1) -> Run:
    latency_ms = np.full(count, 10.0)
    latency_ms[:over] = 21.0
    latency_ms[:failed] = math.inf
    return Run(latency_ms, last_s, samples, 100.0, 20.0)


def broken(scenario, run) -> list[str]:
    return [rule.name for rule in judge(scenario, run).rules if not rule.kept]


def test_a_single_stream_run():
    verdict = judge(Load.SINGLE_STREAM, run_of(64))
    assert (verdict.valid, verdict.value, verdict.unit) == (True, 10.0, "ms")
    assert broken(Load.SINGLE_STREAM, run_of(63)) == ["queries"]
    assert broken(Load.SINGLE_STREAM, run_of(64, last_s=599.9)) == ["duration"]
    assert broken(Load.SINGLE_STREAM, run_of(64, failed=1)) == ["every query answered"]


def test_a_multi_stream_run_has_eight_samples_in_a_query():
    assert judge(Load.MULTI_STREAM, run_of(662, samples=8)).valid
    assert broken(Load.MULTI_STREAM, run_of(661, samples=4)) == ["queries", "samples in a query"]


def test_a_server_run_keeps_its_bound_for_99_percent_and_is_sure_of_it():
    assert judge(Load.SERVER, run_of(459)).valid
    assert broken(Load.SERVER, run_of(458)) == ["latency bound, p99"]
    assert judge(Load.SERVER, run_of(662, over=1)).valid
    assert broken(Load.SERVER, run_of(661, over=1)) == ["latency bound, p99"]
    # Exactly 1 in 100 of few is no proof.
    assert broken(Load.SERVER, run_of(1000, over=10)) == ["latency bound, p99"]
    assert judge(Load.SERVER, run_of(10_000, over=70)).value == 100.0
    assert "too few to know" in judge(Load.SERVER, run_of(100)).rules[-1].words
    assert "too few to know" in judge(Load.SERVER, run_of(0)).rules[-1].words


def test_an_offline_run_counts_samples():
    verdict = judge(Load.OFFLINE, run_of(3072, samples=8))
    assert (verdict.valid, verdict.value) == (True, pytest.approx(24_576 / 600))
    assert broken(Load.OFFLINE, run_of(3071, samples=8)) == ["samples"]
    assert judge(Load.OFFLINE, run_of(30_000, failed=6000)).value == pytest.approx(40.0)
