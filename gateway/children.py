"""The gateway's talk with its children: what they inherit, what their frames mean to the core, what their deaths do.

Decides nothing: every frame and every death becomes an input of the core. A child whose frame does not fit what it was
given is broken; it is killed and never believed again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import time
from typing import TYPE_CHECKING

from gateway import errors, logs
from gateway.memory import device_grant
from gateway.model_state import BUILDING, ModelState, Stage
from gateway.scheduling import refusals
from gateway.scheduling.ticket import Role
from shm import wire
from shm.heritage import Limits
from shm.wire import ItemStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gateway.config import Settings
    from gateway.memory import Memory
    from gateway.metrics import Metrics
    from gateway.models.repository import ModelVersion
    from gateway.scheduling.scheduler import Scheduler
    from gateway.scheduling.ticket import Interrupt, Kill, Spawn, Stuck, Ticket
    from gateway.supervisor import Child, Obituary, Supervisor
    from shm.heritage import Heritage
    from shm.layout import Field
    from shm.segment import Segment

_log = logs.get("children")

_EXHAUSTED = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_TOO_LARGE = "they do not fit in the device's memory; smaller ones are run, on every device"

_REFUSALS: dict[ItemStatus, type[errors.Refusal]] = {
    ItemStatus.UNDECODABLE: errors.UndecodableImage,
    ItemStatus.UNSUPPORTED_FORMAT: errors.UnsupportedMediaType,
    ItemStatus.PIXELS_OVER_LIMIT: errors.PayloadTooLarge,
    ItemStatus.BAD_BASE64: errors.BadRequest,
}


def _ranks(fields: Sequence[Field]) -> bool:
    """Whether these are the two fields of a classification's answer, of one length."""
    if [(field.name, field.dtype) for field in fields] != [("index", "uint32"), ("probability", "float32")]:
        return False
    return len(fields[0].shape) == 1 and fields[0].shape == fields[1].shape and fields[0].shape[0] > 0


class Children:
    """Every child as the gateway knows it. `changed` asks for a pump, and tells whoever waits for a child."""

    def __init__(
        self,
        core: Scheduler,
        memory: Memory,
        supervisor: Supervisor,
        *,
        settings: Settings,
        devices: Sequence[str],
        models: Mapping[int, ModelVersion],
        metrics: Metrics,
        changed: Callable[[], None],
    ) -> None:
        self.states = {index: ModelState() for index in models}
        """By line index."""
        self.devices = list(settings.devices)
        """By seat, as the settings and people name them."""
        self.given_devices = list(devices)
        """By seat, as workers are given them; see gateway.gpus."""
        self.worker_devices: dict[int, str] = {}
        """What each worker said it runs on, once it is up; by its index."""
        self.deaths: dict[tuple[Role, int], int] = {}
        """By role and seat (a decoder's index)."""
        self.obituaries: dict[int, str] = {}
        """By seat: what the last worker died of that nobody had sent away."""
        self.kill_reasons: dict[int, str] = {}
        """By worker: why it was killed last, in the core's words."""
        self.stopping = False
        """Whether deaths are wanted, and nobody's business any more."""
        self._unborn: set[tuple[Role, int]] = set()
        """Those that could not be started yet, by role and index."""
        self._core = core
        self._memory = memory
        self._supervisor = supervisor
        self._models = models
        self._metrics = metrics
        self._changed = changed
        self._attached: dict[int, dict[int, int]] = {}
        """Of each decoder, by its index: the models that it has mapped, and the bytes of their slots."""
        self._thread_count = settings.worker_thread_count()
        self._device_grant = device_grant(settings)
        self._limits = Limits(
            cpu_ns_max=int(settings.decode_cpu_ms_max * 1e6),
            address_space_size_max=settings.decoder_memory_size_max,
            nice=settings.decoder_nice,
        )

    def spawn(self, spawn: Spawn) -> None:
        """Start a child. One that cannot be started died, unless for want of descriptors, processes or memory: that is
        no fault of its own, and it is tried again until there are some.
        """
        key = spawn.role, spawn.index
        decoder = spawn.role is Role.DECODER
        seat = spawn.index if decoder else self._core.worker(spawn.index).seat
        try:
            self._supervisor.spawn(
                spawn.role,
                spawn.index,
                seat=seat,
                module="gateway.decoding" if decoder else "gpuworker",
                heritage=self._decoder_heritage(spawn.index) if decoder else self._worker_heritage(spawn.index),
                on_frame=self._decoder_frame if decoder else self._worker_frame,
                on_eof=self._gone,
                on_death=self._died,
            )
        except OSError as error:
            again = error.errno in _EXHAUSTED
            if key not in self._unborn:
                _log.error("spawn_failed", role=spawn.role.value, index=spawn.index, error=str(error), again=again)
            if again:
                self._unborn.add(key)
                self._core.not_started(spawn.role, spawn.index, time.monotonic_ns())
            else:
                self.lost(spawn.role, spawn.index, blamed=0, guilty=False)
        else:
            self._unborn.discard(key)

    def kill(self, kill: Kill) -> None:
        """SIGKILL a child. A worker that another one has followed ends so in the best of cases."""
        wanted = kill.role is Role.WORKER and self._core.worker(kill.index).retiring
        if kill.role is Role.WORKER:
            self.kill_reasons[kill.index] = kill.reason
        self._supervisor.kill(kill.role, kill.index, kill.reason, wanted=wanted)

    def look(self) -> None:
        """Find those who are stopped. One that has nothing to do would be missed only when it gets something."""
        for child in self._supervisor.children.values():
            if child.stays_stopped():
                self._core.stopped(child.role, child.index, time.monotonic_ns())
                self._changed()

    def interrupt(self, interrupt: Interrupt) -> None:
        """Have a worker give up what it runs."""
        child = self._supervisor.children.get((Role.WORKER, interrupt.worker))
        if child is not None:
            _log.warning("worker_interrupted", index=interrupt.worker, pid=child.pid)
            child.send_signal(signal.SIGUSR1)

    def stuck(self, stuck: Stuck) -> None:
        """Say that a killed child is not gone. Nobody can do more about it."""
        child = self._supervisor.children.get((stuck.role, stuck.index))
        pid = child.pid if child is not None else 0
        _log.error("child_stuck", role=stuck.role.value, index=stuck.index, pid=pid, advice="it hangs in the kernel")

    def _decoder_heritage(self, index: int) -> Callable[[int, Segment], Heritage]:
        def heritage(fd: int, recorder: Segment) -> Heritage:
            self._attached[index] = {model: memory.input.size for model, memory in self._memory.models.items()}
            return self._memory.decoder_heritage(os.getpid(), fd, recorder, self._limits)

        return heritage

    def _worker_heritage(self, index: int) -> Callable[[int, Segment], Heritage]:
        def heritage(fd: int, recorder: Segment) -> Heritage:
            worker = self._core.worker(index)
            return self._memory.worker_heritage(
                os.getpid(),
                fd,
                recorder,
                models=worker.models,
                device=self.given_devices[worker.seat],
                thread_count=self._thread_count,
                device_grant=self._device_grant,
                profiles={
                    model: self.states[model].measured[worker.seat]
                    for model in worker.models
                    if worker.seat in self.states[model].measured
                },
            )

        return heritage

    def models_changed(self) -> None:
        """Models came or went: decoders that are up are given their slots, or let go of them."""
        for decoder in self._core.feeder.decoders:
            child = self._supervisor.children.get((Role.DECODER, decoder.index))
            if decoder.ready and child is not None:
                self._level(child)

    def _level(self, child: Child) -> None:
        """Have a decoder map just the models that there are. One that cannot is replaced by one that inherits them."""
        attached, memories = self._attached[child.index], self._memory.models
        try:
            for model in attached.keys() - memories.keys():
                child.link.send(wire.encode(wire.Detach(model)))
                child.raise_address_space(-attached.pop(model))
            for model in memories.keys() - attached.keys():
                attach, fd = self._memory.attach(model)
                child.raise_address_space(attach.size)
                child.link.send_with_fd(wire.encode(attach), fd)
                attached[model] = attach.size
        except OSError as error:
            self._break(child, f"could not be given a model: {error.strerror}")

    def _gone(self, child: Child) -> None:
        if not self.stopping:
            self._core.gone(child.role, child.index, time.monotonic_ns())
            self._changed()

    def _died(self, child: Child, obituary: Obituary) -> None:
        if not self.stopping:
            guilty = obituary.guilty if child.role is Role.DECODER else obituary.crashed
            if not child.wanted:
                self.deaths[child.role, child.seat] = self.deaths.get((child.role, child.seat), 0) + 1
                if child.role is Role.WORKER:
                    self.obituaries[child.seat] = obituary.cause
            self.lost(child.role, child.index, blamed=obituary.blamed, guilty=guilty)

    def lost(self, role: Role, index: int, *, blamed: int, guilty: bool) -> None:
        """A child is dead and reaped, or could not be started."""
        now_ns = time.monotonic_ns()
        if role is Role.DECODER:
            self._core.decoder_lost(index, blamed, guilty=guilty, now_ns=now_ns)
        else:
            worker = self._core.worker(index)
            self._core.worker_lost(index, now_ns, guilty=guilty)
            self._convict()
            for state in self.states.values():
                if state.loading.pop(index, None) is not None:
                    state.crashes[index] = state.crashes.get(index, 0) + 1
                if worker.retiring:
                    for news in (state.loaded, state.failures, state.crashes):
                        news.pop(index, None)
            if worker.retiring:
                self.worker_devices.pop(index, None)
                self.kill_reasons.pop(index, None)
        self._changed()

    def _convict(self) -> None:
        """Images that crashed the model twice: their pixels are refused from now on."""
        for ticket in list(self._core.blame.accused):
            self._core.convict(ticket, self._digest(ticket), time.monotonic_ns())

    def _digest(self, ticket: Ticket) -> bytes:
        """Of the pixels in a ticket's slot."""
        pixels = self._memory.models[ticket.line.index].pixels[ticket.slot]
        return hashlib.blake2b(pixels.reshape(-1).data, digest_size=16).digest()

    def refusal(self, ticket: Ticket) -> errors.Refusal | None:
        """Why the pixels in a ticket's slot must not reach a worker, if they must not."""
        blame = self._core.blame
        if blame.covers(ticket.line) and blame.is_convicted(ticket.line, self._digest(ticket), time.monotonic_ns()):
            return refusals.poisoned()
        return None

    def _decoder_frame(self, child: Child, frame: memoryview) -> None:
        now_ns = time.monotonic_ns()
        try:
            message = wire.read_from_decoder(frame)
        except wire.WireError:
            return self._break(child, "sent a frame that no decoder sends")
        if isinstance(message, wire.DecoderReady):
            if self._core.feeder.decoders[child.index].ready:
                return self._break(child, "was ready twice")
            _log.info("decoder_ready", index=child.index, pid=child.pid, sandbox=message.sandbox)
            self._level(child)  # models may have come while it started
            self._core.decoder_ready(child.index, now_ns)
            return self._changed()
        for item in message.items:
            refusal: errors.Refusal | None = None
            if item.status is not ItemStatus.OK:
                refusal = _REFUSALS.get(item.status, errors.UndecodableImage)(item.detail)
            elif (ticket := self._core.feeder.decoders[child.index].held.get(item.ticket)) is not None:
                refusal = self.refusal(ticket)
            if not self._core.decoded(child.index, item.ticket, refusal, item.decode_ns, now_ns):
                return self._break(child, "answered an image that it was not given")
        return self._changed()

    def _break(self, child: Child, reason: str) -> None:
        """A child broke the protocol: it is killed, and nothing that it sent behind this is read any more."""
        child.link.close()
        self._core.broken(child.role, child.index, reason, time.monotonic_ns())
        self._changed()

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
        return self._changed()

    def _batch_done(self, child: Child, ran: wire.Ran) -> None:
        batch = self._core.batch_done(child.index, ran.batch, ran.statuses, time.monotonic_ns())
        if batch is None:
            raise wire.WireError("answered a batch that it was not given")
        if ran.statuses[0] > ItemStatus.LATE:
            _log.error(
                "batch_given_up",
                worker=child.index,
                batch=ran.batch,
                cause=ran.statuses[0].name.lower(),
                detail=ran.detail,
            )
            self._convict()
            return
        if ran.statuses[0] is not ItemStatus.LATE:
            self._metrics.models[batch.line.index].batch_ran(
                len(batch.tickets), batch.seal, ran.gather_ns, ran.run_ns, ran.write_ns, ran.compute_ns
            )
        if ran.detail:
            _log.error("batch_failed", worker=child.index, batch=ran.batch, detail=ran.detail)

    def _model_news(self, child: Child, message: wire.Loading | wire.Loaded | wire.LoadFailed) -> None:
        worker = self._core.worker(child.index)
        if message.model not in worker.models:
            raise ValueError("named a model that it was not given")
        if worker.ready:
            raise ValueError("had news of a model after it was ready")
        index, now_ns = child.index, time.monotonic_ns()
        state, model = self.states[message.model], self._models[message.model]
        if isinstance(message, wire.Loading) and message.stage == BUILDING:
            self._core.worker_building(index, message.model, now_ns)
        else:
            self._core.worker_loading(index, now_ns)
        if isinstance(message, wire.Loading):
            stage = Stage(message.stage, message.share)
            if stage.is_milestone(state.loading.get(index)):
                share = round(stage.share, 2)
                _log.info("engine_building", model=model.name, version=model.version, worker=index, share=share)
            state.loading[index] = stage
        elif isinstance(message, wire.Loaded):
            count = len(message.profile)
            if not count or [point.size for point in message.profile] != list(model.contract.batching.sizes[:count]):
                raise ValueError("measured other batch sizes than it was given")
            if model.contract.output.task == "classification" and not _ranks(message.fields):
                raise ValueError("answers no ranked classes")
            self._memory.models[message.model].map_outputs(message.fields)
            state.loading.pop(index, None)
            state.failures.pop(index, None)
            state.loaded[index] = message
            state.measured[worker.seat] = message.profile
            _log.info(
                "model_loaded",
                model=model.name,
                version=model.version,
                worker=index,
                provider=message.provider,
                load_ms=round(message.load_ns / 1e6),
            )
            if given_up := list(model.contract.batching.sizes[count:]):
                _log.warning(
                    "sizes_given_up",
                    model=model.name,
                    version=model.version,
                    worker=index,
                    sizes=given_up,
                    why=_TOO_LARGE,
                )
        else:
            state.loading.pop(index, None)
            state.loaded.pop(index, None)
            state.failures[index] = message.detail
            _log.error("model_refused", model=model.name, version=model.version, worker=index, detail=message.detail)

    def _worker_ready(self, child: Child, message: wire.WorkerReady) -> None:
        index = child.index
        if self._core.worker(index).ready:
            raise ValueError("was ready twice")
        self.worker_devices[index] = message.device
        profiles = {model: state.loaded[index].profile for model, state in self.states.items() if index in state.loaded}
        sizes = {model: self._models[model].contract.batching.sizes for model in profiles}
        size_ends = {
            model: sizes[model][len(profile)] for model, profile in profiles.items() if len(profile) < len(sizes[model])
        }
        self._core.worker_ready(index, profiles, time.monotonic_ns(), kind=message.device, size_ends=size_ends)
        _log.info("worker_ready", index=index, pid=child.pid, device=message.device, rss=message.rss_size)
