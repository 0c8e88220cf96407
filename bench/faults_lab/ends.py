"""The end of a gateway: killed, asked to stop, and replaced by a successor while everybody is served."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING

from bench.faults_lab import checker
from bench.faults_lab.changes import operate
from bench.faults_lab.kills import PATIENT
from bench.faults_lab.places import CHANGE
from bench.faults_lab.target import all_children, write_model

if TYPE_CHECKING:
    from bench.faults_lab.trial import Lab, Trial

SLOW = {"fake": {"base_ms": 20.0}}

GONE_S_MAX = 1.0
"""How long children may outlive a gateway that was killed."""

GONE_TIMEOUT_S = 40.0

SUCCESSION = (
    ("gateway.before_take_over", "successor"),
    ("gateway.before_let_go", "predecessor"),
    ("gateway.after_let_go", "predecessor"),
)
"""Steps of a handover, and whose they are."""


async def killed(lab: Lab, count: int) -> None:
    """The gateway is killed at work, with one child stopped: a second later nothing of it is left."""
    for _ in range(count):
        settings = {"devices": "cpu,cuda:0", "decoders": 2}
        async with lab.trial("gateway: SIGKILL", rate=100.0, model=SLOW, settings=settings, unlasting=True) as trial:
            children = all_children(trial.target.pid)
            watched = {pid: os.pidfd_open(pid) for pid in children}
            await asyncio.sleep(0.3)
            os.kill(children[0], signal.SIGSTOP)
            trial.generator.pause()
            trial.row.problems += checker.names_in_shm(trial.target)
            killed_s = time.monotonic()
            await trial.target.stop(signal.SIGKILL)
            trial.struck(killed_s)
            late = await asyncio.to_thread(_outlived, watched, killed_s + GONE_S_MAX)
            trial.row.problems += [f"child {pid} outlived its gateway by over {GONE_S_MAX:g} s" for pid in late]
            await trial.generator.finish()
            for row in trial.ledger.rows:
                if row.answered_s >= killed_s:
                    row.excuse = "its gateway was killed"
            lab.figures["children_gone_s"].append(time.monotonic() - killed_s)


def _outlived(watched: dict[int, int], end: float) -> list[int]:
    """Pids that are not gone at `end`; each pidfd is closed."""
    late = []
    for pid, fd in watched.items():
        if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            late.append(pid)
        os.close(fd)
    return late


async def stopped(lab: Lab, count: int) -> None:
    """The gateway is asked to stop under load: whatever came before its listener closed gets its answer."""
    for _ in range(count):
        settings = {"decoders": 2, "stop_delay_s": 1.0}
        async with lab.trial("gateway: SIGTERM", rate=100.0, model=SLOW, settings=settings, unlasting=True) as trial:
            await asyncio.sleep(0.3)
            trial.struck()
            asked_s = time.monotonic()
            ending = asyncio.ensure_future(trial.target.stop(signal.SIGTERM))
            # Load balancers go on for as long as they have not heard of it: the delay is for them.
            await asyncio.sleep(0.8)
            trial.generator.pause()
            status = await ending
            lab.figures["drain_s"].append(time.monotonic() - asked_s)
            if status:
                trial.row.problems.append(f"the gateway exited with {status}")
        lab.figures["stop_failures"].append(trial.ledger.failures())


FAILING_EVERY = 10
"""Of so many successors one cannot start: it has no models."""


async def replaced(lab: Lab, count: int, rate: float = 500.0) -> None:
    """One gateway after the other takes its predecessor's place under load, as in a rolling upgrade."""
    settings = {**PATIENT, "decoders": 2, "stop_delay_s": 0.0}
    model = {"fake": {"base_ms": 1.0}}
    async with lab.trial("gateway: replaced by a successor", rate=rate, model=model, settings=settings) as trial:
        for number in range(count):
            before = trial.target
            begun_s = time.monotonic()
            if number % FAILING_EVERY == FAILING_EVERY - 1:
                await _fail_to_succeed(trial, settings)
            successor = trial.start_successor(trial.repository, settings)
            await successor.wait("it took over", lambda after=successor: after.found("took_over") and after.port)
            trial.target = successor
            trial.counted = False
            status = await asyncio.to_thread(before.process.wait, GONE_TIMEOUT_S)
            if status:
                trial.row.problems.append(f"the predecessor exited with {status}")
            lab.figures["replaced_s"].append(time.monotonic() - begun_s)
            trial.struck(begun_s)
    lab.figures["restart_failures"].append(trial.ledger.failures())


async def _fail_to_succeed(trial: Trial, settings: dict[str, object]) -> None:
    """A successor that cannot start changes nothing."""
    failing = trial.start_successor(trial.repository / "nothing", settings)
    if await asyncio.to_thread(failing.process.wait, GONE_TIMEOUT_S) == 0:
        trial.row.problems.append("a successor without models exited with 0")
    if trial.target.process.poll() is not None:
        trial.row.problems.append("a successor that failed took its predecessor along")


async def killed_in_change(lab: Lab, count: int) -> None:
    """The gateway dies in the middle of a change of models, at each step; the next one serves what is wanted."""
    for number in range(count):
        place = CHANGE[number % len(CHANGE)]
        environ = {"PENSTOCK_FAILPOINTS": f"{place}=kill@1"}
        settings = {**PATIENT, "decoders": 2}
        async with lab.trial(
            "gateway: killed in a change", rate=60.0, model=SLOW, settings=settings, environ=environ, unlasting=True
        ) as trial:
            write_model(trial.repository, "other", **SLOW)
            begun_s = time.monotonic()
            with contextlib.suppress(OSError, EOFError, ValueError, IndexError):
                await operate(trial, "POST", "/admin/models/other/versions?wait=30", {"version": 1})
            await asyncio.to_thread(trial.target.process.wait, GONE_TIMEOUT_S)
            trial.struck(begun_s)
            again = trial.start_successor(trial.repository, settings, replace=False)
            await again.wait_ready()
            ready_s = time.monotonic()
            await trial.generator.ask()
            await trial.generator.finish()
            for row in trial.ledger.rows:
                if row.sent_s < ready_s:
                    row.excuse = "its gateway was killed"
            trial.row.problems += checker.names_in_shm(again)


async def killed_in_succession(lab: Lab, count: int) -> None:
    """One of two gateways dies at a step of the handover; the other one serves on, and loses nothing of its own."""
    for number in range(count):
        place, whose = SUCCESSION[number % len(SUCCESSION)]
        environ = {"PENSTOCK_FAILPOINTS": f"{place}=kill@1"}
        settings = {**PATIENT, "decoders": 2, "stop_delay_s": 0.0}
        async with lab.trial(
            f"{whose}: killed in the handover",
            rate=100.0,
            model={"fake": {"base_ms": 1.0}},
            settings=settings,
            environ=environ if whose == "predecessor" else None,
        ) as trial:
            before = trial.target
            after = trial.start_successor(trial.repository, settings, environ=environ if whose == "successor" else None)
            dying = before if whose == "predecessor" else after
            await asyncio.to_thread(dying.process.wait, GONE_TIMEOUT_S)
            died_s = time.monotonic()
            trial.struck(died_s)
            if whose == "predecessor":
                await after.wait("it listens", lambda after=after: after.port)
                trial.target, trial.counted = after, False
            await asyncio.sleep(0.5)
            await trial.generator.finish()
            for row in trial.ledger.rows:
                if whose == "predecessor" and row.sent_s < died_s:
                    row.excuse = "its gateway was killed"
        lab.figures["succession_failures"].append(trial.ledger.failures())
