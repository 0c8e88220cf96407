"""One loaded model: its slots, its backend and its kind of answer. Runs a batch and says how it went.

A batch is a `Flight` here. `execute` takes it through in one go; where the backend is `Overlapping`, `start` and
`finish` are its two halves, which may be called by two threads. Its only state is which buffers belong together; who
may read or write a slot is decided in the gateway.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gpuworker import log
from gpuworker.backend import DeviceLost, Interrupted, overlapping
from shm import failpoints
from shm.wire import ItemStatus, Ran

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from gpuworker.answers import Answer
    from gpuworker.backend import Backend, Outputs
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


class Flight:
    """A batch on its way through a worker, and when it was where (monotonic ns; 0: not yet).

    `began_ns` is before the gather, `gathered_ns` behind it. `error`: what `start` raised; it is answered in its turn.
    """

    __slots__ = ("began_ns", "error", "gathered_ns", "model", "run")

    def __init__(self, model: Model, run: Run) -> None:
        self.model = model
        self.run = run
        self.began_ns = time.monotonic_ns()
        self.gathered_ns = 0
        self.error: Exception | None = None


class Model:
    """`rows`: the input slots, uint8[h * w * c] each, read-only."""

    __slots__ = ("_answer", "_backend", "_overlapping", "_rows", "_size_min", "_starved", "name", "sizes")

    def __init__(
        self, name: str, sizes: Sequence[int], backend: Backend, answer: Answer, rows: Sequence[NDArray[np.uint8]]
    ) -> None:
        self.name = name
        self.sizes = frozenset(sizes)
        self._size_min = min(sizes)
        self._starved = 0
        self._backend = backend
        self._overlapping = overlapping(backend)
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

    @property
    def depth(self) -> int:
        """Batches that may be started and not yet finished; 1: there is only `execute`."""
        return 1 if self._overlapping is None else self._overlapping.depth

    def execute(self, run: Run) -> Ran:
        """Run a checked batch. Whatever the engine raises fails these images and nothing else."""
        flight = Flight(self, run)
        try:
            self._fill(flight)
            outputs = self._backend.run(run.size, len(run.slots))
        except Exception as error:  # noqa: BLE001 - engines raise anything; the log gets it, the client our words
            return self._failed(flight, flight.gathered_ns, error)
        return self._answered(flight, flight.gathered_ns, outputs, 0)

    def start(self, flight: Flight) -> None:
        """Gather a checked batch and begin to run it, behind what was started before. `finish` says what came of it.

        Only where `depth` is more than 1, and by the thread that loaded the model.
        """
        assert self._overlapping is not None
        try:
            self._fill(flight)
            self._overlapping.start(flight.run.size, len(flight.run.slots))
        except Exception as error:  # noqa: BLE001 - as in `execute`
            flight.error = error

    def finish(self, flight: Flight, head_ns: int) -> Ran:
        """Wait for the oldest batch that was started, and write its answers. `head_ns`: since when it is the oldest.

        Its running is counted from then, or from its gather where that was later: before, the device was not its own.
        """
        assert self._overlapping is not None
        since_ns = max(head_ns, flight.gathered_ns)
        if flight.error is not None:
            return self._failed(flight, since_ns, flight.error)
        try:
            outputs = self._overlapping.finish()
        except Exception as error:  # noqa: BLE001 - as in `execute`
            return self._failed(flight, since_ns, error)
        return self._answered(flight, since_ns, outputs, self._overlapping.compute_ns)

    def _fill(self, flight: Flight) -> None:
        """Gather the batch's rows. Raises what a failpoint does."""
        failpoints.hit("worker.before_gather")
        self.gather([self._rows[slot] for slot in flight.run.slots], flight.run.size)
        flight.gathered_ns = time.monotonic_ns()
        failpoints.hit("worker.before_run")

    def _answered(self, flight: Flight, since_ns: int, outputs: Outputs, compute_ns: int) -> Ran:
        """Write the outputs to their slots; what raises here fails the batch like any other error."""
        run = flight.run
        try:
            failpoints.hit("worker.after_run")
            ran_ns = time.monotonic_ns()
            failed = self._answer.write(outputs, run.slots, run.top_k)
        except Exception as error:  # noqa: BLE001 - as in `execute`
            return self._failed(flight, since_ns, error)
        self._starved = 0
        statuses, detail = [ItemStatus.OK] * len(run.slots), ""
        for row in failed:
            statuses[row], detail = ItemStatus.FAILED, NO_ANSWER
        gather_ns, write_ns = flight.gathered_ns - flight.began_ns, time.monotonic_ns() - ran_ns
        return Ran(run.batch, statuses, gather_ns, ran_ns - since_ns, write_ns, detail, compute_ns)

    def _failed(self, flight: Flight, since_ns: int, error: Exception) -> Ran:
        """The reply to a batch of which something raised, wherever it was by then."""
        run = flight.run
        status, detail = self._verdict(error, run.size)
        log.event("batch_failed", level="error", error=error, model=self.name, batch=run.batch, size=run.size)
        end_ns = time.monotonic_ns()
        gathered_ns = flight.gathered_ns or end_ns
        run_ns = end_ns - max(since_ns, gathered_ns)
        return Ran(run.batch, [status] * len(run.slots), gathered_ns - flight.began_ns, run_ns, 0, detail)

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

    def rehearse_start(self, size: int, noise: NDArray[np.uint8]) -> None:
        """Begin a whole batch of `noise` as `start` would. Only where `depth` is more than 1."""
        assert self._overlapping is not None
        self.gather([noise] * size, size)
        self._overlapping.start(size, size)

    def rehearse_finish(self, size: int, top_k: int, aside: Answer) -> None:
        """Wait for the oldest one as `finish` would; `aside` as for `rehearse`."""
        assert self._overlapping is not None
        aside.write(self._overlapping.finish(), [0] * size, top_k)

    def close(self) -> None:
        """Let go of the engine."""
        self._backend.close()
