"""What must hold when a trial is over: the ledger is whole, the gateway's counters agree, and nothing is left behind.

| what | tolerance |
|---|---|
| one outcome per id, right digest, no result after its deadline | LATE_TOLERANCE_S for the network |
| /metrics' requests and images by code | none; not asked for of requests whose connection broke |
| slots, bytes of bodies | all free |
| descriptors, children, segments of the gateway | none |
| threads | THREADS_TOLERANCE: the executor has its own |
| private memory of the gateway | MEMORY_TOLERANCE_SIZE: arenas of the allocator, tables that grew |
| names in /dev/shm: open or mapped by it or its children | none |
| obituaries | one for each life that ended, with the cause that was dealt out |
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.faults_lab.ledger import Outcome, Verdict
from bench.faults_lab.target import all_children

if TYPE_CHECKING:
    from bench.faults_lab.ledger import Ledger
    from bench.faults_lab.nemesis import Blow
    from bench.faults_lab.target import Target

MEMORY_TOLERANCE_SIZE = 24 << 20

THREADS_TOLERANCE = 6
"""The event loop's executor starts its threads when it first needs them, and keeps them."""

SETTLE_S = 10.0
"""How long slots, descriptors and children have to come back to what they were."""


class Baseline(NamedTuple):
    """What a gateway holds at rest."""

    fds: int
    threads: int
    children: int
    shared: int
    """Bytes of segments, touched or not."""
    memory: int
    """Bytes of its own."""

    def differs(self, other: Baseline) -> list[str]:
        """What is more, or less, than it was."""
        found = [
            f"{name}: {before} before, {after} after"
            for name, before, after in zip(self._fields[:4], self, other, strict=False)
            if before != after and (name != "threads" or after > before + THREADS_TOLERANCE)
        ]
        if other.memory > self.memory + MEMORY_TOLERANCE_SIZE:
            found.append(f"memory: {self.memory >> 10} KiB before, {other.memory >> 10} KiB after")
        return found


def look(pid: int) -> Baseline:
    """What a process holds now."""
    fds, shared = 0, 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # Closed meanwhile.
            fds += 1
            shared += fd.stat().st_size if str(fd.readlink()).startswith("/memfd:") else 0
    return Baseline(
        fds,
        sum(1 for _ in Path(f"/proc/{pid}/task").iterdir()),
        len(all_children(pid)),
        shared,
        anonymous_size(pid),
    )


def anonymous_size(pid: int) -> int:
    """Bytes of a process's own resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    return 0


async def settled(target: Target) -> list[str]:
    """Wait until every slot is free and no body is held; what still is after SETTLE_S."""
    end = time.monotonic() + SETTLE_S
    while True:
        found = await target.metrics()
        held = [
            f"{key[1]}: {value:g} slots {key[2]}"
            for key, value in found.items()
            if key[0] == "penstock_slots" and key[2] != "free" and value
        ]
        held += [
            f"{value:g} bytes of bodies" for key, value in found.items() if key[0] == "penstock_body_bytes" and value
        ]
        if not held or time.monotonic() > end:
            return held
        await asyncio.sleep(0.02)


async def back_to(target: Target, before: Baseline) -> list[str]:
    """Wait until the gateway holds what it held before; how it differs after SETTLE_S."""
    end = time.monotonic() + SETTLE_S
    while True:
        differences = before.differs(look(target.pid))
        if not differences or time.monotonic() > end:
            return differences
        await asyncio.sleep(0.02)


async def counters(target: Target, ledger: Ledger) -> list[str]:
    """Where the gateway's counters and the ledger disagree."""
    found = await target.metrics()
    wanted = ledger.codes()
    unsure = sum(row.outcome is not Outcome.ANSWERED for row in ledger.rows)
    problems = []
    for name in ("penstock_requests_total", "penstock_images_total"):
        counted: collections.Counter[str] = collections.Counter()
        for key, value in found.items():
            if key[0] == name:
                counted[key[1]] += int(value)
        # Images that were refused before they were accepted are requests only.
        codes = sorted(counted | wanted) if "requests" in name else ["ok"]
        problems += [
            f"{name} {code}: {counted[code]} counted, {wanted[code]} answered"
            for code in codes
            if abs(counted[code] - wanted[code]) > unsure
        ]
    return problems


def names_in_shm(target: Target) -> list[str]:
    """Names in /dev/shm that the gateway or its children have open or mapped."""
    found = set()
    for pid in (target.pid, *all_children(target.pid)):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                if "/dev/shm/" in line:
                    found.add(line.partition("/dev/shm/")[2])
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                if "/dev/shm/" in (name := str(fd.readlink())):
                    found.add(name)
    return [f"/dev/shm holds {name}" for name in sorted(found)]


def obituaries(target: Target, blows: list[Blow]) -> list[str]:
    """Deaths without a line in the log, with two, or with another cause than the one that was dealt out."""
    problems = []
    lines = collections.Counter(
        (event.fields["pid"], event.fields["incarnation"]) for event in target.found("child_died")
    )
    problems += [f"pid {pid} has {count} obituaries" for (pid, _), count in lines.items() if count > 1]
    for blow in blows:
        life = target.lives[blow.life]
        if not life.died_s:
            problems.append(f"{life.role} {life.index}, pid {life.pid}, got {blow.signal.name} and has no obituary")
        elif blow.cause and life.cause != blow.cause:
            problems.append(f"{life.role} {life.index}, pid {life.pid}: {life.cause} instead of {blow.cause}")
    return problems


def outcomes(ledger: Ledger) -> list[str]:
    """What no request may end in."""
    ids = collections.Counter(row.id for row in ledger.rows)
    problems = [f"request {name} has {count} rows" for name, count in ids.items() if count > 1]
    problems += [
        f"request {row.id} ({row.kind}) {row.verdict}: {row.outcome}, status {row.status} {row.code}, "
        f"answered {row.got} for {row.answer}, {row.answered_s - row.sent_s:.3f} s after it was sent "
        f"({row.total_ms:.0f} ms by the gateway's clock)"
        for row in ledger.rows
        if row.verdict not in (Verdict.OK, Verdict.REFUSED, Verdict.EXCUSED)
    ]
    return problems
