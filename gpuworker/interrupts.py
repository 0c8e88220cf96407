"""Ends the batch that runs when the gateway asks for it by SIGUSR1, so that a worker need not be killed for it.

Its state is which model runs now, and since when. A signal that comes between batches, or when one has just begun, ends
nothing: it was for one that is done by now.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuworker.model import Model

SIGNAL = signal.SIGUSR1

YOUNG_NS = 500_000_000
"""A batch that began so shortly ago is not the one that the gateway gave up: it waits a second at least."""


def block() -> None:
    """Before any thread is started, for all of them: the signal waits for who asks for it, and kills nobody."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL])


class Interrupts:
    """The one batch that may be ended. `begin` and `end` stand around each."""

    __slots__ = ("_began_ns", "_lock", "_running")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: Model | None = None
        self._began_ns = 0

    def watch(self) -> None:
        """Wait for the signal from now on, in a thread of its own: the main one is inside the engine."""
        threading.Thread(target=self._listen, name="interrupts", daemon=True).start()

    def begin(self, model: Model, now_ns: int) -> None:
        """A batch of `model` begins."""
        with self._lock:
            self._running = model
            self._began_ns = now_ns

    def end(self) -> None:
        """It is done. An interrupt that is being made is waited for, so that it cannot hit the next one."""
        with self._lock:
            self._running = None

    def interrupt(self, now_ns: int) -> None:
        """End the batch that runs, if one does and can be meant."""
        with self._lock:
            if self._running is not None and now_ns - self._began_ns >= YOUNG_NS:
                self._running.interrupt()

    def _listen(self) -> None:
        while True:
            signal.sigwait([SIGNAL])
            self.interrupt(time.monotonic_ns())
