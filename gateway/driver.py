"""The asyncio shell of the core: reads the clock, arms the timer, performs effects, owns futures. Decides nothing.

Inputs (requests, frames, deaths, the timer) go into the core as they come and ask for one pump at the end of the loop's
tick, so that everything that arrived together is decided and sent together.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from typing import TYPE_CHECKING, Any

from gateway import errors, logs
from gateway.memory import Memory, slot_count
from gateway.metrics import Metrics, Sample
from gateway.scheduling.line import Line
from gateway.scheduling.scheduler import Scheduler
from gateway.scheduling.ticket import (
    Body,
    Effect,
    Fill,
    Finish,
    Kill,
    Role,
    RunBatch,
    Send,
    Spawn,
    Stage,
    Ticket,
)
from gateway.supervisor import Child, Obituary, Supervisor
from shm import wire
from shm.arena import BodyArena
from shm.heritage import Limits
from shm.wire import ItemStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gateway.config import Settings
    from gateway.models.repository import ModelVersion
    from shm.heritage import Heritage
    from shm.segment import Segment
    from shm.wire import Encoding

_log = logs.get("driver")

HEARTBEAT_S = 0.5
"""How often the loop's lag is measured."""

DRAIN_POLL_S = 0.02
"""How often a drain looks whether everything was answered."""

_REFUSALS: dict[ItemStatus, type[errors.Refusal]] = {
    ItemStatus.UNDECODABLE: errors.UndecodableImage,
    ItemStatus.UNSUPPORTED_FORMAT: errors.UnsupportedMediaType,
    ItemStatus.PIXELS_OVER_LIMIT: errors.PayloadTooLarge,
    ItemStatus.BAD_BASE64: errors.BadRequest,
}


class Classes:
    """A classified image: class indices, best first, and their probabilities."""

    __slots__ = ("indices", "probabilities")

    def __init__(self, indices: list[int], probabilities: list[float]) -> None:
        self.indices = indices
        self.probabilities = probabilities


Outputs = dict[str, Any]
"""An image's raw outputs: name → a copy of its array."""

Outcome = Classes | Outputs | errors.Refusal

_BINARY = wire.Encoding.BINARY

_PENDING = errors.Refusal("not answered yet")


class Call:
    """One request that was accepted: its tickets, and an outcome for each as they end."""

    __slots__ = ("_first", "_left", "answered", "last", "outcomes", "tickets")

    def __init__(self, tickets: list[Ticket], future: asyncio.Future[None]) -> None:
        self.tickets = tickets
        self.outcomes: list[Outcome] = [_PENDING] * len(tickets)
        self.last = tickets[0]
        """The ticket that gave a result last: its stages are the request's."""
        self._first = tickets[0].number
        self._left = len(tickets)
        self.answered = future
        """Done once every image has an outcome."""
        for ticket in tickets:
            ticket.owner = self

    def end(self, ticket: Ticket, outcome: Outcome) -> None:
        """One image has its outcome; with the last one the waiter wakes."""
        self.outcomes[ticket.number - self._first] = outcome
        if ticket.done_ns:
            self.last = ticket
        self._left -= 1
        if not self._left and not self.answered.done():
            self.answered.set_result(None)


class ModelState:
    """One model as people see it: what its worker said last, per worker."""

    __slots__ = ("failures", "loaded", "loading")

    def __init__(self) -> None:
        self.loading: dict[int, str] = {}
        self.loaded: dict[int, wire.Loaded] = {}
        self.failures: dict[int, str] = {}


class Driver:
    """One gateway's core with its children. `models` in wire order."""

    def __init__(self, settings: Settings, models: Sequence[ModelVersion]) -> None:
        self.models = list(models)
        self.states = [ModelState() for _ in models]
        self.devices = list(settings.devices)
        self.worker_devices = [""] * len(self.devices)
        """What each worker said it runs on, once it is up."""
        self._settings = settings
        self._decoder_count = settings.decoder_count()
        self._thread_count = settings.worker_thread_count()
        counts = [
            slot_count(
                model.contract,
                worker_count=len(self.devices),
                decoder_count=self._decoder_count,
                frame_count_max=settings.decode_frame_count_max,
            )
            for model in models
        ]
        self.memory = Memory(models, counts, bodies_size=settings.bodies_size_max)
        self.core = Scheduler(
            [self._line(index, model, count) for index, (model, count) in enumerate(zip(models, counts, strict=True))],
            bodies=BodyArena(settings.bodies_size_max),
            worker_count=len(self.devices),
            decoder_count=self._decoder_count,
            frame_count_max=settings.decode_frame_count_max,
            decoder_hang_ns=int(settings.decode_cpu_ms_max * 3e6) + 1_000_000_000,
            start_timeout_ns=int(settings.child_start_timeout_s * 1e9),
        )
        self.metrics = Metrics([f"{model.name}/{model.version}" for model in models])
        self.metrics.probes.append(self._samples)
        self._loop = asyncio.get_running_loop()
        self.supervisor = Supervisor(self._loop)
        self._pump_asked = False
        self._stopping = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ns = 0
        self._heartbeat: asyncio.TimerHandle | None = None
        self._perform: dict[type[Effect], Callable[[Any], None]] = {
            Send: self._send,
            Fill: self._fill,
            RunBatch: self._run,
            Finish: self._finish,
            Spawn: self._spawn,
            Kill: lambda kill: self.supervisor.kill(kill.role, kill.index, kill.reason),
        }

    @staticmethod
    def _line(index: int, model: ModelVersion, count: int) -> Line:
        limits = model.contract.limits
        return Line(
            index,
            model.name,
            slot_count=count,
            queue_max=limits.queue_max,
            window_ns=int(model.contract.batching.window_ms * 1e6),
            deadline_ns=int(limits.deadline_ms * 1e6),
        )

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the children; they come up on their own time."""
        self._beat(self._loop.time())
        self._ask_pump()

    async def stop(self, drain_timeout_s: float) -> bool:
        """Accept nothing more, finish what was accepted, then end the children. Whether everything was answered."""
        self.core.drain()
        drained = await self._wait_drained(drain_timeout_s)
        self._refuse_rest()
        self._stopping = True
        for handle in (self._timer, self._heartbeat):
            if handle is not None:
                handle.cancel()
        self.supervisor.stopping = True
        for child in list(self.supervisor.children.values()):
            child.kill()
        while self.supervisor.children:  # noqa: ASYNC110 - once in a life
            await asyncio.sleep(DRAIN_POLL_S)
        return drained

    async def _wait_drained(self, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while self.core.live_count and time.monotonic() < end:  # noqa: ASYNC110 - once in a life
            await asyncio.sleep(DRAIN_POLL_S)
        return not self.core.live_count

    def _refuse_rest(self) -> None:
        """Answer what could not be finished in time: a refusal can be sent again elsewhere, a reset says nothing."""
        core, now_ns = self.core, time.monotonic_ns()
        queues = [queue for line in core.lines for queue in (line.small, line.large, line.ready)]
        held = [decoder.held.values() for decoder in core.feeder.decoders]
        batches = [batch.tickets for worker in core.workers for batch in worker.batches]
        for ticket in list(itertools.chain(*queues, *held, *batches)):
            if ticket.stage < Stage.DONE:
                core.cancel(ticket, now_ns)
                self._finish(
                    Finish(ticket, errors.Draining("the server went down; send this to another one", retry_after_s=5))
                )

    def _beat(self, due: float) -> None:
        lag = max(0.0, self._loop.time() - due)
        self.metrics.loop_lag_s = lag
        self.metrics.loop_lag_max_s = max(self.metrics.loop_lag_max_s, lag)
        self._heartbeat = self._loop.call_later(HEARTBEAT_S, self._beat, self._loop.time() + HEARTBEAT_S)

    # -- requests ------------------------------------------------------------------------------------------------

    def submit(
        self,
        line: Line,
        body: Body,
        parts: Sequence[tuple[int, int, Encoding | None]],
        *,
        priority: int,
        deadline_ns: int,
        top_k: int,
    ) -> Call:
        """Hand one request's images to the core. `parts`: (offset in the bodies segment, size, encoding or TENSOR).

        Raises: Overloaded, Draining.
        """
        tickets = self.core.submit(
            line,
            body,
            parts,
            priority=priority,
            deadline_ns=deadline_ns,
            top_k=top_k,
            now_ns=time.monotonic_ns(),
        )
        self._ask_pump()
        return Call(tickets, self._loop.create_future())

    def abandon(self, call: Call) -> None:
        """The client is gone: nobody waits for the call's answer."""
        now_ns = time.monotonic_ns()
        for ticket in call.tickets:
            if ticket.stage is not Stage.ENDED:
                self.core.cancel(ticket, now_ns)
        self._ask_pump()

    # -- the pump ------------------------------------------------------------------------------------------------

    def _ask_pump(self) -> None:
        if not self._pump_asked:
            self._pump_asked = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Perform what the core asks for until it asks for nothing, then sleep until it wants to be woken."""
        self._pump_asked = False
        if self._stopping:
            return
        perform = self._perform
        while effects := self.core.advance(time.monotonic_ns()):
            for effect in effects:
                perform[type(effect)](effect)
        self._arm()

    def _arm(self) -> None:
        """Have a timer that fires no later than the core's wake-up time. One that fires early does no harm."""
        wake_ns = self.core.wake_at_ns()
        if wake_ns is None or (self._timer is not None and self._timer_ns <= wake_ns):
            return
        if self._timer is not None:
            self._timer.cancel()
        # The loop counts whole milliseconds and may round down: round up, or it would spin.
        delay_ms = max(0, wake_ns - time.monotonic_ns()) // 1_000_000 + 1
        self._timer_ns = wake_ns
        self._timer = self._loop.call_later(delay_ms / 1000, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._pump()

    # -- effects -------------------------------------------------------------------------------------------------

    def _send(self, send: Send) -> None:
        child = self.supervisor.children.get((Role.DECODER, send.decoder))
        if child is None:
            return  # Dead already; its death takes these tickets back.
        items = [
            wire.DecodeItem(t.number, t.line.index, t.slot, t.offset, t.size, t.encoding or _BINARY)
            for t in send.tickets
        ]
        child.link.send(wire.encode(wire.Decode(items)))

    def _fill(self, fill: Fill) -> None:
        ticket = fill.ticket
        memory = self.memory.models[ticket.line.index]
        source = self.memory.bodies_view[ticket.offset : ticket.offset + ticket.size]
        memory.pixels[ticket.slot].reshape(-1).data[:] = source
        self.core.filled(ticket, time.monotonic_ns())

    def _run(self, run: RunBatch) -> None:
        batch = run.batch
        self.metrics.models[batch.line.index].batch_sent(len(batch.tickets), batch.seal)
        child = self.supervisor.children.get((Role.WORKER, run.worker))
        if child is None:
            return  # Dead already; its death takes this batch back.
        frame = wire.Run(
            batch.number,
            batch.line.index,
            batch.size,
            [ticket.slot for ticket in batch.tickets],
            max(ticket.top_k for ticket in batch.tickets),
            batch.latest_start_ns,
        )
        child.link.send(wire.encode(frame))

    def _finish(self, finish: Finish) -> None:
        ticket = finish.ticket
        call: Call = ticket.owner
        counts = self.metrics.models[ticket.line.index]
        refusal = finish.refusal
        if refusal is None:
            call.end(ticket, self._read_output(ticket))
            self.core.release(ticket)
            counts.image_done(
                ticket.sent_ns - ticket.submitted_ns,
                ticket.decoded_ns - ticket.sent_ns,
                ticket.run_ns - ticket.decoded_ns,
                ticket.done_ns - ticket.run_ns,
            )
        else:
            counts.image_refused(refusal.code)
            call.end(ticket, refusal)

    def _read_output(self, ticket: Ticket) -> Outcome:
        """Copy one image's outputs out of its slot."""
        memory = self.memory.models[ticket.line.index]
        outputs = memory.outputs
        if memory.model.contract.output.task == "classification":
            indices = outputs["index"][ticket.slot, : ticket.top_k].tolist()
            return Classes(indices, outputs["probability"][ticket.slot, : ticket.top_k].tolist())
        return {name: rows[ticket.slot].copy() for name, rows in outputs.items()}

    # -- children ------------------------------------------------------------------------------------------------

    def _spawn(self, spawn: Spawn) -> None:
        settings = self._settings
        if spawn.role is Role.DECODER:
            module, on_frame = "gateway.decoding", self._decoder_frame
            limits = Limits(
                cpu_ns_max=int(settings.decode_cpu_ms_max * 1e6),
                address_space_size_max=settings.decoder_memory_size_max,
                nice=settings.decoder_nice,
            )

            def heritage(fd: int, recorder: Segment) -> Heritage:
                return self.memory.decoder_heritage(os.getpid(), fd, recorder, limits)
        else:
            module, on_frame = "gpuworker", self._worker_frame

            def heritage(fd: int, recorder: Segment) -> Heritage:
                device = self.devices[spawn.index]
                return self.memory.worker_heritage(
                    os.getpid(), fd, recorder, device=device, thread_count=self._thread_count
                )

        try:
            self.supervisor.spawn(
                spawn.role, spawn.index, module=module, heritage=heritage, on_frame=on_frame, on_death=self._died
            )
        except OSError as error:
            _log.error("spawn_failed", role=spawn.role.value, index=spawn.index, error=str(error))
            self._lost(spawn.role, spawn.index, blamed=0, guilty=False)

    def _died(self, child: Child, obituary: Obituary) -> None:
        if not self._stopping:
            self._lost(child.role, child.index, blamed=obituary.blamed, guilty=obituary.guilty)

    def _lost(self, role: Role, index: int, *, blamed: int, guilty: bool) -> None:
        now_ns = time.monotonic_ns()
        if role is Role.DECODER:
            self.core.decoder_lost(index, blamed, guilty=guilty, now_ns=now_ns)
        else:
            self.core.worker_lost(index, now_ns)
            for state in self.states:
                state.loading.pop(index, None)
        self._ask_pump()

    def _decoder_frame(self, child: Child, frame: memoryview) -> None:
        now_ns = time.monotonic_ns()
        try:
            message = wire.read_from_decoder(frame)
        except wire.WireError:
            return self._break(child, "sent a frame that no decoder sends")
        if isinstance(message, wire.DecoderReady):
            _log.info("decoder_ready", index=child.index, pid=child.pid, sandbox=message.sandbox)
            self.core.decoder_ready(child.index, now_ns)
            return self._ask_pump()
        for item in message.items:
            refusal = None
            if item.status is not ItemStatus.OK:
                refusal = _REFUSALS.get(item.status, errors.UndecodableImage)(item.detail)
            if not self.core.decoded(child.index, item.ticket, refusal, item.decode_ns, now_ns):
                return self._break(child, "answered an image that it was not given")
        return self._ask_pump()

    def _break(self, child: Child, reason: str) -> None:
        """A child broke the protocol: it is killed, and nothing that it sent behind this is read any more."""
        child.link.close()
        self.core.broken(child.role, child.index, reason)
        self._ask_pump()

    def _worker_frame(self, child: Child, frame: memoryview) -> None:
        try:
            message = wire.read_from_worker(frame)
            if isinstance(message, wire.Ran):
                self._batch_done(child, message)
            elif isinstance(message, wire.WorkerReady):
                self._worker_ready(child, message)
            else:
                self._model_news(child, message)
        except (wire.WireError, ValueError, LookupError) as error:
            # Whatever a worker says that does not fit what it was given: it is broken, and never believed again.
            return self._break(child, str(error))
        return self._ask_pump()

    def _batch_done(self, child: Child, ran: wire.Ran) -> None:
        if self.core.batch_done(child.index, ran.batch, ran.statuses, time.monotonic_ns()) is None:
            raise wire.WireError("answered a batch that it was not given")
        if ran.detail:
            _log.error("batch_failed", worker=child.index, batch=ran.batch, detail=ran.detail)

    def _model_news(self, child: Child, message: wire.Loading | wire.Loaded | wire.LoadFailed) -> None:
        if not 0 <= message.model < len(self.models):
            raise ValueError("named a model that it was not given")
        state, model = self.states[message.model], self.models[message.model]
        index = child.index
        if isinstance(message, wire.Loading):
            state.loading[index] = f"{message.stage} {message.share:.0%}"
        elif isinstance(message, wire.Loaded):
            if [point.size for point in message.profile] != list(model.contract.batching.sizes):
                raise ValueError("measured other batch sizes than it was given")
            self.memory.models[message.model].map_outputs(message.fields)
            state.loading.pop(index, None)
            state.failures.pop(index, None)
            state.loaded[index] = message
            _log.info(
                "model_loaded",
                model=model.name,
                version=model.version,
                worker=index,
                provider=message.provider,
                load_ms=round(message.load_ns / 1e6),
            )
        else:
            state.loading.pop(index, None)
            state.loaded.pop(index, None)
            state.failures[index] = message.detail
            _log.error("model_refused", model=model.name, version=model.version, worker=index, detail=message.detail)

    def _worker_ready(self, child: Child, message: wire.WorkerReady) -> None:
        index = child.index
        self.worker_devices[index] = message.device
        profiles = {
            model: state.loaded[index].profile for model, state in enumerate(self.states) if index in state.loaded
        }
        self.core.worker_ready(index, profiles, time.monotonic_ns())
        _log.info("worker_ready", index=index, pid=child.pid, device=message.device, rss=message.rss_size)

    # -- seeing --------------------------------------------------------------------------------------------------

    def _samples(self) -> Iterator[Sample]:
        """What the metrics read off the core at each scrape."""
        for line, counts in zip(self.core.lines, self.metrics.models, strict=True):
            for state, count in line.arena.statistics().items():
                yield "penstock_slots", (counts.name, state), count
            yield "penstock_queue_images", (counts.name, "decode"), line.waiting_count
            yield "penstock_queue_images", (counts.name, "batch"), len(line.ready)
        yield "penstock_body_bytes", (), self.core.bodies.held_size
        yield "penstock_body_bytes_max", (), self.core.bodies.size
        for role, children in ((Role.DECODER, self.core.feeder.decoders), (Role.WORKER, self.core.workers)):
            for child in children:
                yield "penstock_child_restarts", (role.value, str(child.index)), child.restarts.total
                yield "penstock_child_ready", (role.value, str(child.index)), float(child.ready)
        yield "penstock_log_lines_dropped", (), logs.dropped_count()
