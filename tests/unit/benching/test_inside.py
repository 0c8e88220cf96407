"""Two pages of metrics, and what was counted between them."""

from __future__ import annotations

import pytest

from gateway.bench import inside
from gateway.metrics import Metrics
from gateway.scheduling.ticket import Seal

MS = 1_000_000


def test_only_what_was_counted_between_two_scrapes_and_of_one_model():
    metrics = Metrics()
    metrics.add(0, "m/1")
    metrics.add(1, "other/1")
    line = metrics.models[0]
    line.image_done(1 * MS, 2 * MS, 3 * MS, 4 * MS)
    line.batch_ran(1, Seal.IDLE, MS, MS, MS)
    before = inside.read(metrics.expose())
    for size in (1, 3, 3, 200):
        line.batch_ran(size, Seal.FULL if size > 1 else Seal.IDLE, 1 * MS, 5 * MS, 3 * MS)
        line.image_done(0, 20 * MS, 0, 40 * MS)
    line.image_refused("overloaded")
    metrics.models[1].image_done(0, 0, 0, 0)

    found = inside.between(before, inside.read(metrics.expose()), "m/1")

    assert found is not None
    assert found.batches == {"idle": {"1": 1}, "full": {"4": 2, "more": 1}}
    assert found.batch_images_mean == pytest.approx(207 / 4)
    assert found.images == {"ok": 4, "overloaded": 1}
    assert found.stages_ms["decode"] == pytest.approx(20)
    assert found.stages_ms["infer"] == pytest.approx(40)
    assert list(found.stages_ms) == [stage for stage in inside.STAGE_ORDER if stage in found.stages_ms]
    assert found.parts_ms == pytest.approx({"gather": 1, "run": 5, "write": 3})
    both = inside.between(before, inside.read(metrics.expose()), "")
    assert both is not None
    assert both.images["ok"] == 5


def test_where_nothing_was_counted_there_is_nothing():
    metrics = Metrics()
    metrics.add(0, "m/1")
    page = inside.read(metrics.expose())
    assert inside.between(page, page, "m/1") is None
    assert inside.between({}, inside.read(b"<html>\xff"), "") is None
    assert inside.read(b"a b c") == {}
