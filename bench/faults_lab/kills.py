"""Children that are killed: idle, in the middle of a batch, in the middle of an image; by kill -9 and by crashes."""

from __future__ import annotations

import asyncio
import functools
import signal
import time
from typing import TYPE_CHECKING

from bench import rig
from bench.faults_lab.ledger import Verdict
from bench.faults_lab.nemesis import Nemesis
from bench.faults_lab.target import target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.faults_lab.trial import Lab

LIFE_COUNT = 250
"""Blows in one gateway's life; then the checker looks at it, and the next one is started."""

PATIENT = {"restarts_max": 1_000_000}
"""Restarts are not what is tried here: a thousand a minute are nobody's fault but the nemesis's."""

DEVICES = ("cpu", "cuda:0", "cuda:1", "cuda:2")
"""A fake model runs on any of them."""


async def _kills(
    lab: Lab,
    name: str,
    *,
    count: int,
    workers: int,
    rate: float,
    base_ms: float,
    signals: Sequence[signal.Signals],
    in_batch: bool,
    role: str = "worker",
) -> None:
    """`count` blows at the children of a role, each worker's or decoder's own nemesis at work beside the others'."""
    victims = workers if role == "worker" else 2
    while count > 0:
        now = min(count, LIFE_COUNT)
        count -= now
        settings = {**PATIENT, "decoders": 2, "devices": ",".join(DEVICES[:workers])}
        async with lab.trial(name, rate=rate, model={"fake": {"base_ms": base_ms}}, settings=settings) as trial:
            burst = functools.partial(trial.burst, 4 * victims)
            shares = [now // victims + (index < now % victims) for index in range(victims)]
            await asyncio.gather(
                *(
                    trial.nemesis.strike_often(
                        role,
                        index,
                        share,
                        signals,
                        in_batch=in_batch,
                        spread_s=0.1,
                        told=trial.struck,
                        employ=burst,
                    )
                    for index, share in enumerate(shares)
                )
            )
            for index in range(victims):
                await trial.target.wait_up(role, index)
        kind = "midbatch" if in_batch else "idle"
        if role == "worker":
            found = trial.ledger.verdicts()
            lab.figures[f"{kind}_kills"].append(now)
            lab.figures[f"{kind}_failures"].append(trial.ledger.failures())
            for verdict in (Verdict.LOST, Verdict.TWICE, Verdict.WRONG, Verdict.LATE):
                lab.figures[f"{kind}_{verdict}"].append(found[verdict])
            if not in_batch:
                # Three interpreters that start on two cores are in each other's way, and in that of who looks.
                lab.figures["detect_ms" if workers == 1 else "detect_busy_ms"] += trial.nemesis.detections_ms()
            lab.figures[f"{kind}_ready_s"] += trial.nemesis.recoveries_s()


async def idle(lab: Lab, count: int) -> None:
    """A worker that has nothing to do is killed; some of them are the only worker there is."""
    kill = (signal.SIGKILL,)
    for workers, share in ((1, count * 3 // 10), (3, count - count * 3 // 10)):
        await _kills(
            lab,
            f"idle worker, {workers} there: SIGKILL",
            count=share,
            workers=workers,
            rate=40.0,
            base_ms=2.0,
            signals=kill,
            in_batch=False,
        )


async def midbatch(lab: Lab, count: int) -> None:
    """A worker is killed in the middle of a batch of 20 ms; some by signals that are crashes."""
    kill, crash = (signal.SIGKILL,), (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
    for workers, share, signals in (
        (1, count * 2 // 10, kill),
        (3, count * 6 // 10, kill),
        (2, count - count * 2 // 10 - count * 6 // 10, crash),
    ):
        await _kills(
            lab,
            f"worker in a batch, {workers} there: {'SIGKILL' if signals is kill else 'SIGSEGV, ABRT, BUS'}",
            count=share,
            workers=workers,
            rate=10.0 * workers,
            base_ms=20.0,
            signals=signals,
            in_batch=True,
        )


async def decoders(lab: Lab, count: int) -> None:
    """A decoder is killed, whatever it does; the other one, or its successor, takes over."""
    await _kills(
        lab,
        "decoder, 2 there: SIGKILL",
        count=count,
        workers=1,
        rate=200.0,
        base_ms=0.0,
        signals=(signal.SIGKILL,),
        in_batch=False,
        role="decoder",
    )


async def circuit(lab: Lab, count: int) -> None:
    """The only worker dies more often than it may: it is refused at once for a while, and then tried again."""
    settings = {"restarts_max": 3, "restarts_window_s": 8, "decoders": 2}
    for _ in range(count):
        async with lab.trial("worker: dies too often", rate=100.0, settings=settings) as trial:
            for _ in range(4):
                await trial.nemesis.strike_often("worker", 0, 1, (signal.SIGKILL,), in_batch=False, spread_s=0.01)
            opened_s = time.monotonic()
            await trial.target.wait_up("worker", 0)
            closed_s = time.monotonic()
            trial.struck(closed_s)
        refused = [row for row in trial.ledger.between(opened_s + 0.1, closed_s - 0.1) if row.code == "model_not_ready"]
        if not refused:
            trial.row.problems.append("nobody was refused while the circuit was open")
        lab.figures["open_refusal_ms"] += [(row.answered_s - row.sent_s) * 1e3 for row in refused]


async def real(lab: Lab, count: int) -> None:
    """The demo's EfficientNet on the CPU is killed: how long until it is warm again. Nobody asks it much meanwhile."""
    repository = await asyncio.to_thread(rig.demo_repository)
    photo = rig.jpeg(224, 224)
    row = lab.row("idle worker with a real model: SIGKILL")
    async with target(repository, **PATIENT, decoders=1) as running:
        nemesis = Nemesis(running, lab.seed)
        name = next(iter(await running.names()))
        for _ in range(count):
            status = await running.post(f"/predictions/{name}", photo, "image/jpeg")
            row.problems += [f"the model answered with {status}"] if status != 200 else []
            await nemesis.strike_often("worker", 0, 1, (signal.SIGKILL,), in_batch=None, spread_s=0.1)
            row.faults += 1
            await running.wait_up("worker", 0)
    lab.figures["real_ready_s"] += nemesis.recoveries_s()
