"""Ends the batch that runs when the gateway asks for it by SIGUSR1, so that a worker need not be killed for it.

Its state is which model runs now. A signal that comes between batches ends nothing: it was for one that is done by now.
One that comes late enough can end the batch after it; who sent it knows for which.
"""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpuworker.model import Model

SIGNAL = signal.SIGUSR1


def block() -> None:
    """Before any thread is started, for all of them: the signal waits for who asks for it, and kills nobody."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL])


class Interrupts:
    """The one batch that may be ended. `begin` and `end` stand around each."""

    __slots__ = ("_lock", "_running")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: Model | None = None

    def watch(self) -> None:
        """Wait for the signal from now on, in a thread of its own: the main one is inside the engine."""
        threading.Thread(target=self._listen, name="interrupts", daemon=True).start()

    def begin(self, model: Model) -> None:
        """A batch of `model` begins."""
        with self._lock:
            self._running = model

    def end(self) -> None:
        """It is done. An interrupt that is being made is waited for, so that it cannot hit the next one."""
        with self._lock:
            self._running = None

    def interrupt(self) -> None:
        """End the batch that runs, if one does."""
        with self._lock:
            if self._running is not None:
                self._running.interrupt()

    def _listen(self) -> None:
        while True:
            signal.sigwait([SIGNAL])
            self.interrupt()
