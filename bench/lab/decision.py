"""What one admission decision costs with a thousand images queued: the one place here that reads a clock.

Everything but the decision stays out of the measurement: the images that are queued came before, the garbage collector
is frozen and off, and what was accepted is taken back before the next one.
"""

from __future__ import annotations

import gc
import itertools
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bench.lab import core as adapter
from bench.lab.law import MS, T4
from gateway import errors
from gateway.scheduling.ticket import TENSOR, Fill, RunBatch, Ticket

if TYPE_CHECKING:
    from gateway.scheduling.scheduler import Scheduler

WORKERS = 64
QUEUED = 1_000
REFUSED_LEAD_NS = 6 * MS
"""Enough for an idle server, and too little for this one."""

NOW_NS = 1_000_000_000


class Cost(NamedTuple):
    """µs; each is median and 99th percentile."""

    accept: tuple[float, float]
    refuse: tuple[float, float]
    accept_and_advance: tuple[float, float]
    """With what `advance` and `wake_at_ns` do about it, in the same tick."""


def cost(count: int = 2_000) -> Cost:
    """Median and p99 of one decision; `count` decisions each."""
    core = _loaded()
    draw = np.random.default_rng(1)
    leads = draw.integers(200 * MS, 400 * MS, count).tolist()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        accepts = _timed(core, leads, advance=False)
        both = _timed(core, leads, advance=True)
        refusals = _timed(core, [REFUSED_LEAD_NS] * count, advance=False, refused=True)
    finally:
        gc.enable()
        gc.unfreeze()
    return Cost(accepts, refusals, both)


def _loaded() -> Scheduler:
    """Every worker has all that it may have, and exactly QUEUED images wait behind."""
    core = adapter.scheduler(T4, worker_count=WORKERS, model_count=1, now_ns=NOW_NS)
    queued = 0
    for number in itertools.count():
        ticket, _ = _decide(core, 300 * MS + number % 1000 * MS // 10)
        assert ticket is not None, "the core refuses what 64 idle workers can do"
        queued += 1
        queued -= sum(len(effect.batch.tickets) for effect in _advanced(core) if isinstance(effect, RunBatch))
        # More than a batch waits only while no worker takes any: whatever is queued now stays queued.
        if queued == QUEUED:
            return core
    raise AssertionError


def _advanced(core: Scheduler) -> list[object]:
    done: list[object] = []
    while effects := core.advance(NOW_NS):
        done += effects
        for effect in effects:
            if isinstance(effect, Fill):
                core.filled(effect.ticket, NOW_NS)
    return done


def _decide(core: Scheduler, lead_ns: int) -> tuple[Ticket | None, int]:
    """(the ticket or None if refused, ns that it took): one image, due in `lead_ns`."""
    line, deadline_ns = core.lines[0], NOW_NS + lead_ns
    body = core.allocate_body(64)
    parts = [(body.region.offset, 64, TENSOR)]
    ticket = None
    begin = time.perf_counter_ns()
    try:
        core.precheck(line, deadline_ns, NOW_NS)
        (ticket,) = core.submit(line, body, parts, priority=0, deadline_ns=deadline_ns, top_k=1, now_ns=NOW_NS)
    except errors.Refusal:
        pass
    spent = time.perf_counter_ns() - begin
    body.release()
    return ticket, spent


def _timed(core: Scheduler, leads: list[int], *, advance: bool, refused: bool = False) -> tuple[float, float]:
    spent = []
    for lead_ns in leads:
        ticket, ns = _decide(core, lead_ns)
        assert (ticket is None) == refused
        if ticket is not None:
            if advance:
                begin = time.perf_counter_ns()
                _advanced(core)
                core.wake_at_ns()
                ns += time.perf_counter_ns() - begin
            core.cancel(ticket, NOW_NS)
            # The heaps' dead entries are swept outside the measurement too.
            core.advance(NOW_NS)
        spent.append(ns)
    return float(np.median(spent)) / 1e3, float(np.percentile(spent, 99)) / 1e3
