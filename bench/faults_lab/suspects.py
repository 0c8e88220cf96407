"""Workers that hang, and images that take their workers along: one at a time, again, and in a flood."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from bench.faults_lab.generator import PLAIN_KIND
from bench.faults_lab.kills import PATIENT
from bench.faults_lab.ledger import Verdict
from bench.faults_lab.pictures import CRASH, HANG, KILL, LOST, SPIN

if TYPE_CHECKING:
    from bench.faults_lab.ledger import Row
    from bench.faults_lab.pictures import Pixel
    from bench.faults_lab.trial import Lab, Trial

SPECIAL = {
    "base_ms": 5.0,
    "crash_pixel": list(CRASH),
    "hang_pixel": list(HANG),
    "kill_pixel": list(KILL),
    "spin_pixel": list(SPIN),
    "lost_pixel": list(LOST),
}

TWO = {**PATIENT, "decoders": 2, "devices": "cpu,cuda:0"}

FLOOD_CLIENT = "X-Forwarded-For: 192.0.2.66\r\n"


async def hangs(lab: Lab, count: int) -> None:
    """A worker stops in the middle of a batch, as by SIGSTOP; the answers of its images come from the other one."""
    name = "worker in a batch, 2 there: SIGSTOP"
    async with lab.trial(name, rate=40.0, model={"fake": {"base_ms": 20.0}}, settings=TWO) as trial:
        for number in range(count):
            await trial.nemesis.strike_often(
                "worker", number % 2, 1, (signal.SIGSTOP,), in_batch=True, spread_s=0.2, told=trial.struck
            )
            await trial.target.wait_up("worker", number % 2)
    for blow in trial.nemesis.blows:
        held = [row for row in trial.ledger.rows if row.sent_s < blow.at_s < row.answered_s]
        lab.figures["hang_answer_s"] += [row.answered_s - blow.at_s for row in held]
    lab.figures["hang_failures"].append(trial.ledger.failures())


async def decoder_hangs(lab: Lab, count: int) -> None:
    """Both decoders stop; whatever they hold is decoded by their successors."""
    async with lab.trial("all decoders, 2 there: SIGSTOP", rate=40.0, settings=TWO) as trial:
        for _ in range(count):
            lives = [await trial.target.wait_up("decoder", index) for index in range(2)]
            blows = [trial.nemesis.strike(life, signal.SIGSTOP) for life in lives]
            for blow in blows:
                assert blow is not None
                await trial.nemesis.wait_died(blow)
                trial.struck(blow.at_s)
            for index in range(2):
                await trial.target.wait_up("decoder", index)
    for blow in trial.nemesis.blows:
        held = [row for row in trial.ledger.rows if row.sent_s < blow.at_s + 1 and row.answered_s > blow.at_s]
        lab.figures["decoder_hang_answer_s"] += [row.answered_s - max(blow.at_s, row.sent_s) for row in held]


def _is_innocent(row: Row) -> bool:
    return row.kind == PLAIN_KIND


def _deaths(trial: Trial) -> int:
    return len(trial.target.found("child_died", role="worker"))


async def _one_poison(trial: Trial, kind: str, first: Pixel, number: int) -> None:
    """Send one poison, then the same picture again; the deaths that each cost, and what was said."""
    for again in (False, True):
        before = _deaths(trial)
        row = await trial.generator.ask(kind=kind, first=first, number=number)
        # The obituary of the last death is written before the answer, and read after it.
        trial.target.poll()
        deaths = _deaths(trial) - before
        if again:
            trial.lab.figures["poison_again_crashes"].append(deaths)
        else:
            trial.lab.figures["poison_crashes"].append(deaths)
            trial.struck(row.sent_s)
        if row.verdict is Verdict.REFUSED and row.code == "poisoned" and deaths <= (0 if again else 2):
            continue
        trial.row.problems.append(f"{kind}{' again' if again else ''}: {row.status} {row.code}, {deaths} deaths")


async def poison(lab: Lab, count: int) -> None:
    """Images that crash or stop whoever runs them, among innocent ones, all of which are answered."""
    for kind, first in (("crash", CRASH), ("hang", HANG)):
        name = f"image that {'crashes' if kind == 'crash' else 'stops'} its worker, 2 there"
        async with lab.trial(name, rate=60.0, model={"fake": SPECIAL}, settings=TWO) as trial:
            for number in range(count):
                await _one_poison(trial, kind, first, 1_000_000 + number)
                for index in range(2):
                    await trial.target.wait_up("worker", index)
        _innocents(lab, trial)


async def killers(lab: Lab, count: int) -> None:
    """Images whose workers die by SIGKILL: no proof against them, and yet not run for ever."""
    name = "image whose workers are killed, 2 there"
    async with lab.trial(name, rate=60.0, model={"fake": SPECIAL}, settings=TWO) as trial:
        for number in range(count):
            before = _deaths(trial)
            row = await trial.generator.ask(kind="kill", first=KILL, number=1_000_000 + number)
            trial.target.poll()
            trial.struck(row.sent_s)
            if (row.status, row.code) != (502, "worker_lost") or _deaths(trial) - before > 5:
                trial.row.problems.append(f"kill: {row.status} {row.code}, {_deaths(trial) - before} deaths")
    _innocents(lab, trial)


async def spinners(lab: Lab, count: int) -> None:
    """Images on which a run never ends: it is interrupted, and its worker lives on where it can."""
    name = "image on which a run never ends, 2 there"
    async with lab.trial(name, rate=60.0, model={"fake": SPECIAL}, settings=TWO) as trial:
        for number in range(count):
            row = await trial.generator.ask(kind="spin", first=SPIN, number=1_000_000 + number)
            trial.struck(row.sent_s)
            if (row.status, row.code) != (500, "poisoned"):
                trial.row.problems.append(f"spin: {row.status} {row.code}")
    _innocents(lab, trial)


async def flood(lab: Lab, count: int) -> None:
    """One client sends poison after poison, each another image: it is refused, and the others are served."""
    name = "one client, many poisons, 2 workers"
    async with lab.trial(name, rate=60.0, model={"fake": SPECIAL}, settings=TWO) as trial:
        rows = []
        for number in range(count):
            rows.append(
                await trial.generator.ask(kind="flood", first=CRASH, number=1_000_000 + number, lines=FLOOD_CLIENT)
            )
            trial.struck(rows[-1].sent_s)
        trial.target.poll()
        lab.figures["flood_deaths"].append(_deaths(trial))
        if rows[-1].code != "rate_limited":
            trial.row.problems.append(f"the last of {count} poisons of one client got {rows[-1].code}")
    _innocents(lab, trial)


async def lost_devices(lab: Lab, count: int) -> None:
    """Images on which the device fails for good: the worker says so, exits and is replaced."""
    name = "image on which the device is lost, 2 there"
    async with lab.trial(name, rate=60.0, model={"fake": SPECIAL}, settings=TWO) as trial:
        for number in range(count):
            before = _deaths(trial)
            row = await trial.generator.ask(kind="lost", first=LOST, number=1_000_000 + number)
            trial.struck(row.sent_s)
            trial.target.poll()
            if row.verdict is not Verdict.REFUSED or not 0 < _deaths(trial) - before <= 5:
                trial.row.problems.append(f"lost: {row.status} {row.code}, {_deaths(trial) - before} deaths")
    _innocents(lab, trial)


async def tight(lab: Lab, count: int) -> None:
    """Batches of more than two images do not fit in memory: they are split, and the size is not tried for ever."""
    model = {"batching": {"sizes": [1, 2, 4, 8]}, "fake": {"base_ms": 10.0, "memory_images": 2}}
    async with lab.trial("batches that do not fit in memory", rate=40.0, model=model, settings=TWO) as trial:
        for _ in range(count):
            rows = [trial.generator.send() for _ in range(16)]
            for row in rows:
                await trial.generator.ended(row)
            trial.struck()
        trial.target.poll()
        if _deaths(trial):
            trial.row.problems.append(f"{_deaths(trial)} workers died of batches that they were to split")
    _innocents(lab, trial)


def _innocents(lab: Lab, trial: Trial) -> None:
    """Every innocent image gets its answer."""
    failed = trial.ledger.failures((PLAIN_KIND,))
    lab.figures["innocent_failures"].append(failed)
    if failed:
        trial.row.problems.append(f"{failed} innocent images got no answer: {dict(trial.ledger.codes(_is_innocent))}")
