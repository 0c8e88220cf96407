"""The generator's own part in what was measured: was it late, was its core full, did it wait for one? In words."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gateway.bench import processes
from gateway.loadtest.alarm import Alarm

if TYPE_CHECKING:
    import asyncio

LOOK_S = 0.005
"""How often the generator's loop is asked whether it is there."""

CPU_SHARE_MAX = 0.85
WAITED_SHARE_MAX = 0.10
LATE_MS_MAX = 1.0
LATE_SHARE_MAX = 0.2
"""Of the p50 latency: being later than both this and LATE_MS_MAX spoils what was measured."""


class Own(NamedTuple):
    """`lateness_p99_ms`: requests behind their schedule; `loop_p99_ms`: the loop behind its own clock.

    `cpu_share`: of one core; `waited_share`: of the time, ready to run and without a core.
    """

    lateness_p99_ms: float
    loop_p99_ms: float
    cpu_share: float
    waited_share: float

    def limits(self, p50_ms: float, unsent_count: int) -> list[str]:
        """In sentences, how the generator itself was the limit; empty when it was not. `p50_ms`: of the answers."""
        found = []
        if self.cpu_share > CPU_SHARE_MAX:
            found.append(
                f"The generator used {self.cpu_share:.0%} of a core, all that one process has: the rate is its own, not"
                " the server's. Send less, or from several machines."
            )
        late_ms = max(self.lateness_p99_ms, self.loop_p99_ms)
        if late_ms > max(LATE_MS_MAX, LATE_SHARE_MAX * p50_ms):
            found.append(
                f"The generator was {late_ms:.1f} ms late (p99), against a median latency of {p50_ms:.1f} ms: latencies"
                " are partly its own."
            )
        if self.waited_share > WAITED_SHARE_MAX:
            found.append(
                f"The generator waited for a core {self.waited_share:.0%} of the time: it shares this machine with too"
                " much else, the server perhaps. Run it elsewhere, or keep a core for it."
            )
        if unsent_count:
            found.append(
                f"{unsent_count} requests were not sent, for all connections were busy: the server is slower than the"
                " schedule, or --connections is too small."
            )
        return found


class Watch:
    """Looks at the generator while it runs, from its own loop. `end` gives what it saw."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._lags: list[float] = []
        self._began_s = time.monotonic()
        self._cpu_s = time.process_time()
        self._waited_ns = processes.waited_ns()
        self._alarm = Alarm(loop, self._ring)
        self._next_s = self._began_s
        self._set()

    def _set(self) -> None:
        self._next_s = max(self._next_s, time.monotonic()) + LOOK_S
        self._alarm.set(self._next_s)

    def _ring(self) -> None:
        self._lags.append(time.monotonic() - self._next_s)
        self._set()

    def end(self, lateness_p99_ms: float) -> Own:
        """Stop looking. `lateness_p99_ms`: of the requests, as the run noted it."""
        self._alarm.close()
        seconds = max(time.monotonic() - self._began_s, 1e-9)
        return Own(
            lateness_p99_ms,
            float(np.percentile(self._lags, 99)) * 1e3 if self._lags else 0.0,
            (time.process_time() - self._cpu_s) / seconds,
            (processes.waited_ns() - self._waited_ns) / 1e9 / seconds,
        )
