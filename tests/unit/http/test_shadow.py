"""Copies for a shadow: when one is made, what it takes, how it ends, and that it never stands in anybody's way."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from gateway import errors
from gateway.calls import Call, Classes
from gateway.http import shadow as module
from gateway.http.shadow import IMAGES_MAX, REST_S, REST_S_MAX, Shadows
from gateway.metrics import Metrics
from gateway.scheduling.ticket import TENSOR, Body, Priority
from shm.arena import BodyArena
from shm.wire import Encoding

BODIES_SIZE = 1 << 20
MS = 1_000_000


class Version:
    """A served version, as far as copies look at it."""

    def __init__(self, version: int, shadow=None, *, images_max: int = 64, encoding=Encoding.BINARY) -> None:
        self.name, self.version, self.labels, self.shadow = "m", version, (), shadow
        self.line = SimpleNamespace(index=version)
        self.limits = SimpleNamespace(images_max=images_max)
        self.encoding = encoding

    def parts(self, query, offset):
        if query == "unlike":
            raise errors.BadRequest("a tensor of another shape")
        return [(offset + place, 10, self.encoding) for place in range(query)]

    def deadline_ns(self, received_ns, asked_ms, priority):
        assert asked_ms is None
        assert priority is Priority.BATCH
        return received_ns + 60_000 * MS

    def top_k(self, asked):
        return asked or 5


class Room:
    """Shadows over a driver that takes what it is given, and answers when it is told."""

    def __init__(self, share: float = 1.0, **of_shadow) -> None:
        self.now_ns = 10**18
        self.copied: list[tuple[SimpleNamespace, list, Call]] = []
        self.given_up: list[Call] = []
        self.refuse: Exception | None = None
        self.arena = BodyArena(BODIES_SIZE)
        self.feeder = SimpleNamespace(load_ns=0, ready_count=2, estimate_ns=lambda size: size * 1000)
        self.metrics = Metrics()
        self.core = SimpleNamespace(
            bodies=self.arena, feeder=self.feeder, lines=[SimpleNamespace(deadline_ns=d * MS) for d in (5000, 100)]
        )
        self.drawn = 0.5
        self.shadows = Shadows(self, clock=lambda: self.now_ns, draw=lambda: self.drawn)
        self.shadow = Version(2, **of_shadow)
        self.original = Version(1, (self.shadow, share))

    def submit(self, line, body, parts, *, priority, deadline_ns, top_k, expendable):
        assert expendable
        if self.refuse is not None:
            raise self.refuse
        assert (priority, deadline_ns, top_k) == (Priority.BATCH, self.now_ns + 60_000 * MS, 5)
        call = self.call(len(parts))
        self.copied.append((line, parts, call))
        return call

    def abandon(self, call) -> None:
        self.given_up.append(call)

    def call(self, count: int) -> Call:
        return Call(
            [SimpleNamespace(number=n, done_ns=0) for n in range(count)], asyncio.get_running_loop().create_future()
        )

    def follow(self, count: int = 1, *, size: int = 100, query=None) -> Call:
        """A request that was just accepted, whose own hold of its body is over."""
        call = self.call(count)
        region = self.arena.allocate_nowait(size)
        assert region is not None
        body = Body(self.arena, region)
        self.shadows.follow(self.original, call, body, count if query is None else query)
        body.release()
        return call

    async def answer(self, call: Call, *outcomes) -> None:
        for ticket, outcome in zip(call.tickets, outcomes, strict=True):
            call.end(ticket, outcome)
        for _ in range(3):
            await asyncio.sleep(0)

    async def copy(self, ours, theirs) -> None:
        """One image, answered by both."""
        await self.answer(self.follow(), ours)
        await self.answer(self.copied[-1][2], theirs)

    @property
    def counts(self) -> dict[str, int]:
        return self.metrics.shadow("m/1", "2").images

    @property
    def differences(self) -> tuple[float, float]:
        """(how many were observed, their sum)."""
        buckets, total = self.metrics.shadow("m/1", "2")._differences.buckets(0)
        return buckets[-1][1], total

    def assert_idle(self) -> None:
        assert self.arena.held_size == 0, "a body is held for ever"
        assert (self.shadows.image_count, self.shadows.held_size) == (0, 0)


def story(play, **room):
    async def main() -> None:
        await play(Room(**room))

    asyncio.run(main())


CAT, CAT_TOO, DOG = Classes([1, 2], [0.9, 0.1]), Classes([1, 2], [0.7, 0.3]), Classes([2, 1], [0.6, 0.4])
LOST = errors.WorkerLost("two workers died on it")


# -- the way of a copy ---------------------------------------------------------------------------------------------


def test_a_copy_is_sent_when_the_original_is_answered_and_compared():
    async def play(room):
        call = room.follow()
        assert not room.copied, "the original goes first"
        assert room.arena.held_size, "its bytes are kept for the copy"
        await room.answer(call, CAT)
        [(line, parts, copied)] = room.copied
        assert line is room.shadow.line
        assert parts == [(0, 10, Encoding.BINARY)]
        await room.answer(copied, CAT_TOO)
        assert room.counts == {"same": 1}
        assert room.differences == (1, pytest.approx(0.2))
        room.assert_idle()

    story(play)


def test_it_is_sent_behind_the_answer_that_the_same_future_wakes():
    async def play(room):
        call = room.follow()

        async def answered_first():
            await call.answered
            assert not room.copied

        waiting = asyncio.create_task(answered_first())
        await asyncio.sleep(0)
        await room.answer(call, CAT)
        await waiting
        assert room.copied

    story(play)


def test_a_different_class_is_counted():
    async def play(room):
        await room.copy(CAT, DOG)
        assert room.counts == {"different": 1}
        assert room.differences == (1, pytest.approx(0.5))

    story(play)


def test_outputs_that_cannot_be_subtracted_have_no_difference():
    async def play(room):
        await room.copy(CAT, {})
        assert room.counts == {"different": 1}
        assert room.differences == (0, 0.0)

    story(play)


def test_only_what_the_original_answered_is_copied():
    async def play(room):
        bad = errors.UndecodableImage("damaged")
        await room.answer(room.follow(3), bad, CAT, DOG)
        [(_, parts, copied)] = room.copied
        assert [offset for offset, _, _ in parts] == [1, 2]
        await room.answer(copied, CAT, CAT)
        assert room.counts == {"same": 1, "different": 1}
        room.assert_idle()

    story(play)


def test_a_request_that_failed_is_not_copied():
    async def play(room):
        await room.answer(room.follow(), LOST)
        assert not room.copied
        assert room.counts == {}
        room.assert_idle()

    story(play)


def test_a_client_that_leaves_takes_its_copy_along():
    async def play(room):
        call = room.follow()
        call.answered.cancel()
        await asyncio.sleep(0)
        assert not room.copied
        room.assert_idle()

    story(play)


def test_what_the_shadow_refuses_or_fails_is_counted():
    async def play(room):
        await room.copy(CAT, errors.InferenceFailed("it did not like it"))
        assert room.counts == {"failed": 1}
        room.refuse = errors.Overloaded("real time first")
        await room.answer(room.follow(2), CAT, DOG)
        assert room.counts == {"failed": 1, "refused": 2}
        room.refuse = None
        await room.answer(room.follow(query="unlike"), CAT)
        assert room.counts == {"failed": 1, "refused": 3}
        room.assert_idle()

    story(play)


@pytest.fixture(autouse=True)
def faults(monkeypatch):
    """Faults of ours that were logged. There are none but where a test takes them away."""
    found: list[str] = []
    log = SimpleNamespace(exception=lambda event, **_: found.append(event), warning=lambda *_, **__: None)
    monkeypatch.setattr(module, "_log", log)
    yield found
    assert not found


def test_a_fault_of_ours_is_logged_and_stays_here(faults):
    async def play(room):
        room.refuse = RuntimeError("boom")
        await room.answer(room.follow(), CAT)
        assert room.counts == {"failed": 1}
        assert faults.pop() == "shadow_failed"
        room.assert_idle()

    story(play)


# -- how much is copied --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("drawn", "copied"), [(0.0, True), (0.249, True), (0.25, False), (0.99, False)])
def test_a_share_of_the_requests_is_drawn(drawn, copied):
    async def play(room):
        room.drawn = drawn
        await room.answer(room.follow(), CAT)
        assert bool(room.copied) is copied
        assert room.counts == {}, "what is not drawn is not refused"

    story(play, share=0.25)


def test_the_draw_is_seeded():
    async def play(room):
        assert [Shadows(room)._draw() for _ in range(2)] == [Shadows(room)._draw() for _ in range(2)]

    story(play)


def test_so_many_images_at_a_time():
    async def play(room):
        calls = [room.follow(8) for _ in range(IMAGES_MAX // 8)]
        room.follow()
        assert room.counts == {"refused": 1}
        await room.answer(calls[0], *[CAT] * 8)
        room.follow()
        assert room.counts == {"refused": 2}, "a copy is one until the shadow answered"
        await room.answer(room.copied[0][2], *[CAT] * 8)
        room.follow(8)
        assert room.counts == {"refused": 2, "same": 8}

    story(play)


def test_a_request_that_is_too_long_for_the_shadow_is_not_copied():
    async def play(room):
        room.follow(3)
        room.follow(2)
        assert room.counts == {"refused": 3}

    story(play, images_max=2)


def test_an_eighth_of_the_memory_for_bodies():
    async def play(room):
        room.follow(size=BODIES_SIZE // 8 + 1)
        assert room.counts == {"refused": 1}
        room.follow(size=BODIES_SIZE // 16)
        room.follow(size=BODIES_SIZE // 16)
        assert room.counts == {"refused": 1}
        room.follow(size=1)
        assert room.counts == {"refused": 2}

    story(play)


def test_none_while_bodies_are_short():
    async def play(room):
        room.arena.allocate_nowait(BODIES_SIZE // 2)
        room.follow()
        assert room.counts == {"refused": 1}

    story(play)


@pytest.mark.parametrize(
    ("load_ns", "ready_count", "copied"),
    [(0, 2, True), (19_990_000, 2, True), (20_000_000, 2, False), (15_000_000, 1, False), (0, 0, False)],
)
def test_decoders_that_are_busy_are_not_given_copies(load_ns, ready_count, copied):
    async def play(room):
        call = room.follow()
        room.feeder.load_ns, room.feeder.ready_count = load_ns, ready_count
        await room.answer(call, CAT)
        assert bool(room.copied) is copied
        assert room.counts == ({} if copied else {"refused": 1})

    story(play)


def test_pixels_need_no_decoder():
    async def play(room):
        room.feeder.load_ns = 10**12
        await room.answer(room.follow(), CAT)
        assert room.copied

    story(play, encoding=TENSOR)


# -- a shadow that kills its worker --------------------------------------------------------------------------------


def test_after_a_death_nothing_is_copied_for_a_while():
    async def play(room):
        waiting, sent = room.follow(), room.follow()
        await room.answer(sent, CAT)
        await room.copy(CAT, LOST)
        assert room.given_up == [room.copied[0][2]], "the other one would kill the next worker"
        assert room.counts == {"failed": 2}
        await room.answer(waiting, CAT)
        room.follow()
        assert room.counts == {"failed": 2, "refused": 2}
        room.assert_idle()
        room.now_ns += int(REST_S * 1e9)
        await room.copy(CAT, CAT)
        assert room.counts == {"failed": 2, "refused": 2, "same": 1}

    story(play)


def test_the_copies_of_other_shadows_go_on():
    async def play(room):
        first, room.original = room.original, Version(3, (Version(4), 1.0))
        await room.answer(room.follow(), CAT)
        room.original = first
        await room.copy(CAT, LOST)
        assert not room.given_up
        await room.answer(room.copied[0][2], CAT)
        assert room.metrics.shadow("m/3", "4").images == {"same": 1}
        room.assert_idle()

    story(play)


def test_copies_to_what_is_no_shadow_any_more_are_given_up():
    async def play(room):
        waiting, sent = room.follow(), room.follow(2)
        await room.answer(sent, CAT, CAT)
        room.shadows.keep({2, 5})
        assert not room.given_up
        room.shadows.keep({5})
        assert room.given_up == [room.copied[0][2]]
        assert room.counts == {"refused": 2}, "it is no fault of the shadow's"
        room.refuse = errors.ModelNotReady("its line is closed")
        await room.answer(waiting, CAT)
        assert room.counts == {"refused": 3}
        room.assert_idle()

    story(play)


def test_a_gateway_that_goes_down_copies_nothing():
    async def play(room):
        waiting, sent = room.follow(), room.follow()
        await room.answer(sent, CAT)
        room.shadows.stop()
        assert room.given_up == [room.copied[0][2]]
        room.follow()
        await room.answer(waiting, CAT)
        assert len(room.copied) == 1
        assert room.counts == {"refused": 2}
        room.assert_idle()

    story(play)


def test_each_death_doubles_the_rest_until_one_is_answered():
    async def play(room):
        async def rest() -> float:
            """Seconds of rest after one more death, by trying."""
            await room.copy(CAT, LOST)
            begun_ns = room.now_ns
            while not room.shadows._clock() >= room.shadows._rest(room.shadow).until_ns:
                room.now_ns += 10**9
            return (room.now_ns - begun_ns) / 1e9

        assert [await rest() for _ in range(3)] == [REST_S, 2 * REST_S, 4 * REST_S]
        await room.copy(CAT, DOG)
        assert await rest() == REST_S
        for _ in range(8):
            await rest()
        assert await rest() == REST_S_MAX

    story(play)


def test_neighbours_that_died_together_count_once():
    async def play(room):
        await room.answer(room.follow(2), CAT, CAT)
        other = room.follow()
        await room.answer(other, CAT)
        one, two = (copied for _, _, copied in room.copied)
        for call in (one, two):
            for ticket in call.tickets:
                call.end(ticket, LOST)
        for _ in range(3):
            await asyncio.sleep(0)
        assert room.counts == {"failed": 3}
        assert room.shadows._rest(room.shadow).length_s == 2 * REST_S
        room.assert_idle()

    story(play)


def test_a_shadow_that_was_loaded_anew_does_not_rest():
    async def play(room):
        await room.copy(CAT, LOST)
        room.shadow.line = SimpleNamespace(index=7)
        await room.copy(CAT, CAT)
        assert room.counts == {"failed": 1, "same": 1}

    story(play)
