"""What the metrics read off the core and the children at each scrape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import logs
from gateway.scheduling.ticket import Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.children import Children
    from gateway.metrics import Metrics, Sample
    from gateway.scheduling.line import Line
    from gateway.scheduling.restarts import ChildState
    from gateway.scheduling.scheduler import Scheduler


def of_core(core: Scheduler, metrics: Metrics) -> Iterator[Sample]:
    """Slots, queues and plans of every line."""
    for line in core.lines:
        yield from _of_line(core, line, metrics.models[line.index].name)
    yield "penstock_body_bytes", (), core.bodies.held_size
    yield "penstock_body_bytes_max", (), core.bodies.size
    yield "penstock_log_lines_dropped", (), logs.dropped_count()


def _of_line(core: Scheduler, line: Line, name: str) -> Iterator[Sample]:
    for state, count in line.arena.statistics().items():
        yield "penstock_slots", (name, state), count
    yield "penstock_queue_images", (name, "decode"), line.waiting_count
    yield "penstock_queue_images", (name, "batch"), line.ready_count + len(line.suspects)
    planned = line.statistics()
    if planned is not None:
        yield "penstock_batch_size_best", (name,), planned.size_best
        yield "penstock_batch_size_planned", (name,), planned.size_planned
        yield "penstock_margin_seconds", (name,), planned.margin_ns / 1e9
        yield "penstock_inflation_ratio", (name,), planned.inflation
    for worker in core.workers:
        profile = worker.profiles.get(line.index)
        for size, time_ns in profile.times_ns.items() if profile is not None else ():
            yield "penstock_expected_batch_seconds", (name, str(worker.seat), str(size)), time_ns / 1e9


def of_children(core: Scheduler, children: Children) -> Iterator[Sample]:
    """States and deaths by seat. Of a seat's two workers, while one follows the other, the newer one is asked."""
    found: dict[tuple[Role, int], ChildState | None] = {
        (Role.DECODER, decoder.index): decoder for decoder in core.feeder.decoders
    }
    found |= {(Role.WORKER, seat): None for seat in range(len(children.devices))}
    found |= {(Role.WORKER, worker.seat): worker for worker in core.workers}
    for (role, seat), child in found.items():
        labels = role.value, str(seat)
        yield "penstock_child_restarts", labels, children.deaths.get((role, seat), 0)
        yield "penstock_child_ready", labels, float(child is not None and child.ready)
        if child is not None:
            yield "penstock_child_state", (*labels, child.state.value), 1.0
