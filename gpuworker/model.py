"""One loaded model: its slots, its backend and its kind of answer. Runs a batch and says how it went.

Its only state is which buffers belong together; who may read or write a slot is decided in the gateway.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gpuworker import log
from gpuworker.backend import DeviceLost, Interrupted
from shm import failpoints
from shm.wire import ItemStatus, Ran

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gpuworker.answers import Answer
    from gpuworker.backend import Backend
    from shm.wire import Run

NOT_RUN = "the model failed on the batch that this image was in"
NO_ANSWER = "the model gave no finite answer for this image"
INTERRUPTED = "the batch was ended before it was done"
NO_MEMORY = "the batch did not fit in the worker's memory"
LOST = "the worker's device failed"

STARVED_MAX = 3
"""Batches of the smallest size in a row that do not fit: less cannot be asked for, the memory is not coming back."""


class GatewayBug(Exception):
    """The gateway asked for what a correct one never does. The worker ends itself rather than guess."""


class Model:
    """`rows`: the input slots, uint8[h * w * c] each, read-only."""

    __slots__ = ("_answer", "_backend", "_rows", "_size_min", "_starved", "name", "sizes")

    def __init__(
        self, name: str, sizes: Sequence[int], backend: Backend, answer: Answer, rows: Sequence[NDArray[np.uint8]]
    ) -> None:
        self.name = name
        self.sizes = frozenset(sizes)
        self._size_min = min(sizes)
        self._starved = 0
        self._backend = backend
        self._answer = answer
        self._rows = rows

    def check(self, run: Run) -> None:
        """Raise GatewayBug when the batch names a size, a slot or a count that this model does not have."""
        if run.size not in self.sizes:
            raise GatewayBug(f"{self.name} was never warmed at size {run.size}")
        if not 0 < len(run.slots) <= run.size:
            raise GatewayBug(f"{len(run.slots)} slots in a batch of size {run.size}")
        if not 0 <= min(run.slots) <= max(run.slots) < len(self._rows):
            raise GatewayBug(f"slots {run.slots}, and {self.name} has {len(self._rows)}")
        if run.top_k < 0:
            raise GatewayBug(f"top_k is {run.top_k}")

    def execute(self, run: Run) -> Ran:
        """Run a checked batch. Whatever the engine raises fails these images and nothing else."""
        slots, gathered, ran = run.slots, 0, 0
        begin = time.monotonic_ns()
        try:
            failpoints.hit("worker.before_gather")
            self.gather([self._rows[slot] for slot in slots], run.size)
            gathered = time.monotonic_ns()
            failpoints.hit("worker.before_run")
            outputs = self._backend.run(run.size, len(slots))
            failpoints.hit("worker.after_run")
            ran = time.monotonic_ns()
            failed = self._answer.write(outputs, slots, run.top_k)
        except Exception as error:  # noqa: BLE001 - engines raise anything; the log gets it, the client our words
            status, detail = self._verdict(error, run.size)
            log.event("batch_failed", level="error", error=error, model=self.name, batch=run.batch, size=run.size)
            statuses = [status] * len(slots)
        else:
            self._starved = 0
            statuses, detail = [ItemStatus.OK] * len(slots), ""
            for row in failed:
                statuses[row], detail = ItemStatus.FAILED, NO_ANSWER
        end = time.monotonic_ns()
        gathered, ran = gathered or end, ran or end
        return Ran(run.batch, statuses, gathered - begin, ran - gathered, end - ran, detail)

    def _verdict(self, error: Exception, size: int) -> tuple[ItemStatus, str]:
        """What to say of every image of a batch of `size` that raised."""
        if isinstance(error, Interrupted):
            return ItemStatus.INTERRUPTED, INTERRUPTED
        if isinstance(error, DeviceLost):
            return ItemStatus.DEVICE_LOST, LOST
        if not isinstance(error, MemoryError):
            self._starved = 0
            return ItemStatus.FAILED, NOT_RUN
        if size == self._size_min:
            self._starved += 1
            if self._starved == STARVED_MAX:
                return ItemStatus.DEVICE_LOST, LOST
        return ItemStatus.NO_MEMORY, NO_MEMORY

    def interrupt(self) -> None:
        """From another thread: end the batch that runs."""
        self._backend.interrupt()

    def gather(self, rows: Sequence[NDArray[np.uint8]], size: int) -> None:
        """Copy pixels to the backend's buffer; rows beyond them keep what they have, for their answers are not read."""
        for target, row in zip(self._backend.staging(size), rows, strict=False):
            target[:] = row

    def rehearse(self, size: int, noise: NDArray[np.uint8], top_k: int, aside: Answer) -> None:
        """Run a whole batch of `noise` as `execute` would. `aside` takes the answers: an Answer on memory of one's own.

        Never into a slot: while this worker comes up, another one may serve the model, and an image owns each slot.
        """
        self.gather([noise] * size, size)
        outputs = self._backend.run(size, size)
        aside.write(outputs, [0] * size, top_k)

    def close(self) -> None:
        """Let go of the engine."""
        self._backend.close()
