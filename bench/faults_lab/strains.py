"""Faults from outside and everything at once: no descriptors left, clients that leave, a seeded storm."""

from __future__ import annotations

import asyncio
import random
import resource
import signal
import time
from typing import TYPE_CHECKING

from bench.faults_lab.kills import DEVICES, PATIENT
from bench.faults_lab.target import send_signal

if TYPE_CHECKING:
    from bench.faults_lab.trial import Lab, Trial

STORM_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGSTOP)

EXHAUSTED_S = 0.5

RECOVERY_S_MAX = 1.0


async def exhausted(lab: Lab, count: int) -> None:
    """No descriptor is left for a while, and a worker dies: open connections are served, new ones wait for its end."""
    settings = {**PATIENT, "decoders": 2, "devices": "cpu,cuda:0"}
    async with lab.trial("no descriptors left", rate=100.0, settings=settings) as trial:
        pid = trial.target.pid
        for _ in range(count):
            limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            # Open ones stay open; a new one would need a number under this.
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
            blow = trial.nemesis.strike(await trial.target.wait_up("worker", 0), signal.SIGKILL)
            assert blow is not None
            await asyncio.sleep(EXHAUSTED_S)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            trial.struck()
            await trial.target.wait_up("worker", 0)
            await asyncio.sleep(RECOVERY_S_MAX)
    ends_s = trial.faults_s
    waited = [
        row.answered_s - end_s
        for end_s in ends_s
        for row in trial.ledger.between(end_s - EXHAUSTED_S, end_s)
        if row.answered_s > end_s
    ]
    lab.figures["exhausted_recovery_s"].append(max(waited, default=0.0))


async def leaving(lab: Lab, count: int) -> None:
    """Clients go away while their images are read, decoded, queued, run or answered: by FIN and by RST."""
    settings = {**PATIENT, "decoders": 2}
    model = {"fake": {"base_ms": 20.0}}
    async with lab.trial("clients that leave", rate=40.0, model=model, settings=settings) as trial:
        draw = random.Random(trial.seed)
        for _ in range(count):
            rows = [trial.generator.send(kind="leaving") for _ in range(8)]
            for row in rows:
                await asyncio.sleep(draw.random() * 0.01)
                trial.generator.leave(row, reset=draw.random() < 0.5)
            trial.struck()


async def storm(lab: Lab, seconds: float) -> None:
    """All of it together, as a seed draws it: workers and decoders die or stop, clients leave."""
    settings = {**PATIENT, "decoders": 3, "devices": ",".join(DEVICES)}
    model = {"fake": {"base_ms": 10.0}}
    async with lab.trial("storm, 4 workers, 3 decoders", rate=80.0, model=model, settings=settings) as trial:
        end = time.monotonic() + seconds
        await asyncio.gather(
            *(_strike(trial, "worker", index, end) for index in range(4)),
            *(_strike(trial, "decoder", index, end) for index in range(3)),
            _leave(trial, end),
        )
        for index in range(4):
            await trial.target.wait_up("worker", index)
        for index in range(3):
            await trial.target.wait_up("decoder", index)
    lab.figures["storm_failures"].append(trial.ledger.failures())


async def _strike(trial: Trial, role: str, index: int, end: float) -> None:
    draw = random.Random(f"{trial.seed}/storm/{role}/{index}")
    while time.monotonic() < end:
        # However slowly it comes up, it gets some time to be of use.
        spread_s = draw.expovariate(0.5)
        await trial.nemesis.strike_often(
            role, index, 1, (draw.choice(STORM_SIGNALS),), in_batch=None, spread_s=2 * spread_s, told=trial.struck
        )


async def _leave(trial: Trial, end: float) -> None:
    draw = random.Random(f"{trial.seed}/storm/leave")
    while time.monotonic() < end:
        row = trial.generator.send(kind="leaving")
        await asyncio.sleep(draw.expovariate(20.0))
        trial.generator.leave(row, reset=draw.random() < 0.5)


PAUSED_S = 2.5


async def paused(lab: Lab, count: int) -> None:
    """The gateway itself is stopped for a while, as by a debugger or a paused machine; nobody is killed for that."""
    settings = {**PATIENT, "decoders": 2, "devices": "cpu,cuda:0"}
    model = {"fake": {"base_ms": 20.0}}
    async with lab.trial("gateway: SIGSTOP, SIGCONT", rate=40.0, model=model, settings=settings) as trial:
        for _ in range(count):
            await asyncio.sleep(0.5)
            trial.target.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(PAUSED_S)
            trial.target.process.send_signal(signal.SIGCONT)
            trial.struck()
            await asyncio.sleep(0.5)
        trial.target.poll()
        deaths = len(trial.target.found("child_died"))
        if deaths:
            trial.row.problems.append(f"{deaths} children died because their gateway was stopped")
    lab.figures["paused_failures"].append(trial.ledger.failures())


async def frozen(lab: Lab, count: int) -> None:
    """Children are stopped one after the other and let go in another order, some too late."""
    settings = {**PATIENT, "decoders": 2, "devices": ",".join(DEVICES)}
    model = {"fake": {"base_ms": 10.0}}
    async with lab.trial("children: SIGSTOP, SIGCONT", rate=60.0, model=model, settings=settings) as trial:
        draw = random.Random(trial.seed)
        for _ in range(count):
            trial.target.poll()
            lives = [*trial.target.up("worker"), *trial.target.up("decoder")]
            for life in draw.sample(lives, len(lives)):
                send_signal(life.pid, signal.SIGSTOP)
                await asyncio.sleep(draw.random() * 0.1)
            for life in draw.sample(lives, len(lives)):
                # Whoever was buried meanwhile has no number any more.
                trial.target.poll()
                if not trial.target.lives[life.key].died_s:
                    send_signal(life.pid, signal.SIGCONT)
                await asyncio.sleep(draw.random() * 0.3)
            trial.struck()
            for index in range(len(DEVICES)):
                await trial.target.wait_up("worker", index)
            for index in range(2):
                await trial.target.wait_up("decoder", index)
    lab.figures["frozen_failures"].append(trial.ledger.failures())
