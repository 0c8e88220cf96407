"""The asyncio shell of the core: reads the clock, arms the timer, performs effects, owns futures. Decides nothing.

Inputs (requests, frames, deaths, the timer) go into the core as they come and ask for one pump at the end of the loop's
tick, so that everything that arrived together is decided and sent together.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

from gateway import errors, gpus, logs, samples
from gateway.calls import Call, Classes
from gateway.children import Children
from gateway.measured import Known, files_digest
from gateway.memory import Memory, slot_count
from gateway.metrics import Metrics
from gateway.model_state import ModelState
from gateway.scheduling.line import Line
from gateway.scheduling.scheduler import Scheduler
from gateway.scheduling.ticket import (
    Body,
    Effect,
    Fill,
    Finish,
    Interrupt,
    Kill,
    Role,
    RunBatch,
    Send,
    Spawn,
    Stage,
    Stuck,
    Ticket,
)
from gateway.supervisor import Supervisor
from shm import failpoints, wire
from shm.arena import BodyArena

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from gateway.calls import Outcome
    from gateway.config import Settings
    from gateway.measured import Measured
    from gateway.models.repository import ModelVersion
    from shm.wire import Encoding

_log = logs.get("driver")

HEARTBEAT_S = 0.5
"""How often the loop's lag is measured, and stopped children are looked for."""

BURIAL_TIMEOUT_S = 5.0
"""How long a stop waits for killed children to be gone."""

DRAIN_POLL_S = 0.02
"""How often a drain looks whether everything was answered."""

_BINARY = wire.Encoding.BINARY


class Driver:
    """One gateway's core with its children. `models` are served from the start, one worker with all of them on each
    seat; others come by `add_model` and workers of their own.
    """

    def __init__(self, settings: Settings, models: Sequence[ModelVersion], known: Iterable[Measured] = ()) -> None:
        """`known`: what models were measured to take by the gateway that this one replaces."""
        self._known = Known(known)
        self.models: dict[int, ModelVersion] = {}
        """By line index, which grows and is never used twice."""
        self._settings = settings
        self._line_count = 0
        self.memory = Memory(bodies_size=settings.bodies_size_max)
        self.core = Scheduler(
            [],
            bodies=BodyArena(settings.bodies_size_max),
            worker_count=0,
            decoder_count=settings.decoder_count(),
            frame_count_max=settings.decode_frame_count_max,
            decoder_hang_ns=int(settings.decode_cpu_ms_max * 3e6) + 1_000_000_000,
            start_timeout_ns=int(settings.child_start_timeout_s * 1e9),
            build_timeout_ns=int(settings.engine_build_timeout_s * 1e9),
            restarts_max=settings.restarts_max,
            restarts_window_ns=int(settings.restarts_window_s * 1e9),
        )
        self.metrics = Metrics()
        self.metrics.probes.append(lambda: samples.of_core(self.core, self.metrics))
        self.metrics.probes.append(lambda: samples.of_children(self.core, self.children))
        self._loop = asyncio.get_running_loop()
        self.supervisor = Supervisor(self._loop)
        devices = gpus.resolve(settings.devices, os.environ)
        if gpus.nvml() is None and set(devices) != {"cpu"}:
            _log.warning("no_nvml", devices=devices, missing="whether they are there, and what they hold")
        self.children = Children(
            self.core,
            self.memory,
            self.supervisor,
            settings=settings,
            devices=devices,
            models=self.models,
            metrics=self.metrics,
            changed=self._child_changed,
        )
        self._changed: asyncio.Future[None] | None = None
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
            Spawn: self.children.spawn,
            Interrupt: self.children.interrupt,
            Kill: self.children.kill,
            Stuck: self.children.stuck,
        }
        lines = [self.add_model(model) for model in models]
        for line in lines:
            line.awaited = True
        for seat in range(len(settings.devices) if lines else 0):
            self.core.add_worker(seat, frozenset(self.models), time.monotonic_ns())

    # -- models --------------------------------------------------------------------------------------------------

    def add_model(self, model: ModelVersion) -> Line:
        """A line with slots of its own; it is served once a worker has it. Raises OSError when there is no memory."""
        settings, contract = self._settings, model.contract
        count = slot_count(
            contract,
            worker_count=len(settings.devices),
            decoder_count=settings.decoder_count(),
            frame_count_max=settings.decode_frame_count_max,
        )
        index = self._line_count
        self.memory.add(index, model, count)
        line = Line(
            index,
            model.name,
            slot_count=count,
            queue_max=contract.limits.queue_max,
            window_ns=int(contract.batching.window_ms * 1e6),
            deadline_ns=int(contract.limits.deadline_ms * 1e6),
            weight=contract.batching.weight,
        )
        self._line_count += 1
        self.models[index] = model
        self.metrics.add(index, f"{model.name}/{model.version}")
        state = self.children.states[index] = ModelState()
        state.files = files_digest(model)
        for seat, device in enumerate(settings.devices):
            if points := self._known.of(model, state.files, device):
                state.measured[seat] = list(points)
        self.children.models_changed()
        self.core.add_line(line)
        return line

    def remove_model(self, line: Line) -> None:
        """Give back the slots of a line that was closed, is empty, and that no worker has any more."""
        self.core.remove_line(line)
        del self.children.states[line.index]
        self.metrics.remove(line.index)
        self.memory.remove(line.index)
        del self.models[line.index]
        self.children.models_changed()

    async def wait_changed(self) -> None:
        """Until something happened to a child: it came up, died, or said something of a model."""
        if self._changed is None:
            self._changed = self._loop.create_future()
        await asyncio.shield(self._changed)

    def wake(self) -> None:
        """Models or workers were changed in the core: have it decide what follows."""
        self._ask_pump()

    def _child_changed(self) -> None:
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None
        self._ask_pump()

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the children; they come up on their own time."""
        self._beat(self._loop.time())
        self._ask_pump()

    async def stop(self, drain_timeout_s: float) -> bool:
        """Accept nothing more, finish what was accepted, then end the children. Whether everything was answered."""
        self.core.drain()
        drained = await self._wait_drained(drain_timeout_s)
        self.core.refuse_rest(time.monotonic_ns())
        self._pump()
        self._stopping = self.children.stopping = True
        for handle in (self._timer, self._heartbeat):
            if handle is not None:
                handle.cancel()
        self.supervisor.stopping = True
        for child in list(self.supervisor.children.values()):
            child.kill()
        end = time.monotonic() + BURIAL_TIMEOUT_S
        while self.supervisor.children and time.monotonic() < end:  # noqa: ASYNC110 - once in a life
            await asyncio.sleep(DRAIN_POLL_S)
        if self.supervisor.children:
            _log.error("children_left", count=len(self.supervisor.children))
        return drained

    async def _wait_drained(self, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while self.core.live_count and time.monotonic() < end:  # noqa: ASYNC110 - once in a life
            await asyncio.sleep(DRAIN_POLL_S)
        return not self.core.live_count

    def _beat(self, due: float) -> None:
        lag = max(0.0, self._loop.time() - due)
        self.metrics.loop_lag_s = lag
        self.metrics.loop_lag_max_s = max(self.metrics.loop_lag_max_s, lag)
        self.children.look()
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
        client: Hashable = None,
        expendable: bool = False,
    ) -> Call:
        """Hand one request's images to the core. `parts`: (offset in the bodies segment, size, encoding or TENSOR).

        `expendable`: they are given up with the first worker that dies of them.
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
            client=client,
            expendable=expendable,
        )
        self._ask_pump()
        return Call(tickets, self._loop.create_future())

    def abandon(self, call: Call) -> None:
        """The client is gone: nobody waits for the call's answer."""
        now_ns = time.monotonic_ns()
        for ticket in call.tickets:
            if ticket.stage is not Stage.ENDED:
                self.core.cancel(ticket, now_ns)
            ticket.owner = None  # as `Call.end` would, which nobody calls any more
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
        try:
            while effects := self.core.advance(time.monotonic_ns()):
                for effect in effects:
                    try:
                        perform[type(effect)](effect)
                    except Exception:  # noqa: BLE001 - one effect's fault must not lose the ones behind it
                        _log.exception("effect_failed", effect=type(effect).__name__)
                        self._mend(effect)
        finally:
            self._arm()

    def _mend(self, effect: Effect) -> None:
        """An effect could not be performed, by a fault of ours: whoever waits for it is answered all the same."""
        if isinstance(effect, Finish | Fill):
            ticket = effect.ticket
            if ticket.stage is not Stage.ENDED:
                self.core.cancel(ticket, time.monotonic_ns())
            if ticket.owner is not None:  # else it was answered before the fault
                ticket.owner.end(ticket, errors.Refusal("something went wrong here; the log says what"))
        elif isinstance(effect, Send):
            self.core.broken(Role.DECODER, effect.decoder, "could not be sent to", time.monotonic_ns())
        elif isinstance(effect, RunBatch):
            self.core.broken(Role.WORKER, effect.worker, "could not be sent to", time.monotonic_ns())
        elif isinstance(effect, Spawn):
            self.children.lost(effect.role, effect.index, blamed=0, guilty=False)

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
        failpoints.hit("gateway.before_decode")
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
        self.core.filled(ticket, time.monotonic_ns(), self.children.refusal(ticket))

    def _run(self, run: RunBatch) -> None:
        failpoints.hit("gateway.before_batch")
        batch, child = run.batch, self.supervisor.children.get((Role.WORKER, run.worker))
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
        failpoints.hit("gateway.before_answer")
        ticket, refusal = finish.ticket, finish.refusal
        call: Call = ticket.owner
        counts = self.metrics.models[ticket.line.index]
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
