"""Names, units and labels of every metric, in one table; and what is counted between two scrapes.

The hot path appends numbers to lists and adds to dicts. Buckets are filled when somebody scrapes, or when a list has
grown to FOLD_COUNT, for the whole list at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from gateway.scheduling.ticket import Seal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import Metric

FOLD_COUNT = 8192
"""Observations kept as they came before they are folded into buckets."""

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
_DIFFERENCES = (1e-6, 1e-5, 1e-4, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0, 100.0)
_IMAGES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

BATCH_PARTS = ("gather", "run", "write")
"""What a worker does with a batch: collect the slots, run the model, write the outputs."""

COMPUTE = "compute"
"""One more part of a batch: what a GPU computed of "run", by its own clock. Of batches without a GPU there is none."""

STAGES = ("read", "decode_queue", "decode", "batch_queue", "infer", "respond")
"""The stages of a request, in order. All but the last, which is encoding the answer, are keys of `timing_ms` too."""

_IMAGE_STAGES = STAGES[1:5]
_REQUEST_STAGES = (STAGES[0], STAGES[5])


class Row(NamedTuple):
    """One metric: `kind` is counter, gauge or histogram; `buckets` of a histogram, in its unit."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


TABLE = (
    Row("penstock_requests", "counter", ("model", "code"), "Requests for predictions, by 'ok' or an error's code"),
    Row("penstock_images", "counter", ("model", "code"), "Images in them, by outcome"),
    Row("penstock_refusals", "counter", ("code",), "Answers that were errors, of any path, by their code"),
    Row("penstock_client_closed", "counter", ("model",), "Requests whose client left before the answer"),
    Row("penstock_stage_seconds", "histogram", ("model", "stage"), "Time of an image in one stage", _SECONDS),
    Row("penstock_request_seconds", "histogram", ("model",), "Time from the headers to the answer", _SECONDS),
    Row("penstock_batch_images", "histogram", ("model", "seal"), "Images in a batch, by why it was closed", _IMAGES),
    Row(
        "penstock_batch_seconds",
        "histogram",
        ("model", "part"),
        "Time of a batch in a worker, by part; 'compute' is a GPU's share of 'run'",
        _SECONDS,
    ),
    Row("penstock_expected_batch_seconds", "gauge", ("model", "worker", "size"), "Expected time of a batch"),
    Row("penstock_batch_size_best", "gauge", ("model",), "B*: largest batch that an image may just miss"),
    Row("penstock_batch_size_planned", "gauge", ("model",), "Largest batch planned with now; over B* under overload"),
    Row("penstock_margin_seconds", "gauge", ("model",), "Kept back of the model's deadline for what nobody expects"),
    Row("penstock_inflation_ratio", "gauge", ("model",), "Batches are expected to take this times what was measured"),
    Row("penstock_shadow_images", "counter", ("model", "version", "outcome"), "Images copied to a shadow version"),
    Row("penstock_shadow_difference", "histogram", ("model", "version"), "Its answers against ours", _DIFFERENCES),
    Row("penstock_slots", "gauge", ("model", "state"), "Slots of shared memory, by state"),
    Row("penstock_queue_images", "gauge", ("model", "stage"), "Images that wait, by what for"),
    Row("penstock_body_bytes", "gauge", (), "Shared memory held by request bodies"),
    Row("penstock_body_bytes_max", "gauge", (), "Its limit"),
    Row("penstock_child_restarts", "counter", ("role", "index"), "Deaths of children"),
    Row("penstock_child_ready", "gauge", ("role", "index"), "1 while a child is up"),
    Row("penstock_child_state", "gauge", ("role", "index", "state"), "1 for the state of its life that a child is in"),
    Row("penstock_worker_memory_bytes", "gauge", ("seat",), "Private memory of a device's worker, when last looked at"),
    Row("penstock_gpu_memory_used_bytes", "gauge", ("seat",), "Memory in use on a seat's GPU, whoever has it, by NVML"),
    Row("penstock_gpu_memory_bytes", "gauge", ("seat",), "Memory of a seat's GPU or slice"),
    Row("penstock_gpu_power_watts", "gauge", ("seat",), "What a seat's GPU draws, by NVML; none of a slice"),
    Row("penstock_unload_given_back_ratio", "gauge", (), "Part of its memory that the last ended worker gave back"),
    Row("penstock_operations", "counter", ("kind", "state"), "Changes of models, by the states that they came to"),
    Row("penstock_clients", "gauge", (), "Addresses that limits are kept for"),
    Row("penstock_client_images", "counter", ("client", "outcome"), "Images accepted, and refused by a limit, by key"),
    Row("penstock_connections", "gauge", (), "Open connections"),
    Row("penstock_loop_lag_seconds", "gauge", (), "How late the event loop's last heartbeat was"),
    Row("penstock_loop_lag_max_seconds", "gauge", (), "How late it was at worst since the last scrape"),
    Row("penstock_log_lines_dropped", "counter", (), "Log lines dropped: nobody read them, or the disk was full"),
)  # fmt: skip
"""Every metric there is. Times are seconds, sizes bytes, as Prometheus wants them."""

_SUMS = frozenset({"penstock_slots", "penstock_queue_images"})
"""Gauges that count things: those of two lines of one name add up."""


class Histograms:
    """Histograms of values that are always observed together, one column each, in one unit.

    `scale` turns what is observed (ns, say) into the unit of `bounds`.
    """

    __slots__ = ("_bounds", "_counts", "_fresh", "_scale", "_sums")

    def __init__(self, bounds: tuple[float, ...], columns: int, scale: float = 1.0) -> None:
        self._bounds = np.array(bounds)
        self._counts = np.zeros((columns, len(bounds) + 1), np.int64)
        self._sums = np.zeros(columns)
        self._scale = scale
        self._fresh: list[tuple[float, ...]] = []

    def observe(self, row: tuple[float, ...]) -> None:
        """Count one value per column."""
        self._fresh.append(row)
        if len(self._fresh) >= FOLD_COUNT:
            self._fold()

    def _fold(self) -> None:
        if not self._fresh:
            return
        values = np.array(self._fresh).T * self._scale
        self._fresh.clear()
        for column, row in enumerate(values):
            places = np.searchsorted(self._bounds, row, side="left")
            self._counts[column] += np.bincount(places, minlength=self._counts.shape[1])
        self._sums += values.sum(axis=1)

    def buckets(self, column: int) -> tuple[list[tuple[str, float]], float]:
        """(cumulative buckets as Prometheus wants them, sum) of one column."""
        self._fold()
        cumulative = np.cumsum(self._counts[column])
        names = [repr(float(bound)) for bound in self._bounds] + ["+Inf"]
        return [(name, float(count)) for name, count in zip(names, cumulative, strict=True)], float(self._sums[column])


class ModelMetrics:
    """What the hot path touches for one model, looked up once."""

    __slots__ = (
        "_batches",
        "_compute",
        "_images",
        "_parts",
        "_requests",
        "client_closed",
        "images",
        "name",
        "requests",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.requests: dict[str, int] = {}
        self.images: dict[str, int] = {}
        self.client_closed = 0
        self._images = Histograms(_SECONDS, len(_IMAGE_STAGES), 1e-9)
        self._requests = Histograms(_SECONDS, len(_REQUEST_STAGES) + 1, 1e-9)
        self._parts = Histograms(_SECONDS, len(BATCH_PARTS), 1e-9)
        self._compute: Histograms | None = None
        self._batches = {seal: Histograms(_IMAGES, 1) for seal in Seal}

    def image_done(self, decode_queue_ns: int, decode_ns: int, batch_queue_ns: int, infer_ns: int) -> None:
        """An image was answered with a result."""
        self.images["ok"] = self.images.get("ok", 0) + 1
        self._images.observe((decode_queue_ns, decode_ns, batch_queue_ns, infer_ns))

    def image_refused(self, code: str) -> None:
        """An image was answered with an error."""
        self.images[code] = self.images.get(code, 0) + 1

    def request_done(self, read_ns: int, respond_ns: int, total_ns: int) -> None:
        """A request was answered with at least one result."""
        self.requests["ok"] = self.requests.get("ok", 0) + 1
        self._requests.observe((read_ns, respond_ns, total_ns))

    def request_refused(self, code: str) -> None:
        """A request was answered with an error."""
        self.requests[code] = self.requests.get(code, 0) + 1

    def batch_ran(
        self, image_count: int, seal: Seal, gather_ns: int, run_ns: int, write_ns: int, compute_ns: int = 0
    ) -> None:
        """A worker ran a batch that was closed for the reason `seal`, and said what its parts took.

        `compute_ns`: of `run_ns`, what a GPU computed; 0 where nobody can say.
        """
        self._batches[seal].observe((image_count,))
        self._parts.observe((gather_ns, run_ns, write_ns))
        if compute_ns:
            if self._compute is None:
                self._compute = Histograms(_SECONDS, 1, 1e-9)
            self._compute.observe((compute_ns,))

    def histograms(self, name: str) -> Iterator[tuple[tuple[str, ...], tuple[list[tuple[str, float]], float]]]:
        """(label values, buckets and sum) of every histogram under one metric name."""
        if name == "penstock_stage_seconds":
            for stage in STAGES:
                table = self._images if stage in _IMAGE_STAGES else self._requests
                column = (_IMAGE_STAGES if stage in _IMAGE_STAGES else _REQUEST_STAGES).index(stage)
                yield (self.name, stage), table.buckets(column)
        elif name == "penstock_request_seconds":
            yield (self.name,), self._requests.buckets(len(_REQUEST_STAGES))
        elif name == "penstock_batch_seconds":
            for column, part in enumerate(BATCH_PARTS):
                yield (self.name, part), self._parts.buckets(column)
            if self._compute is not None:
                yield (self.name, COMPUTE), self._compute.buckets(0)
        else:
            for seal, table in self._batches.items():
                yield (self.name, seal.value), table.buckets(0)


class ShadowMetrics:
    """What is counted of one version's images that were copied to another."""

    __slots__ = ("_differences", "images", "name", "version")

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version
        self.images: dict[str, int] = {}
        self._differences = Histograms(_DIFFERENCES, 1)

    def image_done(self, outcome: str, count: int = 1) -> None:
        """Images ended: same, different, refused (not copied) or failed."""
        self.images[outcome] = self.images.get(outcome, 0) + count

    def differed(self, difference: float) -> None:
        """An image was answered by both, so far apart."""
        self._differences.observe((difference,))

    def histograms(self, _name: str) -> Iterator[tuple[tuple[str, ...], tuple[list[tuple[str, float]], float]]]:
        """As ModelMetrics.histograms; there is one."""
        yield (self.name, self.version), self._differences.buckets(0)


Sample = tuple[str, tuple[str, ...], float]
"""(metric name, label values, value) of a gauge or counter that is read off some structure at scrape time."""


class Metrics(Collector):
    """All metrics of one gateway. `probes` are asked at each scrape for what others keep."""

    def __init__(self) -> None:
        self.models: dict[int, ModelMetrics] = {}
        """By line index. Lines of one name and version, as there are while one is reloaded, share theirs."""
        self.shadows: dict[tuple[str, str], ShadowMetrics] = {}
        """By the version that answers (model/version) and its shadow (version)."""
        self.probes: list[Callable[[], Iterable[Sample]]] = []
        self.refusals: dict[str, int] = {}
        self.loop_lag_s = 0.0
        self.loop_lag_max_s = 0.0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def add(self, index: int, name: str) -> None:
        """One more line, of the model `name`, which is NAME/VERSION."""
        known = next((model for model in self.models.values() if model.name == name), None)
        self.models[index] = known or ModelMetrics(name)

    def remove(self, index: int) -> None:
        """A line is gone."""
        del self.models[index]

    def _counted(self) -> list[ModelMetrics]:
        """Each model once."""
        return list(dict.fromkeys(self.models.values()))

    def shadow(self, name: str, version: str) -> ShadowMetrics:
        """What is counted of `name` (model/version) and its shadow `version`, which outlives both."""
        found = self.shadows.get((name, version))
        if found is None:
            found = self.shadows[name, version] = ShadowMetrics(name, version)
        return found

    def expose(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask the probes."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every row of TABLE with its samples."""
        samples: dict[str, dict[tuple[str, ...], float]] = {}
        for name, labels, value in self._samples():
            # Of a model that is being reloaded both lines count; what is no count is the newer one's.
            known = samples.setdefault(name, {})
            known[labels] = value + (known.get(labels, 0) if name in _SUMS else 0)
        for row in TABLE:
            if row.kind == "histogram":
                histogram = HistogramMetricFamily(row.name, row.help, labels=row.labels)
                sources = self.shadows.values() if row.name == "penstock_shadow_difference" else self._counted()
                for source in sources:
                    for labels, (buckets, total) in source.histograms(row.name):
                        histogram.add_metric(labels, buckets, total)
                yield histogram
                continue
            family: CounterMetricFamily | GaugeMetricFamily
            if row.kind == "counter":
                family = CounterMetricFamily(row.name, row.help, labels=row.labels)
            else:
                family = GaugeMetricFamily(row.name, row.help, labels=row.labels)
            for labels, value in samples.get(row.name, {}).items():
                assert len(labels) == len(row.labels), row.name
                family.add_metric(labels, value)
            yield family

    def _samples(self) -> Iterator[Sample]:
        for model in self._counted():
            for code, count in model.requests.items():
                yield "penstock_requests", (model.name, code), count
            for code, count in model.images.items():
                yield "penstock_images", (model.name, code), count
            yield "penstock_client_closed", (model.name,), model.client_closed
        for shadow in self.shadows.values():
            for outcome, count in shadow.images.items():
                yield "penstock_shadow_images", (shadow.name, shadow.version, outcome), count
        for code, count in self.refusals.items():
            yield "penstock_refusals", (code,), count
        yield "penstock_loop_lag_seconds", (), self.loop_lag_s
        yield "penstock_loop_lag_max_seconds", (), self.loop_lag_max_s
        self.loop_lag_max_s = 0.0
        for probe in self.probes:
            yield from probe()
