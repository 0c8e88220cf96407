"""What a Penstock server counted between two scrapes of /metrics: batches by seal reason, stages, images by outcome."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""(name, labels in order) → value."""

STAGE_ORDER = ("read", "decode_queue", "decode", "batch_queue", "infer", "respond")


class Inside(NamedTuple):
    """`batches`: by seal reason, how many batches of up to so many images. `stages_ms`: mean time of an image in each.

    `parts_ms`: mean time of a batch in a worker, by part. `images`: by outcome. `batch_images_mean`: nan without one.
    """

    batches: dict[str, dict[str, int]]
    batch_images_mean: float
    stages_ms: dict[str, float]
    parts_ms: dict[str, float]
    images: dict[str, int]

    def document(self) -> dict[str, Any]:
        """As plain data."""
        mean = None if math.isnan(self.batch_images_mean) else self.batch_images_mean
        return {**self._asdict(), "batch_images_mean": mean}


def read(page: bytes) -> Samples:
    """The samples of a Prometheus page; empty of one that is none."""
    found: Samples = {}
    try:
        for family in text_string_to_metric_families(page.decode()):
            for sample in family.samples:
                found[sample.name, tuple(sorted(sample.labels.items()))] = float(sample.value)
    except ValueError:
        return {}
    return found


def between(before: Samples, after: Samples, model: str) -> Inside | None:
    """What was counted of `model` (NAME/VERSION; "" for all) between two pages; None where nothing was."""
    grown: dict[str, list[tuple[dict[str, str], float]]] = {}
    for (name, labels), value in after.items():
        more = value - before.get((name, labels), 0.0)
        table = dict(labels)
        if more > 0 and (not model or table.get("model") == model):
            grown.setdefault(name, []).append((table, more))
    images: dict[str, int] = {}
    for table, more in grown.get("penstock_images_total", ()):
        images[table["code"]] = images.get(table["code"], 0) + round(more)
    if not images:
        return None
    batches = _batches(grown.get("penstock_batch_images_bucket", []))
    count = sum(more for _, more in grown.get("penstock_batch_images_count", ()))
    summed = sum(more for _, more in grown.get("penstock_batch_images_sum", ()))
    stages = _means_ms(grown, "penstock_stage_seconds", "stage")
    return Inside(
        batches,
        summed / count if count else math.nan,
        {stage: stages[stage] for stage in STAGE_ORDER if stage in stages},
        _means_ms(grown, "penstock_batch_seconds", "part"),
        images,
    )


def _batches(buckets: list[tuple[dict[str, str], float]]) -> dict[str, dict[str, int]]:
    """By seal and bound, what is in each bucket alone: Prometheus' own are cumulative."""
    cumulative: dict[str, dict[float, float]] = {}
    for labels, more in buckets:
        bounds = cumulative.setdefault(labels["seal"], {})
        bound = float(labels["le"])
        bounds[bound] = bounds.get(bound, 0.0) + more
    found: dict[str, dict[str, int]] = {}
    for seal, bounds in cumulative.items():
        below = 0.0
        for bound in sorted(bounds):
            alone, below = round(bounds[bound] - below), bounds[bound]
            if alone > 0:
                name = "more" if math.isinf(bound) else f"{bound:g}"
                found.setdefault(seal, {})[name] = alone
    return found


def _means_ms(grown: dict[str, list[tuple[dict[str, str], float]]], name: str, label: str) -> dict[str, float]:
    counts: dict[str, float] = {}
    sums: dict[str, float] = {}
    for table, suffix in ((counts, "_count"), (sums, "_sum")):
        for labels, more in grown.get(name + suffix, ()):
            table[labels[label]] = table.get(labels[label], 0.0) + more
    return {key: 1e3 * sums.get(key, 0.0) / count for key, count in counts.items()}
