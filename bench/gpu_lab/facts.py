"""Facts that decisions rest on: registered memory, the bytes' ways, copies on the card, top-k, recorded graphs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.gpu_lab import registered, ways
from bench.gpu_lab.bare import bare, opened, timed
from bench.gpu_lab.nvml import Gpu, NoNvml
from gateway.errors import InvalidModel
from gpuworker.gpu.card import Card, Memory
from gpuworker.ranking import rank

if TYPE_CHECKING:
    from bench.gpu_lab.notes import Notes
    from bench.gpu_lab.plan import Plan

_RANKED = 5


def measure(plan: Plan, notes: Notes) -> None:
    """Each fact by itself; those that need an engine come last."""
    with notes.guarded("the card"):
        _tell_card(notes)
    with notes.guarded("registering"):
        registered.measure(plan, notes)
    with notes.guarded("bytes' ways"):
        ways.measure(plan, notes)
    with notes.guarded("copies on the card"):
        _copies_on_device(plan, notes)
    with notes.guarded("SIGKILL with registered slots"):
        registered.measure_kill(notes)
    with notes.guarded("top-k"):
        try:
            _top_k(plan, notes)
        except InvalidModel as refusal:
            notes.refused("top-k on the card", refusal)


def _tell_card(notes: Notes) -> None:
    found = Card.open().properties
    try:
        driver = Gpu().driver()
    except NoNvml as error:
        driver = str(error)
    notes.row(
        "the card",
        name=found.label,
        capability=".".join(map(str, found.capability)),
        driver=driver,
        cuda_of_driver=found.driver,
        cuda_of_cuda_python=found.runtime,
    )
    from bench import rig  # noqa: PLC0415 - needs Pillow, without which the rest goes on

    notes.remark(f"measured with {json.dumps(rig.environment())}")


def _copies_on_device(plan: Plan, notes: Notes) -> None:
    """What the copy into a recorded graph's input costs."""
    compute = Card.open().compute
    for count in plan.scale.ways:
        size = count * plan.scale.side**2 * 3
        source, target = Memory.on_device(size), Memory.on_device(size)
        us = timed(lambda a=target.address, b=source.address, n=size: compute.copy_on(a, b, n), plan.scale.seconds / 4)
        notes.row("copy on the card, into the recorded input", images=count, us=us / 1e3)
        notes.figure(f"copy_on_device_{count}", us / 1e3, "us")
        source.close()
        target.close()


def _top_k(plan: Plan, notes: Notes) -> None:
    """A TopK node in the graph against NumPy on the CPU, which works while the card computes the next batch."""
    from bench.gpu_lab import models  # noqa: PLC0415 - needs onnx, without which the rest goes on

    case = models.Case(plan.scale.models[0], "onnxruntime", "float32")
    sizes = tuple(size for size in plan.scale.sizes if size in plan.scale.ways)[-3:]
    scale, folder = plan.scale, Path(plan.folder)
    plain = opened(models.write(folder / "ranked_not", case, sizes, side=scale.side))
    ranked = opened(
        models.write(folder / "ranked", case, sizes, side=scale.side, task="raw", ranked=_RANKED),
    )
    for size in sizes:
        without, with_it = (bare(backend, size, scale.seconds / 2) for backend in (plain, ranked))
        scores = np.random.default_rng(8).normal(size=(size, *plain.fields[0].shape)).astype(np.float32)
        cpu_us = _cpu_us(scores.reshape(size, -1), scale.seconds / 4)
        on_card = (with_it.best_ns - without.best_ns) / 1e3
        notes.row(
            f"top {_RANKED}, {case}",
            size=size,
            on_the_card_us=on_card,
            on_the_cpu_us=cpu_us,
            recorded_us=without.graph_ns / 1e3,
            plain_us=without.plain_ns / 1e3,
        )
        notes.figure(f"top_k_card_{size}", on_card, "us")
        notes.figure(f"top_k_cpu_{size}", cpu_us, "us")
        if without.graph_ns:
            notes.figure(f"graph_of_plain_{size}", without.graph_ns / without.plain_ns, "ratio")
    notes.result(
        f"top {_RANKED} of a batch of {size}", f"{on_card:.0f} µs on the card, {cpu_us:.0f} on the CPU", str(case)
    )


def _cpu_us(scores: np.ndarray, seconds: float) -> float:
    """µs of CPU to rank float32[n, classes]."""
    count, begin, end = 0, time.thread_time_ns(), time.perf_counter() + seconds
    while time.perf_counter() < end or not count:
        rank(scores, "none", _RANKED)
        count += 1
    return (time.thread_time_ns() - begin) / count / 1e3
