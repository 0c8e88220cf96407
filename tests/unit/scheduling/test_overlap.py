"""A device that computes one batch while the next is gathered and copied: it is kept busy, and promises are kept."""

from __future__ import annotations

import heapq
import itertools
from random import Random

import pytest

from gateway import errors
from gateway.scheduling.ticket import TENSOR, Fill, Finish, RunBatch
from shm.wire import ItemStatus
from tests.support.core import MS, NOW, Core, S, line

SIZES = (1, 2, 4, 8)


def points(period_ms: float, each_ms: float, lead_ms: float) -> list[tuple[int, int, int]]:
    """l(b) = period + each x b; a lone batch takes up to `lead_ms` more, in proportion to its size."""
    return [(b, int((period_ms + each_ms * b) * MS), int(lead_ms * b / SIZES[-1] * MS)) for b in SIZES]


class Room:
    """A core, its driver, and workers that take just as long as was measured. A timer rings on the next whole ms."""

    def __init__(self, shape: list[tuple[int, int, int]], *, workers: int = 1, deadline_ms: float = 100) -> None:
        self.times_ns = {size: (period_ns, lead_ns) for size, period_ns, lead_ns in shape}
        self.deadline_ns = int(deadline_ms * MS)
        steady = line(slot_count=256, queue_max=10_000, deadline_ns=self.deadline_ns)
        self.core = Core(steady, workers=workers, points=shape)
        self.now = NOW
        self.events: list[tuple[int, int, object]] = []
        self._numbers = itertools.count()
        self.ready_ns = [0] * workers
        """When each worker's gathering is done with what it has."""
        self.free_ns = [0] * workers
        self.answered = self.refused = self.late = 0

    def at(self, time_ns: int, action: object) -> None:
        heapq.heappush(self.events, (time_ns, next(self._numbers), action))

    def ask(self, count: int = 1, deadline_ns: int | None = None) -> None:
        try:
            self.core.submit(
                at=self.now, count=count, encoding=TENSOR, deadline_ns=self.now + (deadline_ns or self.deadline_ns)
            )
        except errors.Refusal:
            self.refused += count

    def run(self, until_ns: int) -> None:
        while self.events and self.events[0][0] <= until_ns:
            self.now, _, action = heapq.heappop(self.events)
            if callable(action):
                action()
            self.advance()

    def advance(self) -> None:
        filled = True
        while filled:
            filled = False
            for effect in self.core.s.advance(self.now):
                if isinstance(effect, Fill):
                    self.core.s.filled(effect.ticket, self.now)
                    filled = True
                elif isinstance(effect, RunBatch):
                    self.start(effect)
                elif isinstance(effect, Finish):
                    self.finish(effect)
        wake_ns = self.core.s.wake_at_ns()
        if wake_ns is not None:
            self.at(max(self.now + 1, -(-wake_ns // MS) * MS), None)

    def start(self, effect: RunBatch) -> None:
        """One thread gathers; the device takes batches in order; an answer comes when a batch is done."""
        index, batch = effect.worker, effect.batch
        period_ns, lead_ns = self.times_ns[batch.size]
        self.ready_ns[index] = max(self.now, self.ready_ns[index]) + lead_ns
        begin_ns = max(self.ready_ns[index], self.free_ns[index])
        self.free_ns[index] = begin_ns + period_ns

        def done() -> None:
            status = ItemStatus.OK
            assert self.core.s.batch_done(index, batch.number, [status] * len(batch.tickets), self.now) is batch

        self.at(self.free_ns[index], done)

    def finish(self, effect: Finish) -> None:
        ticket = effect.ticket
        if effect.refusal is not None or self.now > ticket.deadline_ns:
            self.late += 1
            return
        self.answered += 1
        self.core.s.release(ticket)


def flooded(room: Room, factor: float, *, batch_count: int = 40) -> float:
    """Ask for `factor` times what the workers could do, `batch_count` whole batches each; the share that they did."""
    period_ns, _ = room.times_ns[SIZES[-1]]
    rate = SIZES[-1] / period_ns * len(room.free_ns)
    draw = Random(1)
    time_ns, end_ns = NOW, NOW + batch_count * period_ns
    while time_ns < end_ns:
        time_ns += max(1, int(draw.expovariate(rate * factor)))
        room.at(time_ns, room.ask)
    room.run(end_ns)
    images = room.answered / ((end_ns - NOW) * rate)
    room.run(end_ns + 10 * S)
    assert room.core.quiet()
    return images


SHAPES = [
    pytest.param(points(2, 0.375, 3), id="5 ms each, 8 alone"),
    pytest.param(points(2, 0.375, 5), id="5 ms each, 10 alone"),
    pytest.param(points(1, 0.05, 0.5), id="1.4 ms each, 1.9 alone"),
    pytest.param(points(0.3, 0.05, 0.5), id="0.7 ms each, 1.2 alone"),
    pytest.param(points(10, 2.5, 2), id="30 ms each, 32 alone"),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("factor", [1.3, 3.0])
def test_under_saturation_the_device_is_busy_and_every_promise_is_kept(shape, workers, factor):
    room = Room(shape, workers=workers)

    share = flooded(room, factor)

    assert room.late == 0
    # The first answer is late by what a lone batch takes longer, the last one is on its way.
    assert share >= 0.9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("deadline_ms", [20, 100])
def test_below_saturation_every_promise_is_kept_too(shape, factor, deadline_ms):
    room = Room(shape, deadline_ms=deadline_ms)

    flooded(room, factor)

    assert room.late == 0


def test_what_is_learnt_is_the_period():
    """Whether a batch met an idle device or came behind another one, it teaches the same."""
    room = Room([(1, 5 * MS, 3 * MS)])
    for time_ms in (0, 1, 2, 100, 200, 300, 400):
        room.at(NOW + time_ms * MS, room.ask)
    room.run(NOW + 1 * S)

    profile = room.core.s.worker(0).profiles[0]
    assert [took_ns for _, took_ns in profile._windows[1]] == [5 * MS] * 7


def test_a_request_that_only_a_device_in_motion_could_answer_is_refused():
    room = Room([(1, 10 * MS, 8 * MS)])
    room.ask(deadline_ns=17 * MS)
    assert room.refused == 1
    room.ask(deadline_ns=22 * MS)
    assert room.refused == 1


def test_a_batch_for_an_idle_device_has_to_start_sooner_than_one_that_is_staged():
    core = Core(points=[(1, 10 * MS, 4 * MS)])
    core.tensor(deadline_ns=NOW + 100 * MS)
    core.do(NOW)
    core.tensor(at=NOW + 1 * MS, deadline_ns=NOW + 100 * MS)
    core.do(NOW + 10 * MS)
    first, second = core.s.worker(0).batches
    assert second.latest_start_ns - first.latest_start_ns == 4 * MS
    assert core.s.worker(0).free_at_ns == first.ready_ns + first.expected_ns + second.expected_ns


def test_a_worker_is_staged_before_the_second_batch_has_to_be_there():
    core = Core(points=[(1, 10 * MS, 4 * MS)])
    core.tensor(deadline_ns=NOW + 1 * S)
    assert core.do(NOW) == ["run 0: 1 at 1, full"]
    core.tensor(deadline_ns=NOW + 1 * S)
    end_ns = core.s.worker(0).free_at_ns
    staging_ns = end_ns - 4 * MS - 1_500_000 - core.s.worker(0).batches[0].expected_ns // 8
    assert core.do(staging_ns - 1) == []
    assert core.s.wake_at_ns() == staging_ns
    assert core.do(staging_ns) == ["run 0: 2 at 1, full"]


def test_a_batch_that_comes_too_late_to_hide_its_copies_is_expected_later():
    core = Core(points=[(1, 10 * MS, 4 * MS)])
    core.tensor(deadline_ns=NOW + 1 * S)
    core.do(NOW)
    end_ns = core.s.worker(0).free_at_ns
    core.tensor(at=end_ns - 1 * MS, deadline_ns=NOW + 1 * S)
    core.do(end_ns - 1 * MS)
    staged = core.s.worker(0).batches[1]
    assert core.s.worker(0).free_at_ns == end_ns + 3 * MS + staged.expected_ns
    core.ran(at=end_ns)
    assert core.s.worker(0).free_at_ns == end_ns + 3 * MS + staged.expected_ns
