"""Models that are reloaded, loaded and unloaded under load, through the admin front as an operator would."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.faults_lab.generator import Generator
from bench.faults_lab.kills import PATIENT
from bench.faults_lab.ledger import Ledger, Verdict
from bench.faults_lab.target import all_children, write_model

if TYPE_CHECKING:
    from bench.faults_lab.trial import Lab, Trial

WAIT_S = 60

GOOD = {"base_ms": 5.0}

RELOADS: tuple[tuple[str, dict[str, object] | None, bool], ...] = (
    # (in words, [fake] of the new files or None for a file that does not parse, whether it is to be taken)
    ("good", {**GOOD, "image_ms": 0.5}, True),
    ("corrupt", None, False),
    ("slow", {**GOOD, "load_ms": 1500.0}, True),
    ("crashing", {**GOOD, "load": "crash"}, False),
    ("good", {**GOOD, "image_ms": 0.25}, True),
    ("refusing", {**GOOD, "load": "refuse"}, False),
    ("too large", {**GOOD, "load": "no_memory"}, False),
)


async def operate(
    trial: Trial, method: str, path: str, body: dict[str, Any] | None = None
) -> tuple[int, dict[str, Any]]:
    """(status, document) of one request to the admin front, on a connection of its own."""
    content = b"" if body is None else json.dumps(body).encode()
    socket = trial.target.admin_socket()
    reader, writer = await asyncio.open_unix_connection(str(socket))
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    async with asyncio.timeout(WAIT_S + 30):
        answer = await reader.read()
    writer.close()
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), json.loads(rest)


async def reloads(lab: Lab, count: int) -> None:
    """Good, slow, corrupt, crashing and too large ones; the old files serve until the new ones do, or for good.

    Half of them without overlap: the new worker is started when the old one is gone, and the queue waits.
    """
    for overlap, share in (("auto", count - count // 2), ("never", count // 2)):
        settings = {**PATIENT, "decoders": 2, "overlap": overlap}
        name = f"model: reload, overlap {overlap}"
        async with lab.trial(name, rate=100.0, model={"fake": GOOD}, settings=settings) as trial:
            for number in range(share):
                words, fake, taken = RELOADS[number % len(RELOADS)]
                rewrite(trial.repository, fake)
                begun_s = time.monotonic()
                status, document = await operate(trial, "POST", f"/admin/models/m/reload?wait={WAIT_S}", {})
                trial.struck(begun_s)
                if (status == 200) is not taken:
                    trial.row.problems.append(f"a {words} reload ended with {status}: {str(document)[:300]}")
            rewrite(trial.repository, GOOD)
        lab.figures["reload_failures"].append(trial.ledger.failures())


WANTS: tuple[dict[str, object], ...] = (
    {"versions": [1, 2], "default": 1},
    {"versions": [1, 2], "default": 2},
    {"versions": [1, 2], "weights": {"1": 1.0, "2": 1.0}},
    {"versions": [2]},
    {"versions": [1, 2], "weights": {"1": 3.0, "2": 1.0}},
    {"versions": [1]},
)


async def versions(lab: Lab, count: int) -> None:
    """Versions come, go and share the traffic while workers are killed; each answers in a way that only it can."""
    class_counts = {1: 99_991, 2: 99_989}
    model = {"fake": {"base_ms": 5.0, "class_count": class_counts[1]}}
    settings = {**PATIENT, "decoders": 2, "devices": "cpu,cuda:0", "versions": "all"}
    async with lab.trial(
        "model: versions come and go", rate=80.0, model=model, settings=settings, class_counts=class_counts
    ) as trial:
        trial.counted = False  # The counters of a version go with it.
        write_model(trial.repository, "m", 2, fake={"base_ms": 5.0, "class_count": class_counts[2]})
        for number in range(count):
            begun_s = time.monotonic()
            if number % 2:
                trial.target.poll()
                for life in trial.target.up("worker")[:1]:
                    trial.nemesis.strike(life, signal.SIGKILL)
            await _operate_well(trial, "PUT", f"/admin/models/m?wait={WAIT_S}", WANTS[number % len(WANTS)])
            trial.struck(begun_s)
            await asyncio.sleep(0.2)
        seen = {row.version for row in trial.ledger.rows if row.verdict is Verdict.OK}
        if count > 1 and seen < {1, 2}:
            trial.row.problems.append(f"only versions {seen} have ever answered")
        await operate(trial, "PUT", f"/admin/models/m?wait={WAIT_S}", WANTS[-1])
    lab.figures["version_failures"].append(trial.ledger.failures())


def rewrite(repository: Path, fake: dict[str, object] | None, name: str = "m") -> None:
    """Replace the model's files, as a copy over them would. None: by what no model is."""
    file = repository / name / "1" / "model.toml"
    if fake is None:
        file.write_text('backend = "fake"\n[input\n')
        return
    aside = repository / ".aside"
    made = write_model(aside, name, fake=fake)
    (made / "model.toml").replace(file)
    for folder in (made, made.parent, aside):
        folder.rmdir()


async def cycles(lab: Lab, count: int) -> None:
    """A model of 64 MiB is loaded beside one that serves, is asked, and is unloaded; memory stays where it was."""
    settings = {**PATIENT, "decoders": 2}
    async with lab.trial("model: load and unload", rate=40.0, model={"fake": GOOD}, settings=settings) as trial:
        write_model(trial.repository, "big", fake={"base_ms": 1.0, "memory_size": 64 << 20})
        # Its counters go with it, so its requests are in a ledger of their own.
        asker = Generator(Ledger(), trial.target.port, rate=0, seed=trial.seed, prefix="big", path="/predictions/big")
        asker.start()
        for _ in range(count):
            begun_s = time.monotonic()
            await _operate_well(trial, "POST", f"/admin/models/big/versions?wait={WAIT_S}", {"version": 1})
            row = await asker.ask(kind="big")
            if row.verdict is not Verdict.OK:
                trial.row.problems.append(f"the model that was just loaded answered {row.status} {row.code}")
            done = await _operate_well(trial, "DELETE", f"/admin/models/big?wait={WAIT_S}")
            trial.struck(begun_s)
            lab.figures["given_back_share"].append(float(done.get("given_back_share", 0.0)))
            # As whoever watches a gateway does: it keeps up to 8,192 observations from one scrape to the next.
            await trial.target.metrics()
            lab.figures["cycle_memory_kib"].append(_resident_kib(trial.target.pid))
        await asker.finish()
    lab.figures["cycle_failures"].append(trial.ledger.failures())


async def _operate_well(trial: Trial, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """The result of an operation that is to succeed; when it does not, that is a problem."""
    status, document = await operate(trial, method, path, body)
    if status != 200:
        trial.row.problems.append(f"{method} {path} ended with {status}: {str(document)[:300]}")
    return document.get("result", {})


def _resident_kib(pid: int) -> float:
    """Memory of a gateway and its children, shared pages counted once."""
    total = 0.0
    for each in (pid, *all_children(pid)):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            total += sum(float(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


async def neighbours(lab: Lab, count: int) -> None:
    """One model crashes whenever it is up, on a device of its own; the other's goodput with it over that without."""
    # The policy is part of what protects the neighbour: five restarts, but of any ten seconds instead of sixty.
    settings = {"restarts_window_s": 10, "decoders": 2, "devices": "cpu,cuda:0"}
    model = {"fake": {"base_ms": 5.0}, "limits": {"deadline_ms": 300.0}, "residency": {"devices": ["cpu"]}}
    loop = {"fake": {"base_ms": 5.0, "kill_pixel": [1, 2, 3]}, "residency": {"devices": ["cuda:0"]}}
    name = "model in a crash loop, another one beside it"
    rates: dict[bool, list[float]] = {False: [], True: []}
    async with lab.trial(
        name, rate=0.0, model=model, models={"loop": loop}, settings=settings, deadline_ms=300.0
    ) as trial:
        for number in range(2 * count):
            looping = number % 2 == 1
            rates[looping].append(await _round(trial, number, looping=looping))
        trial.target.poll()
        deaths = len(trial.target.found("child_died", role="worker"))
        if deaths < count:
            trial.row.problems.append(f"{deaths} deaths in {count} rounds: this was no crash loop")
        trial.row.faults += deaths
    lab.figures["neighbour_share"] += [
        with_it / alone for alone, with_it in zip(rates[False], rates[True], strict=True)
    ]


async def _round(trial: Trial, number: int, *, looping: bool, seconds: float = 5.0, rate: float = 100.0) -> float:
    """Right answers in time, per request that was sent to the one that is well."""
    well = trial.another(f"well{number}", rate=rate, deadline_ms=300.0)
    ill = trial.another(f"ill{number}", rate=20.0 if looping else 0.0, path="/predictions/loop", kind="loop")
    ill.start()
    if looping:
        await asyncio.sleep(1.0)
    begin = len(trial.ledger.rows)
    well.start()
    await asyncio.sleep(seconds)
    await well.finish()
    ill.pause()
    rows = [row for row in trial.ledger.rows[begin:] if row.id.startswith(f"well{number}-")]
    await ill.finish()
    await trial.target.wait("the worker is back", lambda: len(trial.target.up("worker")) == 2)
    return sum(row.verdict is Verdict.OK for row in rows) / len(rows)
