"""The driver with children of our own at the other end of real links: what they say wrong costs them their life, and
nobody else an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import signal
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from gateway import config, errors
from gateway.calls import Call, Classes
from gateway.driver import Driver
from gateway.link import Link, socket_pair
from gateway.models.repository import ModelVersion
from gateway.models.spec import parse_contract
from gateway.scheduling.ticket import TENSOR, Role, Ticket
from gateway.supervisor import Obituary
from shm import layout, wire
from shm.segment import Segment
from shm.wire import Encoding, ItemStatus

CONTRACT = parse_contract(
    '[input]\nwidth = 4\nheight = 4\n[output]\ntask = "classification"\ntop_k = 2\ntop_k_max = 2\n'
    "[batching]\nsizes = [1, 2]\n[limits]\nqueue_max = 8\n"
)
FIELDS = [layout.Field("index", "uint32", (2,)), layout.Field("probability", "float32", (2,))]
PROFILE = [wire.ProfilePoint(1, 1_000_000, 2_000_000), wire.ProfilePoint(2, 1_500_000, 2_000_000)]


class Peer:
    """One life of one child, played by the test."""

    def __init__(self, room, role, index, heritage, on_frame, on_death) -> None:
        self.role, self.index, self.seat, self.pid = role, index, index, 0
        self.room, self.on_death = room, on_death
        self.space, self.full, self.stopped, self.wanted = 0, False, False, False
        self.recorder = Segment.create("recorder", layout.RECORDER_SIZE)
        ours, self.socket = socket_pair()
        self.socket.setblocking(False)
        self.heritage = heritage(self.socket.fileno(), self.recorder)
        self.link = Link(room.loop, ours, lambda frame: on_frame(self, frame), self.kill)

    def kill(self) -> None:
        self.room.loop.call_soon(self.die, Obituary(-signal.SIGKILL, 0))

    def stays_stopped(self) -> bool:
        return self.stopped

    def raise_address_space(self, size: int) -> None:
        self.space += size
        if self.full:
            raise OSError(1, "not permitted")

    def die(self, obituary: Obituary) -> None:
        if self.room.children.pop((self.role, self.index), None) is self:
            self.link.drain()
            self.close()
            self.on_death(self, obituary)

    def close(self) -> None:
        self.link.close()
        self.socket.close()
        self.recorder.close()

    def say(self, *messages) -> None:
        for message in messages:
            self.socket.send(message if isinstance(message, bytes) else msgspec.msgpack.encode(message))

    async def hear(self):
        """The next message from the driver."""
        frame = await asyncio.wait_for(self.room.loop.sock_recv(self.socket, wire.FRAME_SIZE_MAX), 10)
        assert frame, "the driver closed the link"
        return wire.read_for_decoder(frame) if self.role is Role.DECODER else wire.read_for_worker(frame)


class Room:
    """A supervisor whose children are Peers, and the driver above it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.children: dict[tuple[Role, int], Peer] = {}
        self.killed: list[tuple[Role, str]] = []
        self.spawned: list[Role] = []
        settings = config.load(None, {}, {"decoders": 1, "bodies_size_max": 1 << 20, "body_size_max": 1 << 16})
        self.driver = Driver(settings, [ModelVersion("m", 1, Path("/nowhere"), CONTRACT, ())])
        self.driver.supervisor = self.driver.children._supervisor = self
        self.core = self.driver.core
        self.line = self.core.lines[0]

    def spawn(self, role, index, *, seat, module, heritage, on_frame, on_eof, on_death):
        assert seat == index
        assert module == ("gateway.decoding" if role is Role.DECODER else "gpuworker")
        self.spawned.append(role)
        self.children[role, index] = Peer(self, role, index, heritage, on_frame, on_death)

    def kill(self, role, index, reason, *, wanted=False):
        self.killed.append((role, reason))
        self.children[role, index].wanted = wanted
        self.children[role, index].kill()

    async def wait(self, condition) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, "in vain"
            await asyncio.sleep(0.001)

    async def child(self, role) -> Peer:
        """The child of a role that lives now."""
        await self.wait(lambda: (role, 0) in self.children)
        return self.children[role, 0]

    async def up(self) -> tuple[Peer, Peer]:
        """(decoder, worker), both ready."""
        decoder, worker = await self.child(Role.DECODER), await self.child(Role.WORKER)
        decoder.say(wire.DecoderReady(["no_new_privs"]))
        worker.say(wire.Loaded(0, FIELDS, PROFILE, "fake", 1), wire.WorkerReady("cpu", 1))
        await self.wait(lambda: self.core.workers[0].ready and self.core.feeder.decoders[0].ready)
        return decoder, worker

    def submit(self, count=1, *, size=100, encoding=Encoding.BINARY, deadline_s=5.0):
        body = self.core.allocate_body(size * count)
        try:
            return self.driver.submit(
                self.line,
                body,
                [(body.region.offset + n * size, size, encoding) for n in range(count)],
                priority=0,
                deadline_ns=time.monotonic_ns() + int(deadline_s * 1e9),
                top_k=1,
            )
        finally:
            body.release()

    async def decode(self, decoder: Peer) -> None:
        """Have the decoder do what it was given."""
        message = await decoder.hear()
        decoder.say(wire.Decoded([wire.DecodedItem(item.ticket, ItemStatus.OK, 1000) for item in message.items]))

    async def run(self, worker: Peer, index: int) -> None:
        """Have the worker answer what it was given with one class."""
        message = await worker.hear()
        for slot in message.slots:
            self.driver.memory.models[0].outputs["index"][slot] = [index, 0]
            self.driver.memory.models[0].outputs["probability"][slot] = [0.75, 0.25]
        worker.say(wire.Ran(message.batch, [ItemStatus.OK] * len(message.slots), 0, 0, 0))

    def assert_nothing_held(self) -> None:
        held = self.line.arena.statistics()
        assert held.pop("free") == self.line.arena.count
        assert not any(held.values())
        assert self.core.bodies.held_size == 0
        assert self.core.live_count == 0


def in_a_room(story):
    async def run() -> None:
        room = Room()
        room.driver.start()
        try:
            await story(room)
        finally:
            await room.driver.stop(0.0)
            room.driver.memory.close()

    asyncio.run(run())


async def answered(call, timeout_s=10.0):
    await asyncio.wait_for(call.answered, timeout_s)
    return call.outcomes


def test_a_model_that_comes_while_decoders_run_is_attached_and_one_that_goes_detached():
    async def story(room):
        decoder, _ = await room.up()
        line = room.driver.add_model(ModelVersion("m", 2, Path("/nowhere"), CONTRACT, ()))
        attach = await decoder.hear()
        size = room.driver.memory.models[1].input.size
        assert attach == wire.Attach(1, msgspec.json.encode(CONTRACT).decode(), line.arena.count, size)
        assert decoder.space == size

        room.core.close_line(line)
        room.driver.remove_model(line)
        assert await decoder.hear() == wire.Detach(1)
        assert decoder.space == 0
        assert (list(room.driver.models), [one.index for one in room.core.lines]) == ([0], [0])

    in_a_room(story)


def test_a_decoder_that_starts_is_given_what_came_meanwhile():
    async def story(room):
        decoder = await room.child(Role.DECODER)
        first = room.driver.add_model(ModelVersion("m", 2, Path("/nowhere"), CONTRACT, ()))
        room.driver.add_model(ModelVersion("m", 3, Path("/nowhere"), CONTRACT, ()))
        room.core.close_line(first)
        room.driver.remove_model(first)
        decoder.say(wire.DecoderReady([]))
        assert (await decoder.hear()).model == 2

    in_a_room(story)


def test_a_decoder_that_cannot_be_given_a_model_is_replaced_by_one_that_inherits_it():
    async def story(room):
        decoder, _ = await room.up()
        decoder.full = True
        room.driver.add_model(ModelVersion("m", 2, Path("/nowhere"), CONTRACT, ()))
        await room.wait(lambda: room.spawned.count(Role.DECODER) == 2)
        assert room.killed == [(Role.DECODER, "could not be given a model: not permitted")]
        successor = await room.child(Role.DECODER)
        assert [model.index for model in successor.heritage.models] == [0, 1]

    in_a_room(story)


def test_a_models_weight_and_a_devices_kind_reach_the_core():
    async def story(room):
        await room.up()
        assert room.core.workers[0].kind == "cpu"
        heavy = msgspec.structs.replace(CONTRACT, batching=msgspec.structs.replace(CONTRACT.batching, weight=3.0))
        line = room.driver.add_model(ModelVersion("m", 2, Path("/nowhere"), heavy, ()))
        assert (line.index, line.weight) == (1, 3.0)

    in_a_room(story)


def test_an_image_goes_its_way():
    async def story(room):
        decoder, worker = await room.up()
        call = room.submit()
        await room.decode(decoder)
        await room.run(worker, 7)
        (outcome,) = await answered(call)
        assert isinstance(outcome, Classes)
        assert (outcome.indices, outcome.probabilities) == ([7], [0.75])
        room.assert_nothing_held()
        assert room.killed == []

    in_a_room(story)


@pytest.mark.parametrize("ends", ["answered", "abandoned"])
def test_a_request_that_is_over_leaves_nothing_for_the_garbage_collector(ends):
    async def story(room):
        decoder, worker = await room.up()
        call = room.submit(2)
        if ends == "answered":
            await room.decode(decoder)
            await room.run(worker, 7)
            await answered(call)
        else:
            await room.wait(lambda: room.line.arena.statistics()["filling"])
            room.driver.abandon(call)
            await room.decode(decoder)
            await room.wait(lambda: not room.line.arena.statistics()["zombie"])
        room.assert_nothing_held()
        for _ in range(3):  # what the loop still holds of this turn
            await asyncio.sleep(0)
        assert any(isinstance(each, Call) for each in gc.get_objects())
        del call
        left = [type(each) for each in gc.get_objects() if isinstance(each, Call | Ticket)]
        # Of deadlines that have not come the heap keeps a few ended tickets; nobody keeps a call.
        assert Call not in left
        assert left.count(Ticket) <= 2

    gc.collect()
    gc.disable()
    try:
        in_a_room(story)
    finally:
        gc.enable()


def test_a_fault_behind_an_answer_changes_nothing_of_it(monkeypatch):
    async def story(room):
        decoder, worker = await room.up()
        release, faults = room.core.release, iter([KeyError("a fault of ours")])

        def release_after_a_fault(ticket):
            release(ticket)
            for fault in faults:
                raise fault

        monkeypatch.setattr(room.core, "release", release_after_a_fault)
        unlucky, lucky = room.submit(), room.submit()
        await room.decode(decoder)
        await room.run(worker, 1)

        for call in (unlucky, lucky):
            (outcome,) = await answered(call)
            assert isinstance(outcome, Classes)
        room.assert_nothing_held()

    in_a_room(story)


def test_a_tensor_is_copied_to_its_slot_without_a_decoder():
    async def story(room):
        _, worker = await room.up()
        pixels = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
        body = room.core.allocate_body(96)
        start = body.region.offset
        room.driver.memory.bodies_view[start : start + 96] = pixels.tobytes()
        call = room.driver.submit(
            room.line,
            body,
            [(start, 48, TENSOR), (start + 48, 48, TENSOR)],
            priority=0,
            deadline_ns=time.monotonic_ns() + 10**10,
            top_k=2,
        )
        body.release()
        message = await worker.hear()
        rows = room.driver.memory.models[0].pixels
        assert [rows[slot].tolist() for slot in message.slots] == pixels.tolist()
        worker.say(wire.Ran(message.batch, [ItemStatus.OK, ItemStatus.FAILED], 0, 0, 0, "detail for the log"))
        first, second = await answered(call)
        assert isinstance(first, Classes)
        assert isinstance(second, errors.InferenceFailed)
        assert "log" not in second.detail
        room.assert_nothing_held()

    in_a_room(story)


@pytest.mark.parametrize(
    ("status", "refusal"),
    [
        (ItemStatus.UNDECODABLE, errors.UndecodableImage),
        (ItemStatus.UNSUPPORTED_FORMAT, errors.UnsupportedMediaType),
        (ItemStatus.PIXELS_OVER_LIMIT, errors.PayloadTooLarge),
        (ItemStatus.BAD_BASE64, errors.BadRequest),
        (ItemStatus.FAILED, errors.UndecodableImage),
        (ItemStatus.LATE, errors.UndecodableImage),
    ],
)
def test_a_decoders_refusal_is_the_images(status, refusal):
    async def story(room):
        decoder, _ = await room.up()
        call = room.submit()
        message = await decoder.hear()
        decoder.say(wire.Decoded([wire.DecodedItem(message.items[0].ticket, status, 0, detail="says what is wrong")]))
        (outcome,) = await answered(call)
        assert type(outcome) is refusal
        assert outcome.detail == "says what is wrong"
        room.assert_nothing_held()

    in_a_room(story)


NONSENSE = {
    "empty": msgspec.msgpack.encode([]),
    "random": bytes(range(256)),
    "a gateway's message": wire.encode(wire.Decode([])),
    "cut": wire.encode(wire.Run(1, 0, 1, [0], 1, 0))[:-3],
    "too long": msgspec.msgpack.encode(wire.LoadFailed(0, "x" * wire.FRAME_SIZE_MAX)),
    "nested": b"\x91" * 50_000,
    "not text": b"\x93\x07\x00\xa2\xff\xfe",
}
WORKERS_LIES = {
    "a batch that it was not given": wire.Ran(999_999, [ItemStatus.OK], 0, 0, 0),
    "a model that is none": wire.Loading(99, "warmup", 0.5),
    "outputs that do not fit": wire.Loaded(0, [layout.Field("index", "uint32", (1 << 40,))], PROFILE, "fake", 1),
    "outputs of no type": wire.Loaded(0, [layout.Field("index", "object", (2,))], PROFILE, "fake", 1),
}
DECODERS_LIES = {
    "an image that it was not given": wire.Decoded([wire.DecodedItem(999_999, ItemStatus.OK, 0)]),
    "a worker's message": wire.WorkerReady("cpu", 1),
}


@pytest.mark.parametrize("lie", [*NONSENSE.values(), *WORKERS_LIES.values()], ids=[*NONSENSE, *WORKERS_LIES])
def test_a_worker_that_breaks_the_protocol_is_replaced_and_its_batch_run_again(lie):
    async def story(room):
        decoder, worker = await room.up()
        call = room.submit(2)
        await room.decode(decoder)
        message = await worker.hear()
        # What it says behind the lie is true in form, and must not be believed either.
        worker.say(lie, wire.Ran(message.batch, [ItemStatus.OK] * len(message.slots), 0, 0, 0))
        await room.wait(lambda: room.spawned.count(Role.WORKER) == 2)
        assert [role for role, _ in room.killed] == [Role.WORKER]
        assert not call.answered.done()
        successor = await room.child(Role.WORKER)
        assert successor is not worker
        successor.say(wire.Loaded(0, FIELDS, PROFILE, "fake", 1), wire.WorkerReady("cpu", 1))
        for number in (5, 6):  # one at a time: one of them may be to blame
            await room.run(successor, number)
        assert [outcome.indices for outcome in await answered(call)] == [[5], [6]]
        room.assert_nothing_held()

    in_a_room(story)


@pytest.mark.parametrize("lie", [*NONSENSE.values(), *DECODERS_LIES.values()], ids=[*NONSENSE, *DECODERS_LIES])
def test_a_decoder_that_breaks_the_protocol_is_replaced_and_its_images_are_decoded_again(lie):
    async def story(room):
        decoder, worker = await room.up()
        call = room.submit()
        message = await decoder.hear()
        decoder.say(lie, wire.Decoded([wire.DecodedItem(message.items[0].ticket, ItemStatus.UNDECODABLE, 0)]))
        await room.wait(lambda: room.spawned.count(Role.DECODER) == 2)
        assert [role for role, _ in room.killed] == [Role.DECODER]
        assert not call.answered.done()
        successor = await room.child(Role.DECODER)
        successor.say(wire.DecoderReady([]))
        await room.decode(successor)
        await room.run(worker, 3)
        assert (await answered(call))[0].indices == [3]
        room.assert_nothing_held()

    in_a_room(story)


def test_an_image_answered_twice_is_a_lie_too():
    async def story(room):
        decoder, worker = await room.up()
        call = room.submit()
        message = await decoder.hear()
        item = wire.DecodedItem(message.items[0].ticket, ItemStatus.OK, 0)
        decoder.say(wire.Decoded([item, item]))
        await room.wait(lambda: room.killed)
        await room.run(worker, 1)
        assert (await answered(call))[0].indices == [1]

    in_a_room(story)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_batch_answered_with_another_number_of_statuses_is_a_lie_too(count):
    async def story(room):
        decoder, worker = await room.up()
        room.submit(2)
        await room.decode(decoder)
        message = await worker.hear()
        worker.say(wire.Ran(message.batch, [ItemStatus.OK] * count, 0, 0, 0))
        await room.wait(lambda: room.killed)
        assert room.killed == [(Role.WORKER, "answered a batch that it was not given")]

    in_a_room(story)


def test_a_worker_that_dies_after_its_last_words_is_believed():
    async def story(room):
        decoder, worker = await room.up()
        call = room.submit()
        await room.decode(decoder)
        await room.run(worker, 4)
        worker.die(Obituary(-signal.SIGKILL, 0))
        assert (await answered(call))[0].indices == [4]
        assert room.killed == []

    in_a_room(story)


def test_a_deadline_that_passes_is_answered_on_time_and_the_slot_follows():
    async def story(room):
        decoder, worker = await room.up()
        begun = time.monotonic()
        call = room.submit(deadline_s=0.05)
        message = await decoder.hear()
        (outcome,) = await answered(call)
        assert isinstance(outcome, errors.DeadlineExceeded)
        assert 0.05 <= time.monotonic() - begun < 5
        assert room.line.arena.statistics()["zombie"] == 1
        decoder.say(wire.Decoded([wire.DecodedItem(message.items[0].ticket, ItemStatus.OK, 0)]))
        await room.wait(lambda: not room.line.arena.statistics()["zombie"])
        room.assert_nothing_held()
        with pytest.raises(BlockingIOError):
            worker.socket.recv(1)

    in_a_room(story)


@pytest.mark.parametrize("stage", ["decoding", "running"])
def test_an_abandoned_call_gives_its_slot_back_when_its_holder_answers(stage):
    async def story(room):
        decoder, worker = await room.up()
        call = room.submit()
        if stage == "running":
            await room.decode(decoder)
            await room.wait(lambda: room.line.arena.statistics()["running"])
            room.driver.abandon(call)
            await room.run(worker, 1)
        else:
            await room.wait(lambda: room.line.arena.statistics()["filling"])
            room.driver.abandon(call)
            await room.decode(decoder)
        await room.wait(lambda: not room.line.arena.statistics()["zombie"])
        room.assert_nothing_held()
        assert not call.answered.done()
        room.driver.abandon(call)  # what has ended may be abandoned again

    in_a_room(story)


def test_what_cannot_be_finished_when_it_stops_is_refused():
    async def story(room):
        decoder, worker = await room.up()
        running = room.submit(2)
        await room.decode(decoder)
        await worker.hear()
        decoding = room.submit(2)
        await decoder.hear()
        waiting = room.submit(2, size=5000)
        drained = await room.driver.stop(0.01)
        assert drained is False
        for call in (running, decoding, waiting):
            assert [type(outcome) for outcome in await answered(call)] == [errors.Draining] * 2
        assert room.children == {}
        assert room.core.live_count == 0

    in_a_room(story)


def test_stopped_with_nothing_to_do_it_says_so_and_takes_nothing_more():
    async def story(room):
        await room.up()
        assert await room.driver.stop(5.0) is True
        with pytest.raises(errors.Draining):
            room.submit()
        assert room.core.bodies.held_size == 0

    in_a_room(story)


def test_a_child_that_cannot_be_started_is_tried_again(monkeypatch):
    async def story(room):
        spawn, failures = room.spawn, [OSError(11, "no more processes")] * 3

        def fail_first(*given, **named):
            if failures:
                raise failures.pop()
            spawn(*given, **named)

        room.spawn = fail_first
        await room.up()
        assert failures == []

    in_a_room(story)


def test_a_child_that_was_stopped_from_outside_is_replaced_at_a_heartbeat():
    async def story(room):
        decoder, _ = await room.up()
        decoder.stopped = True
        room.driver.children.look()
        await room.wait(lambda: room.children.get((Role.DECODER, 0)) not in (None, decoder))
        assert room.killed == [(Role.DECODER, "stopped")]

    in_a_room(story)


def test_metrics_tell_of_children_slots_and_queues():
    async def story(room):
        decoder, worker = await room.up()
        call = room.submit()
        await room.wait(lambda: room.line.arena.statistics()["filling"])
        text = room.driver.metrics.expose().decode()
        assert 'penstock_slots{model="m/1",state="filling"} 1.0' in text
        assert 'penstock_child_ready{index="0",role="worker"} 1.0' in text
        assert "penstock_body_bytes 0.0" not in text
        await room.decode(decoder)
        await room.run(worker, 1)
        await answered(call)
        text = room.driver.metrics.expose().decode()
        assert 'penstock_images_total{code="ok",model="m/1"} 1.0' in text
        assert 'penstock_batch_images_count{model="m/1",seal="idle"} 1.0' in text
        with contextlib.suppress(KeyError):
            worker.die(Obituary(-signal.SIGSEGV, 0))
        assert 'penstock_child_restarts_total{index="0",role="worker"} 1.0' in room.driver.metrics.expose().decode()

    in_a_room(story)


def test_a_fault_in_one_effect_costs_its_request_and_nothing_else(monkeypatch):
    async def story(room):
        decoder, worker = await room.up()
        read, faults = room.driver._read_output, iter([KeyError("a fault of ours")])

        def read_output(ticket):
            for fault in faults:
                raise fault
            return read(ticket)

        monkeypatch.setattr(room.driver, "_read_output", read_output)
        unlucky, lucky = room.submit(), room.submit()
        await room.decode(decoder)
        await room.run(worker, 1)

        (outcome,) = await answered(unlucky)
        assert type(outcome) is errors.Refusal
        assert "fault" not in outcome.detail
        (outcome,) = await answered(lucky)
        assert isinstance(outcome, Classes)
        room.assert_nothing_held()

    in_a_room(story)


def test_a_child_that_cannot_be_sent_to_is_replaced_and_its_images_with_it(monkeypatch):
    async def story(room):
        _, worker = await room.up()

        def send(link, frame):
            raise OSError(errno.ENOBUFS, "no buffer space")

        monkeypatch.setattr(Link, "send", send)
        call = room.submit()
        await room.wait(lambda: (Role.DECODER, "could not be sent to") in room.killed)
        monkeypatch.undo()
        await room.wait(lambda: room.spawned.count(Role.DECODER) == 2)
        again = await room.child(Role.DECODER)
        again.say(wire.DecoderReady([]))
        await room.decode(again)
        await room.run(worker, 0)
        (outcome,) = await answered(call)
        assert isinstance(outcome, Classes)
        room.assert_nothing_held()

    in_a_room(story)


def test_a_child_is_ready_once_in_its_life():
    async def story(room):
        decoder, worker = await room.up()
        decoder.say(wire.DecoderReady([]))
        await room.wait(lambda: (Role.DECODER, "was ready twice") in room.killed)
        worker.say(wire.WorkerReady("cpu", 1))
        await room.wait(lambda: (Role.WORKER, "was ready twice") in room.killed)

    in_a_room(story)


@pytest.mark.parametrize(
    "fields",
    [
        FIELDS[:1],
        FIELDS[::-1],
        [layout.Field("index", "uint32", (2,)), layout.Field("probability", "float32", (3,))],
        [layout.Field("index", "int64", (2,)), layout.Field("probability", "float32", (2,))],
    ],
)
def test_a_worker_that_ranks_no_classes_is_not_believed(fields):
    async def story(room):
        worker = await room.child(Role.WORKER)
        worker.say(wire.Loaded(0, fields, PROFILE, "fake", 1))
        await room.wait(lambda: (Role.WORKER, "answers no ranked classes") in room.killed)

    in_a_room(story)
