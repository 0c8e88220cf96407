"""The loop of a worker whose device works by itself: while it computes one batch, the next is gathered and copied.

Two threads, one for each end. What is in between, oldest first, is the whole state::

    main      recv ─▶ check ─▶ late? ─▶ gather ─▶ start ─┐
                                                         ▼
                                     flights   [ head │ behind it ]
                                                  │
    answers                                       └▶ finish ─▶ write outputs ─▶ reply ─▶ the next one is head

The *head* is the oldest batch that was begun and not answered. It alone is named by the recorder, can be interrupted,
and is answered; so whatever happens to the process is blamed on it, as in `loop`, and replies keep their order. Engines
keep state per thread: they are loaded, started and closed by the main one. A model that does not overlap runs there
too, as in `loop`, once nothing is in flight.

Python's switch interval stays what it is: it matters only to a thread that wants to run beside one that computes in
Python for milliseconds. Both threads give the lock away many times in a batch: at each row that is gathered, each call
of CUDA, each frame.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Self

from gpuworker import log, loop
from gpuworker.model import Flight
from shm import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from gpuworker.interrupts import Interrupts
    from gpuworker.model import Model
    from shm.recorder import Recorder
    from shm.wire import Ran, Run


def serve(control: socket.socket, models: Mapping[int, Model], recorder: Recorder, interrupts: Interrupts) -> None:
    """Answer every Run with a Ran, in order; return when the gateway is gone and what was begun is done.

    Raises:
        WireError, GatewayBug: a frame that no correct gateway sends.
        DeviceLost: nothing more can be run; the batch that showed it was answered, the one behind it was not.
        ConnectionError: the gateway is gone.
    """
    with Pipeline(control, recorder, interrupts) as pipeline:
        pipeline.serve(models)


class Pipeline:
    """The batches in flight, and the thread that answers them, from `with` to the end of it."""

    def __init__(self, control: socket.socket, recorder: Recorder, interrupts: Interrupts) -> None:
        self._control = control
        self._recorder = recorder
        self._interrupts = interrupts
        self._changed = threading.Condition()
        """Guards everything below."""
        self._flights: deque[Flight] = deque()
        self._begun_count = 0
        """How many of them have left the main thread's hands: the first ones."""
        self._head_ns = 0
        """Since when the first one is the head."""
        self.took_ns: dict[tuple[Model, int], int] = {}
        """How long a batch of this model and size was the head, the last time."""
        self._closing = False
        self._failure: BaseException | None = None
        """What ended the thread that answers."""
        self._answers = threading.Thread(target=self._answer_all, name="answers")

    def __enter__(self) -> Self:
        self._answers.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let what was begun be answered. Raises what ended the other thread, unless the caller raises already."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._answers.join()
        failure = self._failure
        if error is None and failure is not None:
            raise failure
        if failure not in (None, error):
            log.event("answers_ended", level="error", error=failure)

    # -- the main thread -------------------------------------------------------------------------------------------

    def serve(self, models: Mapping[int, Model]) -> None:
        """Take what comes until the socket is closed. Raises WireError, GatewayBug, and what ended the other thread."""
        while frame := self._control.recv(wire.FRAME_SIZE_MAX):
            run, model = loop.asked(frame, models)
            self._take(run, model)

    def _take(self, run: Run, model: Model) -> None:
        """Begin a checked batch as soon as there is room for it."""
        if model.depth == 1:
            self._wait_until(lambda: not self._flights)
            loop.answer(run, model, self._control, self._recorder, self._interrupts)
            return
        self._wait_until(lambda: len(self._flights) < model.depth)
        if self._head_ends_ns() > run.latest_start_ns:
            # It seems to come too late, for no fault of its own. The head may still be quicker than it was last time.
            self._wait_until(lambda: not self._flights)
        flight = Flight(model, run)
        with self._changed:
            self._flights.append(flight)
            if len(self._flights) == 1:
                self._becomes_head(flight)
        if flight.began_ns <= run.latest_start_ns:
            model.start(flight)
        with self._changed:
            self._begun_count += 1
            self._changed.notify_all()

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or condition())
            if self._failure is not None:
                raise self._failure

    def _head_ends_ns(self) -> int:
        """When the head should be answered, if it takes as long as one like it did last time; 0: there is none."""
        with self._changed:
            if not self._flights:
                return 0
            head = self._flights[0]
            return max(time.monotonic_ns(), self._head_ns + self.took_ns.get((head.model, head.run.size), 0))

    # -- the thread that answers -----------------------------------------------------------------------------------

    def _answer_all(self) -> None:
        try:
            while (flight := self._wait_for_head()) is not None:
                loop.reply(self._finish(flight), self._control)
                self._answered(flight)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it, and names the death
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            # It may be waiting for a frame. Only its side is shut: what was sent still arrives.
            with contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_RD)

    def _wait_for_head(self) -> Flight | None:
        """The oldest batch, once it was begun; None: no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._begun_count > 0 or self._closing)
            return self._flights[0] if self._begun_count else None

    def _finish(self, flight: Flight) -> Ran:
        if flight.began_ns > flight.run.latest_start_ns:
            return loop.late(flight.run)
        ran = flight.model.finish(flight, self._head_ns)
        self._interrupts.end()
        return ran

    def _answered(self, flight: Flight) -> None:
        """After the reply: dying in between, the batch is blamed though it was answered, never the other way round."""
        with self._changed:
            if flight.began_ns <= flight.run.latest_start_ns:
                self.took_ns[flight.model, flight.run.size] = time.monotonic_ns() - self._head_ns
            self._flights.popleft()
            self._begun_count -= 1
            if self._flights:
                self._becomes_head(self._flights[0])
            else:
                self._recorder.note(0)
            self._changed.notify_all()

    def _becomes_head(self, flight: Flight) -> None:
        self._recorder.note(flight.run.batch)
        self._head_ns = time.monotonic_ns()
        if flight.began_ns <= flight.run.latest_start_ns:
            self._interrupts.begin(flight.model, self._head_ns)
