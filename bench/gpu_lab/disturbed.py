"""A gateway with a GPU and a CPU worker, of which the first is killed under load: what clients of both notice."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from bench import rig
from bench.gpu_lab import bodies, models
from bench.gpu_lab.clients import Clients, Load
from bench.gpu_lab.served import settle

if TYPE_CHECKING:
    from bench.gpu_lab.notes import Notes
    from bench.gpu_lab.plan import Plan

SETTLE_S = 1.5
"""Clients start and their load is steady."""
SERVING_S_MAX = 60.0
_CARD_LIBRARY = "cuda/bindings"
"""What only a worker on a GPU has mapped."""


def measure(plan: Plan, case: models.Case, notes: Notes) -> None:
    """One kill by SIGKILL, mid-batch, of a model that a worker takes."""
    folder = Path(plan.folder)
    repository = folder / f"disturbed_{case.slug}"
    scale = plan.scale
    sizes = scale.engine_sizes
    models.write(repository, case, sizes, side=scale.side, optimization_level=scale.optimization_level)
    models.write_null(repository)
    settle(folder / "engines")
    with rig.gateway(repository, "--device", "cuda:0", "--device", "cpu") as running, contextlib.ExitStack() as stack:
        side = scale.side if case.model == "tiny" else 224
        image = bodies.tensor(folder, 1, side)
        url = f"{running.url}/predictions/{case.model}"
        other_image = bodies.tensor(folder, 1, models.NULL_SIDE)
        other = Load(f"{running.url}/predictions/null", other_image, bodies.MSGPACK, 1, 4, 1.0, 0.0)
        wanted = Load(url, image, bodies.MSGPACK, 1, max(4, scale.connections // 16), 1.0, 0.0)
        seconds = SETTLE_S + 5 * scale.seconds + 2
        neighbours = stack.enter_context(Clients(other._replace(seconds=seconds)))
        clients = stack.enter_context(Clients(wanted._replace(seconds=seconds)))
        time.sleep(SETTLE_S)
        victim = _worker_on_card(running)
        begin = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        serving_s = _until_served(url, image.read_bytes(), begin)
        theirs, ours = neighbours.wait(), clients.wait()
    slug = case.slug
    notes.figure(f"kill_to_serving_{slug}", serving_s, "s")
    notes.figure(f"kill_neighbour_refused_{slug}", theirs.refused, "requests")
    notes.row(
        "a worker on the card killed under a gateway",
        case=str(case),
        serving_again_s=serving_s,
        neighbour_answered=theirs.statuses.get(200, 0),
        neighbour_not_200=theirs.refused,
        own_answered=ours.statuses.get(200, 0),
        own_not_200={status: count for status, count in ours.statuses.items() if status != 200} or "",
    )
    notes.result(
        f"kill under a gateway, {case}",
        f"serving again after {serving_s:.2f} s",
        f"the CPU's model: {theirs.statuses.get(200, 0):,} answered, {theirs.refused} not;"
        f" its own: {ours.statuses.get(200, 0):,} answered, {ours.refused} refused meanwhile",
    )
    if theirs.refused:
        notes.problem(f"kill under a gateway, {case}", f"requests to the CPU's model were answered {theirs.statuses}")
    if lost := {status: count for status, count in ours.statuses.items() if status not in {200, 503}}:
        notes.problem(f"kill under a gateway, {case}", f"requests were answered {lost}")


def _worker_on_card(running: rig.Gateway) -> int:
    found = [
        pid
        for pid in running.pids()["worker"]
        if _CARD_LIBRARY in Path(f"/proc/{pid}/maps").read_text(errors="replace")
    ]
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} workers have opened the card, not one")
    return found[0]


def _until_served(url: str, body: bytes, begin: float) -> float:
    """Seconds from `begin` until a request that was sent after it was answered."""
    while time.monotonic() < begin + SERVING_S_MAX:
        request = urllib.request.Request(url, body, {"Content-Type": bodies.MSGPACK})
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=SERVING_S_MAX):
            return time.monotonic() - begin
        time.sleep(0.005)
    raise TimeoutError(f"nothing was answered for {SERVING_S_MAX:.0f} s")
