"""What is counted comes out as Prometheus wants it, and folding early or late makes no difference."""

from __future__ import annotations

import itertools
import random

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import metrics
from gateway.metrics import STAGES, TABLE, Histograms, Metrics
from gateway.scheduling.ticket import Seal

BOUNDS = (0.1, 0.5, 1.0)


def test_a_value_on_a_bound_is_in_its_bucket():
    histograms = Histograms(BOUNDS, 1)
    for value in (0.1, 0.1000001, 0.5, 1.0, 1.5, 0.0):
        histograms.observe((value,))
    buckets, total = histograms.buckets(0)
    assert buckets == [("0.1", 2.0), ("0.5", 4.0), ("1.0", 5.0), ("+Inf", 6.0)]
    assert total == pytest.approx(3.2000001)


def test_nothing_observed_is_nothing():
    assert Histograms(BOUNDS, 2).buckets(1) == ([("0.1", 0.0), ("0.5", 0.0), ("1.0", 0.0), ("+Inf", 0.0)], 0.0)


def test_columns_are_kept_apart_and_scaled():
    histograms = Histograms(BOUNDS, 2, 1e-9)
    histograms.observe((50_000_000, 2_000_000_000))
    histograms.observe((400_000_000, 300_000_000))
    assert [count for _, count in histograms.buckets(0)[0]] == [1, 2, 2, 2]
    assert [count for _, count in histograms.buckets(1)[0]] == [0, 1, 1, 2]
    assert [histograms.buckets(column)[1] for column in (0, 1)] == pytest.approx([0.45, 2.3])


def test_folding_as_it_grows_is_the_same_as_folding_at_the_end(monkeypatch):
    draw = random.Random(3)
    values = [draw.expovariate(2.0) for _ in range(1000)]
    found = []
    for fold_count in (1, 7, 1000, 10_000):
        monkeypatch.setattr(metrics, "FOLD_COUNT", fold_count)
        histograms = Histograms(BOUNDS, 1)
        for number, value in enumerate(values):
            histograms.observe((value,))
            if number % 333 == 0:
                histograms.buckets(0)  # a scrape in between
        found.append(histograms.buckets(0))
    for buckets, total in found:
        assert buckets == found[0][0]
        assert total == pytest.approx(sum(values))


def test_observations_are_bounded_between_scrapes():
    histograms = Histograms(BOUNDS, 1)
    for _ in range(3 * metrics.FOLD_COUNT + 1):
        histograms.observe((0.2,))
    assert len(histograms._fresh) == 1


def metrics_of(*names: str) -> Metrics:
    made = Metrics()
    for index, name in enumerate(names):
        made.add(index, name)
    return made


def counted() -> Metrics:
    made = metrics_of("cats/1", 'odd"\\\n/2')
    model = made.models[0]
    model.image_done(1_000_000, 2_000_000, 3_000_000, 4_000_000)
    model.image_refused("undecodable_image")
    model.image_refused("undecodable_image")
    model.request_done(5_000_000, 6_000_000, 7_000_000)
    model.request_refused("overloaded")
    model.batch_ran(3, Seal.FULL, 1_000_000, 2_000_000, 3_000_000)
    model.client_closed += 1
    return made


def samples(made: Metrics) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(made.expose().decode())
        for sample in family.samples
    }


def test_every_count_is_where_its_row_says():
    found = samples(counted())
    assert found["penstock_images_total", "ok", "cats/1"] == 1
    assert found["penstock_images_total", "undecodable_image", "cats/1"] == 2
    assert found["penstock_requests_total", "ok", "cats/1"] == 1
    assert found["penstock_requests_total", "overloaded", "cats/1"] == 1
    assert found["penstock_client_closed_total", "cats/1"] == 1
    assert found["penstock_batch_images_count", "cats/1", "full"] == 1
    assert found["penstock_batch_images_sum", "cats/1", "full"] == 3
    assert found["penstock_batch_images_count", "cats/1", "window"] == 0
    assert found["penstock_request_seconds_sum", "cats/1"] == pytest.approx(0.007)
    for stage, milliseconds in zip(STAGES, (5, 1, 2, 3, 4, 6), strict=True):
        assert found["penstock_stage_seconds_sum", "cats/1", stage] == pytest.approx(milliseconds / 1000)
        assert found["penstock_stage_seconds_count", "cats/1", stage] == 1


def test_what_a_gpu_computed_is_there_only_where_it_is_known():
    made = counted()
    parts = ("gather", "run", "write")
    found = samples(made)
    assert {key[2] for key in found if key[0] == "penstock_batch_seconds_sum" and key[1] == "cats/1"} == set(parts)
    made.models[0].batch_ran(3, Seal.FULL, 1_000_000, 9_000_000, 3_000_000, 4_000_000)
    made.models[0].batch_ran(3, Seal.FULL, 1_000_000, 9_000_000, 3_000_000, 0)
    found = samples(made)
    assert found["penstock_batch_seconds_sum", "cats/1", "compute"] == pytest.approx(0.004)
    assert found["penstock_batch_seconds_count", "cats/1", "compute"] == 1
    assert found["penstock_batch_seconds_count", "cats/1", "run"] == 3


def test_a_shadow_is_counted_under_both_versions():
    made = Metrics()
    made.shadow("cats/1", "2").image_done("same", 2)
    made.shadow("cats/1", "2").image_done("same")
    made.shadow("cats/1", "2").differed(0.03)
    made.shadow("cats/1", "3").image_done("refused")
    found = samples(made)
    assert found["penstock_shadow_images_total", "cats/1", "same", "2"] == 3
    assert found["penstock_shadow_images_total", "cats/1", "refused", "3"] == 1
    assert found["penstock_shadow_difference_sum", "cats/1", "2"] == pytest.approx(0.03)
    assert found["penstock_shadow_difference_bucket", "0.01", "cats/1", "2"] == 0
    assert found["penstock_shadow_difference_bucket", "0.05", "cats/1", "2"] == 1
    assert found["penstock_shadow_difference_count", "cats/1", "3"] == 0


def test_an_odd_name_is_escaped_and_comes_back():
    assert samples(counted())["penstock_client_closed_total", 'odd"\\\n/2'] == 0


def test_every_row_is_there_and_described_before_anything_happened():
    families = {family.name: family for family in text_string_to_metric_families(metrics_of("m/1").expose().decode())}
    assert set(families) == {row.name for row in TABLE}
    assert all((families[row.name].type, families[row.name].documentation) == (row.kind, row.help) for row in TABLE)


def test_the_worst_lag_is_that_since_the_last_scrape():
    made = Metrics()
    made.loop_lag_s, made.loop_lag_max_s = 0.25, 0.5
    assert samples(made)["penstock_loop_lag_max_seconds",] == 0.5
    again = samples(made)
    assert (again["penstock_loop_lag_seconds",], again["penstock_loop_lag_max_seconds",]) == (0.25, 0.0)


def test_probes_are_asked_at_each_scrape():
    made, numbers = Metrics(), itertools.count(1)
    made.probes.append(lambda: [("penstock_connections", (), float(next(numbers)))])
    assert [samples(made)["penstock_connections",] for _ in range(3)] == [1, 2, 3]


def test_a_probe_with_the_wrong_labels_is_our_bug():
    made = Metrics()
    made.probes.append(lambda: [("penstock_connections", ("x",), 1.0)])
    with pytest.raises(AssertionError, match="penstock_connections"):
        made.expose()
