"""Admission and dispatch as a state machine: batches that take what was measured, rows that are ready at once.

Then a yes is a promise without exceptions: nobody who was accepted is late or given up.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway import errors
from gateway.scheduling.ticket import TENSOR, Batch, Fill, Finish, RunBatch, Stage, Ticket
from shm.wire import ItemStatus
from tests.support.core import MS, NOW, Core, line

SHAPES = (
    ((1, 10), (2, 11), (4, 13), (8, 17)),
    ((1, 5), (2, 9), (4, 17)),
    ((1, 30), (4, 31)),
    ((4, 20),),
    ((1, 2),),
)
EVENTS_MAX = 10_000


class Promises(RuleBasedStateMachine):
    """Any requests at any time, of any deadline and class, some of them taken back."""

    windows_ms = st.just(0)

    @initialize(
        shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=2),
        deadline_ms=st.sampled_from([40, 100, 500]),
        workers=st.integers(1, 3),
        data=st.data(),
    )
    def start(self, shapes, deadline_ms: int, workers: int, data: st.DataObject) -> None:
        lines = [
            line(
                index,
                slot_count=256,
                queue_max=64,
                deadline_ns=deadline_ms * MS,
                window_ns=data.draw(self.windows_ms) * MS,
            )
            for index in range(len(shapes))
        ]
        self.core = Core(*lines, workers=workers, up=False)
        self.times_ns = [{size: ms * MS for size, ms in shape} for shape in shapes]
        self.now = NOW
        self.accepted: dict[Ticket, bool] = {}
        self.running: list[tuple[int, int, Batch]] = []
        self.core.s.advance(NOW)
        self.core.s.decoder_ready(0, NOW)
        for index in range(workers):
            self.core.worker_with(index, NOW, **{f"m{model}": shape for model, shape in enumerate(shapes)})
        self.pump()

    # -- the room around the core --------------------------------------------------------------------------------

    def pump(self) -> None:
        while effects := self.core.s.advance(self.now):
            for effect in effects:
                if isinstance(effect, Fill):
                    self.core.s.filled(effect.ticket, self.now)
                elif isinstance(effect, RunBatch):
                    self.run(effect.worker, effect.batch)
                elif isinstance(effect, Finish):
                    self.finish(effect)

    def run(self, worker: int, batch: Batch) -> None:
        free_ns = max([end_ns for end_ns, index, _ in self.running if index == worker], default=self.now)
        end_ns = max(self.now, free_ns) + self.times_ns[batch.line.index][batch.size]
        self.running.append((end_ns, worker, batch))

    def finish(self, effect: Finish) -> None:
        ticket = effect.ticket
        assert effect.refusal is None, f"{ticket} was promised {(ticket.deadline_ns - self.now) / MS} ms more"
        assert self.now <= ticket.deadline_ns, f"{ticket} is {(self.now - ticket.deadline_ns) / MS} ms late"
        assert not self.accepted.pop(ticket), f"{ticket} was taken back"
        self.core.s.release(ticket)

    def pass_time(self, until_ns: int | None) -> None:
        """Batches end and timers ring, until then, or until nothing is left to happen."""
        for _ in range(EVENTS_MAX):
            wake_ns = self.core.s.wake_at_ns()
            ends = [end_ns for end_ns, _, _ in self.running]
            at = min([*ends, *([] if wake_ns is None else [max(wake_ns, self.now)])], default=None)
            if at is None or (until_ns is not None and at > until_ns) or not (self.running or self.core.s.live_count):
                break
            self.now = at
            for ending in [each for each in self.running if each[0] <= at]:
                self.running.remove(ending)
                _, worker, batch = ending
                statuses = [ItemStatus.OK] * len(batch.tickets)
                assert self.core.s.batch_done(worker, batch.number, statuses, at) is batch
            self.pump()
        else:
            pytest.fail("it does not come to rest")
        if until_ns is not None:
            self.now = until_ns

    # -- what happens --------------------------------------------------------------------------------------------

    @rule(
        model=st.integers(0, 1),
        count=st.integers(1, 9),
        budget_ms=st.one_of(st.integers(1, 60), st.integers(1, 2000)),
        priority=st.sampled_from([0, 0, 0, 1]),
    )
    def ask(self, model: int, count: int, budget_ms: int, priority: int) -> None:
        try:
            tickets = self.core.submit(
                at=self.now,
                count=count,
                encoding=TENSOR,
                size=1,
                model=model % len(self.core.lines),
                deadline_ns=self.now + budget_ms * MS,
                priority=priority,
            )
        except (errors.Overloaded, errors.DeadlineExceeded):
            return
        for ticket in tickets:
            self.accepted[ticket] = False
        self.pump()

    @rule(count=st.integers(1, 30), every_us=st.integers(0, 5000), budget_ms=st.integers(5, 200))
    def flood(self, count: int, every_us: int, budget_ms: int) -> None:
        for _ in range(count):
            self.ask(count, 1, budget_ms, 0)
            self.wait(every_us)

    @rule(us=st.integers(0, 30_000))
    def wait(self, us: int) -> None:
        self.pass_time(self.now + us * 1000)

    @precondition(lambda self: self.accepted)
    @rule(which=st.integers(0, 1000))
    def take_back(self, which: int) -> None:
        ticket = list(self.accepted)[which % len(self.accepted)]
        del self.accepted[ticket]
        self.core.s.cancel(ticket, self.now)
        self.pump()

    # -- what holds ----------------------------------------------------------------------------------------------

    @invariant()
    def promises_are_counted(self) -> None:
        for each in self.core.lines:
            waiting = [one for one in self.accepted if one.line is each and one.stage <= Stage.QUEUED]
            assert each.dues == sorted(ticket.due_ns for ticket in waiting)
            assert each.batch_count == sum(ticket.priority for ticket in waiting)
        assert self.core.s.live_count == len(self.accepted)

    def teardown(self) -> None:
        if hasattr(self, "core"):
            self.pass_time(None)
            assert not self.accepted
            assert self.core.quiet()


TestPromises = Promises.TestCase
TestPromises.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestPromises = pytest.mark.slow(TestPromises)
