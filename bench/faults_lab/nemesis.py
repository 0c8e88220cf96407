"""What is done to a gateway's children, when a seed says so. Victims are children of the gateway that we started."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

from bench.faults_lab.target import is_in_batch, send_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.faults_lab.target import Key, Life, Target


class Blow(NamedTuple):
    """One fault: `life` whose, `at_s` by `time.monotonic()`, `stamp_s` by `time.time()`, `cause` its obituary names."""

    life: Key
    signal: signal.Signals
    at_s: float
    stamp_s: float
    in_batch: bool
    cause: str


class Nemesis:
    """Strikes the children of one target. Its state is the list of blows that it dealt."""

    def __init__(self, target: Target, seed: int) -> None:
        self._target = target
        self._seed = seed
        self.blows: list[Blow] = []

    def strike(self, life: Life, number: signal.Signals, *, in_batch: bool = False) -> Blow | None:
        """Send a signal to one child; None when it was gone already."""
        # SIGSTOP is answered by the gateway with SIGKILL.
        cause = "SIGKILL" if number is signal.SIGSTOP else number.name
        blow = Blow(life.key, number, time.monotonic(), time.time(), in_batch, cause)
        if not send_signal(life.pid, number):
            return None
        self.blows.append(blow)
        return blow

    async def strike_often(
        self,
        role: str,
        index: int,
        count: int,
        signals: Sequence[signal.Signals],
        *,
        in_batch: bool | None,
        spread_s: float,
        told: Callable[[float], None] = lambda _: None,
        employ: Callable[[], None] = lambda: None,
    ) -> None:
        """Strike the child of that index `count` times, each time once it is up and after a drawn time.

        `in_batch`: only while it runs a batch (True), only while it does not (False), or either way (None). `employ`
        gives it work first: one that dies again and again without having done any is kept waiting longer and longer.
        """
        draw = random.Random(f"{self._seed}/{role}/{index}")
        for _ in range(count):
            blow = None
            while blow is None:
                life = await self._target.wait_up(role, index)
                employ()
                await asyncio.sleep(draw.random() * spread_s)
                end = time.monotonic() + 5.0
                while in_batch is not None and is_in_batch(life.pid) is not in_batch and time.monotonic() < end:
                    await asyncio.sleep(0.0005)
                if in_batch:
                    # Anywhere within the batch, not at its begin.
                    await asyncio.sleep(draw.random() * 0.01)
                at_work = is_in_batch(life.pid)
                self._target.poll()
                if in_batch in (None, at_work) and life in self._target.up(role, index):
                    blow = self.strike(life, draw.choice(signals), in_batch=at_work)
            await self.wait_died(blow)
            told(blow.at_s)

    async def wait_died(self, blow: Blow) -> Life:
        """Until the obituary of whom it struck is there."""
        lives = self._target.lives
        await self._target.wait(f"the death of {blow.life}", lambda: lives[blow.life].died_s)
        return lives[blow.life]

    def detections_ms(self) -> list[float]:
        """From each deadly blow to its obituary. The log's stamps are cut to whole ms: one is added, none is hidden."""
        lives = self._target.lives
        return [
            (lives[blow.life].died_s - blow.stamp_s) * 1e3 + 1.0
            for blow in self.blows
            if blow.signal is not signal.SIGSTOP and lives[blow.life].died_s
        ]

    def recoveries_s(self) -> list[float]:
        """From each blow to the time when the child of that index was up again."""
        found = []
        for blow in self.blows:
            role, index, incarnation = blow.life
            later = (self._target.lives.get((role, index, incarnation + more)) for more in (1, 2, 3))
            ready = [life.ready_s for life in later if life is not None and life.ready_s]
            if ready:
                found.append(ready[0] - blow.stamp_s)
        return found
