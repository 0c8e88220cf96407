"""The real Scheduler as a policy of the laboratory: performs its effects, believes none of its counters.

Images are tensors, which are in their slots at once; or, with `decode_ns`, pictures that pass through decoders of the
laboratory's own, which take exactly so long each.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bench.lab.machine import Noise
from bench.lab.traces import START_NS
from gateway import errors
from gateway.scheduling.line import Line
from gateway.scheduling.scheduler import Scheduler
from gateway.scheduling.ticket import TENSOR, Fill, Finish, Kill, RunBatch, Send, Spawn
from shm.arena import BodyArena
from shm.wire import Encoding, ItemStatus, ProfilePoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.lab.law import Law
    from bench.lab.machine import Machine, Run
    from gateway.scheduling.ticket import Ticket

_HANG_NS = 60_000_000_000
"""No child of the laboratory hangs."""

_BODY_SIZE = 64

WARM_RUNS = 20
"""Of each size, at load; see gpuworker/profile.py."""

WARM_SEED = 7


def scheduler(
    law: Law,
    *,
    worker_count: int,
    model_count: int,
    now_ns: int,
    decoder_count: int = 1,
    weights: Sequence[float] | None = None,
    noise: Noise | None = None,
) -> Scheduler:
    """A core whose children are all up. Only deadlines limit what it may accept.

    Its profile is what a worker would have measured at load: exact, or of WARM_RUNS runs of each size with `noise`.
    """
    queue_max = 16_384 + 2_048 * worker_count // model_count
    lines = [
        Line(
            index,
            f"m{index}",
            slot_count=queue_max + 2 * worker_count * law.sizes[-1],
            queue_max=queue_max,
            window_ns=0,
            deadline_ns=law.deadline_ns,
            **({} if weights is None else {"weight": weights[index]}),
        )
        for index in range(model_count)
    ]
    core = Scheduler(
        lines,
        bodies=BodyArena(_BODY_SIZE * queue_max * model_count),
        worker_count=worker_count,
        decoder_count=decoder_count,
        frame_count_max=8,
        decoder_hang_ns=_HANG_NS,
        start_timeout_ns=_HANG_NS,
    )
    assert all(isinstance(effect, Spawn) for effect in core.advance(now_ns))
    for index in range(decoder_count):
        core.decoder_ready(index, now_ns)
    points = [_measured(size, law.time_ns(size), noise) for size in law.sizes]
    for index in range(worker_count):
        core.worker_ready(index, dict.fromkeys(range(model_count), points), now_ns)
    return core


def _measured(size: int, time_ns: int, noise: Noise | None) -> ProfilePoint:
    """What a worker reports of a size that takes `time_ns`: median and 99th percentile."""
    times_ns = sorted(int(time_ns * noise.factor()) if noise is not None else time_ns for _ in range(WARM_RUNS))
    return ProfilePoint(size, times_ns[WARM_RUNS // 2], times_ns[-1])


def size_best(law: Law, worker_count: int) -> int:
    """B*, as the core chooses it for one model."""
    return scheduler(law, worker_count=worker_count, model_count=1, now_ns=START_NS).lines[0].pace.best_size


class Core:
    """The adapter. `decode_ns` None: tensors."""

    name = "core"

    def __init__(
        self, *, decode_ns: int | None = None, decoder_count: int = 1, weights: Sequence[float] | None = None
    ) -> None:
        self._decode_ns = decode_ns
        self._decoder_count = decoder_count
        self._weights = weights
        self._encoding = TENSOR if decode_ns is None else Encoding.BINARY
        self._decoder_free_ns = [0] * decoder_count
        self._perform: dict[type, Callable[[Any], None]] = {
            Fill: self._fill,
            Send: self._send,
            RunBatch: self._run,
            Finish: self._finish,
            Kill: self._kill,
        }

    def begin(self, machine: Machine) -> None:
        self._machine = machine
        self.scheduler = scheduler(
            machine.law,
            worker_count=machine.worker_count,
            model_count=machine.trace.model_count,
            now_ns=machine.now_ns,
            decoder_count=self._decoder_count,
            weights=self._weights,
            noise=None if machine.noise is None else Noise(WARM_SEED),
        )

    def offer(self, request: int, now_ns: int) -> bool:
        core, machine = self.scheduler, self._machine
        line, deadline_ns = core.lines[machine.model[request]], machine.deadline_ns[request]
        try:
            core.precheck(line, deadline_ns, now_ns)
            body = core.allocate_body(_BODY_SIZE)
            try:
                (ticket,) = core.submit(
                    line,
                    body,
                    [(body.region.offset, _BODY_SIZE, self._encoding)],
                    priority=machine.priority[request],
                    deadline_ns=deadline_ns,
                    top_k=1,
                    now_ns=now_ns,
                )
            finally:
                body.release()
        except errors.Refusal:
            return False
        ticket.owner = request
        return True

    def batch_done(self, worker: int, run: Run, *, ran: bool, now_ns: int) -> None:
        status = ItemStatus.OK if ran else ItemStatus.LATE
        batch = self.scheduler.batch_done(worker, run.number, [status] * len(run.requests), now_ns)
        assert batch is not None, "the core does not know a batch that it sent"

    def decide(self, now_ns: int) -> int | None:
        perform = self._perform
        while effects := self.scheduler.advance(now_ns):
            for effect in effects:
                perform[type(effect)](effect)
        return self.scheduler.wake_at_ns()

    # -- effects -------------------------------------------------------------------------------------------------

    def _fill(self, fill: Fill) -> None:
        self.scheduler.filled(fill.ticket, self._machine.now_ns)

    def _send(self, send: Send) -> None:
        """The decoder works through what it was sent, in order."""
        assert self._decode_ns is not None
        now_ns = self._machine.now_ns
        for ticket in send.tickets:
            free_ns = max(self._decoder_free_ns[send.decoder], now_ns) + self._decode_ns
            self._decoder_free_ns[send.decoder] = free_ns
            self._machine.after(free_ns - now_ns, partial(self._decoded, send.decoder, ticket))

    def _decoded(self, decoder: int, ticket: Ticket) -> None:
        known = self.scheduler.decoded(decoder, ticket.number, None, self._decode_ns or 0, self._machine.now_ns)
        assert known, "the core does not know an image that it sent"

    def _run(self, effect: RunBatch) -> None:
        batch = effect.batch
        self._machine.run(
            effect.worker,
            [ticket.owner for ticket in batch.tickets],
            batch.size,
            latest_start_ns=batch.latest_start_ns,
            number=batch.number,
        )

    def _finish(self, finish: Finish) -> None:
        if finish.refusal is None:
            self._machine.answer(finish.ticket.owner)
            self.scheduler.release(finish.ticket)
        else:
            self._machine.give_up(finish.ticket.owner)

    @staticmethod
    def _kill(kill: Kill) -> None:
        raise AssertionError(f"the core kills {kill.role.value} {kill.index}, which {kill.reason}")
