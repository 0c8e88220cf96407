from __future__ import annotations

import pytest

from gateway.errors import DeadlineExceeded
from gateway.scheduling import refusals
from gateway.scheduling.feeder import Feeder
from gateway.scheduling.ledger import Ledger
from gateway.scheduling.ticket import TENSOR, Body, Finish, Stage
from shm.arena import BodyArena, SlotState
from tests.support.core import MS, NOW, line, ticket


class Books:
    """A ledger, a line, and bodies that can be counted."""

    def __init__(self) -> None:
        self.feeder = Feeder(1, frame_count_max=8, hang_ns=1)
        self.ledger = Ledger(self.feeder)
        self.line = line()
        self.bodies = BodyArena(1 << 16)

    def accepted(self, number: int = 1, *, deadline_ms: int = 100, encoding=0, stage: Stage = Stage.WAITING):
        """An image that was accepted, and has come as far as `stage`."""
        body = Body(self.bodies, self.bodies.allocate_nowait(64))
        image = ticket(number, self.line, due_ns=NOW + deadline_ms * MS)
        image.body, image.encoding = body, encoding
        self.ledger.accept(image)
        body.release()
        if stage > Stage.WAITING:
            self.feeder.queue_of(image).pop()
            self.feeder.load_ns -= image.cost_ns
            image.slot = self.line.arena.admit_nowait()
            image.stage = Stage.FILLING
        if stage > Stage.FILLING:
            image.let_go_of_body()
            image.stage = Stage.QUEUED
            self.line.arena.move(image.slot, SlotState.QUEUED)
            self.line.enqueue(image, NOW)
        if stage > Stage.QUEUED:
            self.line.queue_of(image).pop()
            self.line.forget(image)
            image.stage = Stage.RUNNING
            self.line.arena.move(image.slot, SlotState.RUNNING)
            image.runs += 1
        return image

    def answers(self) -> list[tuple[int, str]]:
        assert all(isinstance(effect, Finish) for effect in self.ledger.effects)
        return [(each.ticket.number, each.refusal.code if each.refusal else "ok") for each in self.ledger.effects]

    def is_empty(self) -> bool:
        """Nobody waits, holds bytes, or is counted with."""
        waiting = self.line.waiting_count + self.line.ready_count + len(self.line.dues) + self.feeder.load_ns
        return not (waiting or self.bodies.held_size or self.ledger.live_count) and self.ledger.first() is None


LIVE = [Stage.WAITING, Stage.FILLING, Stage.QUEUED, Stage.RUNNING]


def test_what_is_accepted_holds_its_body_waits_and_is_promised():
    books = Books()
    image = books.accepted()

    assert books.bodies.held_size == 64
    assert books.line.small.peek() is image is books.ledger.first()
    assert (books.line.dues, books.ledger.live_count) == ([NOW + 100 * MS], 1)
    assert books.answers() == []


@pytest.mark.parametrize("stage", LIVE)
def test_a_refusal_ends_it_wherever_it_is(stage: Stage):
    books = Books()
    image = books.accepted(stage=stage)

    books.ledger.finish(image, refusals.late(), returned=True)

    assert books.is_empty()
    assert books.line.arena.free_count == 8
    assert books.answers() == [(1, "deadline_exceeded")]
    assert image.stage is Stage.ENDED


@pytest.mark.parametrize(("stage", "left"), [(Stage.FILLING, 64), (Stage.RUNNING, 0)])
def test_a_slot_is_left_to_the_child_that_holds_its_bytes(stage: Stage, left: int):
    books = Books()
    image = books.accepted(stage=stage)

    books.ledger.cancel(image)

    assert books.line.arena.state(image.slot) is SlotState.ZOMBIE
    assert books.bodies.held_size == left
    assert (books.line.dues, books.ledger.live_count, books.answers()) == ([], 0, [])


def test_no_child_holds_the_slot_of_a_tensor_that_is_copied():
    books = Books()
    books.ledger.cancel(books.accepted(encoding=TENSOR, stage=Stage.FILLING))

    assert books.is_empty()
    assert books.line.arena.free_count == 8


def test_an_answer_leaves_the_slot_until_it_was_read():
    books = Books()
    image = books.accepted(stage=Stage.RUNNING)

    books.ledger.answer(image)
    assert books.is_empty()
    assert books.line.arena.state(image.slot) is SlotState.DONE
    assert books.answers() == [(1, "ok")]

    books.ledger.release(image)
    assert books.line.arena.free_count == 8
    assert (image.stage, image.slot) == (Stage.ENDED, -1)


def test_an_answer_that_nobody_fetched_is_taken_back_by_a_cancel():
    books = Books()
    first, second = books.accepted(1, stage=Stage.RUNNING), books.accepted(2, stage=Stage.RUNNING)
    books.ledger.answer(first)
    books.ledger.answer(second)

    books.ledger.cancel(first)

    assert books.answers() == [(2, "ok")]
    assert books.line.arena.free_count == 7


def test_a_refusal_that_nobody_fetched_is_taken_back_by_a_cancel():
    books = Books()
    image = books.accepted()
    books.ledger.finish(image, refusals.late())
    books.ledger.cancel(image)

    assert books.answers() == []


def test_all_whose_deadline_has_passed_are_answered_the_nearest_first():
    books = Books()
    for number, deadline_ms in enumerate((30, 20, 31), 1):
        books.accepted(number, deadline_ms=deadline_ms)

    books.ledger.expire(NOW + 20 * MS - 1)
    assert books.answers() == []
    books.ledger.expire(NOW + 30 * MS)
    assert books.answers() == [(2, "deadline_exceeded"), (1, "deadline_exceeded")]
    assert books.ledger.first().number == 3


def late_count(books: Books, image) -> int:
    books.ledger.give_up(image)
    assert isinstance(books.ledger.effects[-1].refusal, DeadlineExceeded)
    return books.line.pace._late


def test_whoever_is_given_up_was_planned_too_boldly():
    books = Books()
    assert late_count(books, books.accepted(stage=Stage.QUEUED)) == 1
    assert late_count(books, books.accepted(2, stage=Stage.RUNNING)) == 2


def test_a_child_s_death_is_not_the_plan_s_fault():
    books = Books()
    decoded, run = books.accepted(1, stage=Stage.QUEUED), books.accepted(2, stage=Stage.RUNNING)
    decoded.attempts, run.runs = 1, 2

    assert late_count(books, decoded) == late_count(books, run) == 0
