"""One fault under load, from start to verdict: a gateway, a generator, a nemesis, and the checker at the end."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.faults_lab import checker
from bench.faults_lab.generator import Generator
from bench.faults_lab.ledger import Ledger, Outcome, Verdict
from bench.faults_lab.nemesis import Nemesis
from bench.faults_lab.target import start, target, write_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from bench.faults_lab import ledger
    from bench.faults_lab.target import Target

WARM_COUNT = 24
"""Requests before the baseline is taken, so that what is made once is made."""

RECOVERY_TIMEOUT_S = 15.0
"""How long the end of a trial waits for the first right answer after the last fault."""


class Row:
    """What came of one fault, over all its trials."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.faults = 0
        self.verdicts: collections.Counter[Verdict] = collections.Counter()
        self.codes: collections.Counter[str] = collections.Counter()
        self.recovery_s = 0.0
        """The longest time from a fault to a right answer to a request that was sent after it."""
        self.problems: list[str] = []

    @property
    def requests(self) -> int:
        """How many were sent."""
        return sum(self.verdicts.values())


class Lab:
    """Makes trials, and keeps what came of them. `figures`: measured values by name, of which the bench reports one.

    `ledger`: a file for every request; `logs`: a folder for the logs of trials with problems.
    """

    def __init__(
        self,
        *,
        seed: int,
        ledger: Path | None = None,
        logs: Path | None = None,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.seed = seed
        self.rows: dict[str, Row] = {}
        self.figures: dict[str, list[float]] = collections.defaultdict(list)
        self.told = told
        self._ledger = ledger
        self._logs = logs
        self._count = 0

    def row(self, name: str) -> Row:
        """The row of a fault."""
        return self.rows.setdefault(name, Row(name))

    @contextlib.asynccontextmanager
    async def trial(
        self,
        name: str,
        *,
        rate: float,
        model: Mapping[str, Mapping[str, object]] | None = None,
        models: Mapping[str, Mapping[str, Mapping[str, object]]] | None = None,
        deadline_ms: float = 10_000.0,
        settings: Mapping[str, object] | None = None,
        environ: Mapping[str, str] | None = None,
        unlasting: bool = False,
        defects: bool = False,
        class_counts: Mapping[int, int] | None = None,
    ) -> AsyncIterator[Trial]:
        """A gateway under `rate` requests a second to model `m`, of these sections; `models`: further ones by name.

        `unlasting`: the gateway does not outlive the trial, so it cannot be held against what it was before.
        `defects`: some are injected, so that "internal" is what some requests get. `class_counts`: see Generator.
        """
        self._count += 1
        folder = Path(tempfile.mkdtemp(prefix="penstock-faults-"))
        try:
            for model_name, sections in {"m": model or {}, **(models or {})}.items():
                write_model(folder, model_name, **sections)
            async with target(folder, environ=environ, **(settings or {})) as running:
                seed = self.seed * 1000 + self._count
                options = {"deadline_ms": deadline_ms, "class_counts": class_counts}
                trial = Trial(self, name, running, folder, seed, rate, options)
                await trial.begin(_children(settings or {}))
                try:
                    try:
                        yield trial
                    except TimeoutError as error:
                        trial.row.problems.append(f"not tried to its end: {error}")
                        unlasting = True
                    await trial.end(lasting=not unlasting, defects=defects)
                except asyncio.CancelledError:
                    trial.row.problems.append("interrupted")
                    trial.tally(excuse="the trial was interrupted")
                    raise
                finally:
                    trial.close()
                    self._keep(trial)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _keep(self, trial: Trial) -> None:
        """Write the ledger, where it is wanted, and the log of a gateway about which there is something to say."""
        if self._ledger is not None:
            trial.ledger.write(self._ledger, trial.row.name)
        if self._logs is not None and trial.row.problems:
            self._logs.mkdir(exist_ok=True)
            shutil.copy(trial.target.log, self._logs / f"faults-{self._count}.log")
            trial.row.problems.append(f"(its log is faults-{self._count}.log)")


def _children(settings: Mapping[str, object]) -> int:
    """How many children a gateway with these settings has."""
    return int(str(settings.get("decoders", 2))) + len(str(settings.get("devices", "cpu")).split(","))


class Trial:
    """One gateway with its generator, in the middle of being tried."""

    def __init__(
        self,
        lab: Lab,
        name: str,
        running: Target,
        repository: Path,
        seed: int,
        rate: float,
        options: Mapping[str, Any],
    ) -> None:
        """`options` are those of every generator."""
        self.lab = lab
        self.row = lab.row(name)
        self.target = running
        self.repository = repository
        self.seed = seed
        self.ledger = Ledger()
        self._options = options
        self.generator = self.another("r", rate=rate)
        self.nemesis = Nemesis(running, seed)
        self.generator.on_end = self._note
        self.faults_s: list[float] = []
        self.counted = True
        """Whether the gateway's counters must have seen every request: not those of a successor."""
        self._successors: list[Target] = []
        self._last_good_s = 0.0
        self._baseline: checker.Baseline | None = None

    def another(self, prefix: str, *, rate: float, **options: Any) -> Generator:
        """A further client with the same ledger. Whoever makes it starts and finishes it."""
        options = {"rate": rate, "seed": self.seed, "prefix": prefix, **self._options, **options}
        return Generator(self.ledger, self.target.port, **options)

    def start_successor(
        self,
        repository: Path,
        settings: Mapping[str, object],
        *,
        replace: bool = True,
        environ: Mapping[str, str] | None = None,
    ) -> Target:
        """Start a gateway that is to take the place of the one that is tried. It ends with the trial, too."""
        before, flags = self.target, ["--replace"] if replace else []
        successor = start(repository, before.log.parent, *flags, port=before.port, environ=environ, **settings)
        self._successors.append(successor)
        return successor

    def close(self) -> None:
        """End everything that this trial started, whatever state it is in."""
        self.generator.close()
        for successor in self._successors:
            successor.close()

    def burst(self, count: int) -> None:
        """So many requests at once, for everybody to have something to do."""
        for _ in range(count):
            self.generator.send()

    async def strike_all(self) -> None:
        """Kill every child that is up."""
        self.target.poll()
        for role in ("worker", "decoder"):
            for life in self.target.up(role):
                blow = self.nemesis.strike(life, signal.SIGKILL)
                if blow is not None:
                    await self.nemesis.wait_died(blow)

    def struck(self, at_s: float | None = None) -> None:
        """One more fault was dealt, now or then."""
        self.faults_s.append(time.monotonic() if at_s is None else at_s)
        self.row.faults += 1
        self.lab.told(f"{self.row.name}: {self.row.faults}")

    async def begin(self, children: int) -> None:
        """Warm the gateway up, take its measure once it has so many children, and start the load."""
        warm = self.another("warm", rate=0, fresh_share=0.0)
        warm.start()
        for _ in range(2):
            await asyncio.gather(*(warm.ask() for _ in range(WARM_COUNT // 2)))
        await warm.finish()
        self.row.problems += await checker.settled(self.target)
        # A gateway that is ready may still miss some of them: one worker and one decoder are enough.
        await self.target.wait(
            "all its children", lambda: len(self.target.up("worker") + self.target.up("decoder")) >= children
        )
        looks = []
        for _ in range(20):
            looks.append(checker.look(self.target.pid))
            await asyncio.sleep(0.01)
        self._baseline = min(looks)
        self.generator.start()

    async def end(self, *, lasting: bool, defects: bool) -> None:
        """Stop the load, wait for every outcome, and judge."""
        if lasting:
            await self._wait_recovered()
        await self.generator.finish()
        for row in self.ledger.rows:
            if defects and row.code == "internal":
                row.excuse = "a defect was injected"
        self.target.poll()
        problems = checker.outcomes(self.ledger)
        if lasting:
            problems += await checker.settled(self.target)
            if self.counted:
                problems += await checker.counters(self.target, self.ledger)
            problems += checker.names_in_shm(self.target)
            assert self._baseline is not None
            problems += await checker.back_to(self.target, self._baseline)
            self.target.poll()
            problems += checker.obituaries(self.target, self.nemesis.blows)
            status = await self.target.stop()
            problems += [f"the gateway exited with {status}"] if status else []
        self.row.problems += problems
        self.tally()
        if lasting and self.faults_s:
            self.row.recovery_s = max(self.row.recovery_s, *self.ledger.recoveries_s(self.faults_s))

    def tally(self, excuse: str = "") -> None:
        """Count every request of this trial; `excuse` is for those that have not ended."""
        for row in self.ledger.rows:
            if row.outcome is Outcome.PENDING:
                row.excuse = excuse
        self.row.verdicts += self.ledger.verdicts()
        self.row.codes += self.ledger.codes()

    async def _wait_recovered(self) -> None:
        """Until a request was answered that was sent after the last fault."""
        end = time.monotonic() + RECOVERY_TIMEOUT_S
        last_s = max(self.faults_s, default=0.0)
        while self._last_good_s < last_s and time.monotonic() < end:
            await asyncio.sleep(0.01)

    def _note(self, row: ledger.Row) -> None:
        if row.status == 200:
            self._last_good_s = max(self._last_good_s, row.sent_s)
