from __future__ import annotations

import pytest

from gateway.scheduling.batcher import TIMER_NS
from gateway.scheduling.dispatcher import HOLD_NS
from gateway.scheduling.ticket import TENSOR
from tests.support.core import FLAT_NS, MS, NOW, ONE, ROOM, Core, S, line


def rows(core: Core, *in_ms: float, batch: tuple[int, ...] = (), model: int = 0) -> None:
    """Rows of tensors with deadlines so many ms from NOW, ready at once, with no worker yet asked; `batch`: which are
    of that class.
    """
    for place, ms in enumerate(in_ms, 1):
        core.submit(deadline_ns=NOW + int(ms * MS), encoding=TENSOR, priority=int(place in batch), model=model)


def test_every_idle_worker_gets_a_batch():
    core = Core(line(**ROOM), workers=3)
    core.tensors(9)

    assert core.do(NOW) == ["run 0: 1 2 3 4 at 4, full", "run 1: 5 6 7 8 at 4, full", "run 2: 9 at 1, idle"]


def test_without_anything_decoded_nobody_is_asked():
    core = Core()
    core.submit(encoding=TENSOR)

    assert core.do(NOW) == ["fill 1"]


def test_a_batch_says_how_long_it_takes_and_by_when_it_must_start():
    core = Core()
    core.tensors(1, deadline_ns=NOW + 100 * MS)
    core.do(NOW)
    batch = core.s.workers[0].batches[0]

    assert (batch.number, batch.started_ns, batch.expected_ns) == (1, NOW, FLAT_NS)
    assert batch.latest_start_ns == NOW + 100 * MS - FLAT_NS
    assert core.s.workers[0].free_at_ns == NOW + FLAT_NS


def test_a_latest_start_is_for_the_nearest_deadline_not_for_the_first_due():
    core = Core()
    rows(core, 1000)
    core.fill()
    core.tickets[0].deadline_ns = NOW + 905 * MS  # due at 900, with a margin that has shrunk since
    core.submit(deadline_ns=NOW + 900 * MS, encoding=TENSOR)
    core.tickets[1].due_ns = NOW + 899 * MS
    assert core.tickets[0].deadline_ns > core.tickets[1].deadline_ns

    core.s.workers[0].ready = True
    core.do(NOW)
    assert core.s.workers[0].batches[0].latest_start_ns == NOW + 905 * MS - FLAT_NS


def test_real_time_goes_before_the_batch_class_while_that_has_time():
    core = Core(line(**ROOM), points=ONE)
    rows(core, 400, 1000, batch=(1,))
    core.fill()

    assert [word for _, word in core.play()] == [
        "run 0: 2 at 1, full",
        "run 0: 1 at 1, full",
        "finish 2: ok",
        "finish 1: ok",
    ]


def test_the_batch_class_goes_first_when_its_time_has_come():
    core = Core(line(**ROOM), points=ONE)
    rows(core, 41, 1000, batch=(1,))
    core.fill()

    # It is to be done by 36.9 ms; the other one would take until 30.2.
    assert core.do(NOW + 20 * MS) == ["run 0: 1 at 1, full"]


def test_the_batch_class_fills_a_batch_up():
    core = Core(line(**ROOM))
    rows(core, 800, 900, 1000, batch=(1, 2))
    core.fill()

    assert core.do(NOW) == ["run 0: 3 1 at 2, idle"]


def test_a_batch_is_not_filled_up_where_that_breaks_a_promise():
    core = Core(line(**ROOM), points=((1, 10 * MS), (4, 40 * MS)))
    core.lines[0].pace.size = core.lines[0].pace.best_size = 4
    core.s.lines[0].review_ns = NOW + 1 * S
    rows(core, 60, *[1000] * 5, batch=(2, 3, 4, 5, 6))
    core.submit(model=0, deadline_ns=NOW + 61 * MS)  # still to be decoded, and to be done at 60
    core.fill()

    assert core.do(NOW)[0] == "run 0: 1 at 1, full"


def test_what_nobody_else_waits_for_is_run_in_any_order():
    core = Core(line(**ROOM), points=((1, 10 * MS), (2, 10 * MS)))
    rows(core, 300)
    core.fill()

    assert core.do(NOW) == ["run 0: 1 at 1, idle"]


def test_a_full_batch_in_order_is_run_beside_later_ones():
    core = Core(line(**ROOM))
    core.tensors(4, deadline_ns=NOW + 100 * MS)
    core.submit(deadline_ns=NOW + 900 * MS)

    assert core.do(NOW) == ["run 0: 1 2 3 4 at 4, full", "send 0: 5"]


def test_what_is_decoded_overtakes_what_is_not_while_the_plan_holds():
    core = Core(line(**ROOM), points=ONE)
    core.submit(deadline_ns=NOW + 100 * MS)  # decoding, and due first
    core.tensors(1, deadline_ns=NOW + 200 * MS)

    assert core.do(NOW) == ["run 0: 2 at 1, full"]


def held_back() -> Core:
    """A row of 50 ms is ready, and might be done before 60 and after; an image of 10 ms is not, and is due at 29."""
    core = Core(line(0, **ROOM), line(1, **ROOM), up=False)
    core.do(NOW)
    core.s.decoder_ready(0, NOW)
    core.worker_with(0, NOW, m0=((1, 10),), m1=((1, 50),))
    core.do(NOW)
    core.submit(model=0, deadline_ns=NOW + 30 * MS)
    core.tensors(1, model=1, deadline_ns=NOW + 90 * MS)
    return core


def test_a_batch_that_would_break_a_promise_is_held_back_while_that_may_help():
    core = held_back()
    assert core.do(NOW) == []
    assert core.s.wake_at_ns() == NOW + HOLD_NS

    core.decoded(1, at=NOW + 1 * MS)
    assert core.do(NOW + 1 * MS) == ["run 0: 1 at 1, full"]


def test_a_batch_is_held_back_until_the_plan_has_no_slack_any_more():
    core = held_back()

    none_left_ns = NOW + 29 * MS - FLAT_NS
    assert core.do(none_left_ns - 1) == []
    assert core.s.wake_at_ns() == none_left_ns
    assert core.do(none_left_ns) == ["run 0: 2 at 1, full"]


def test_the_most_urgent_model_goes_first():
    core = Core(line(0), line(1), line(2), points=ONE)
    rows(core, 900, model=0)
    rows(core, 800, model=1)
    rows(core, 850, model=2)
    core.fill()

    words = [word for _, word in core.play()]
    assert words[0] == "run 0: 2 at 1, full"
    assert [word for word in words if word.startswith("run")][1] == "run 0: 3 at 1, full"


def test_a_model_with_real_time_work_goes_before_one_with_the_batch_class_only():
    core = Core(line(0, **ROOM), line(1, **ROOM), points=ONE)
    rows(core, 500, batch=(1,), model=0)
    rows(core, 900, model=1)
    core.fill()

    assert core.do(NOW) == ["run 0: 2 at 1, full"]


def test_whoever_cannot_be_in_time_any_more_is_given_up_when_a_worker_asks():
    core = Core(points=ONE)
    core.tensors(1, deadline_ns=NOW + 30 * MS)

    assert core.do(NOW + 20 * MS + 1) == ["finish 1: deadline_exceeded"]
    assert core.lines[0].pace._late == 1


def test_when_no_order_keeps_all_promises_whatever_is_due_first_runs():
    core = Core(line(0, **ROOM), line(1, **ROOM), points=ONE)
    rows(core, 30, model=0)
    rows(core, 40, model=1)
    core.fill()
    at = NOW + 18 * MS  # 28.2 and 38.4, due at 27 and 36

    assert core.do(at) == ["run 0: 1 at 1, full"]


def test_what_is_in_time_at_its_quickest_only_is_tried():
    core = Core(line(**ROOM), points=((4, 10 * MS), (8, 40 * MS)))
    core.tensors(1, deadline_ns=NOW + 60 * MS)
    core.tickets[0].deadline_ns = NOW + 10 * MS  # 10.2 are expected, and 10 were measured

    assert core.do(NOW) == ["run 0: 1 at 4, idle"]
    assert core.s.workers[0].batches[0].latest_start_ns == NOW


def test_a_wake_is_forgotten_once_nobody_needs_it():
    core = held_back()
    core.do(NOW)
    core.s.cancel(core.tickets[1], NOW)
    core.do(NOW)

    assert core.s._dispatcher.wake_ns is None


def test_an_open_window_is_looked_at_again_when_it_ends():
    core = Core(line(window_ns=5 * MS))
    core.tensors(1)
    assert core.do(NOW) == []
    assert core.s.wake_at_ns() == NOW + 5 * MS

    assert core.do(NOW + 5 * MS) == ["run 0: 1 at 1, window"]


def test_a_window_is_cut_short_by_what_was_promised():
    core = Core(line(window_ns=100 * MS))
    core.tensors(1, deadline_ns=NOW + 41 * MS)  # due at 40
    core.tensors(1)
    latest_ns = NOW + 40 * MS - FLAT_NS - 2 * TIMER_NS

    assert core.do(latest_ns - 1) == []
    assert core.s.wake_at_ns() == latest_ns
    assert core.do(latest_ns) == ["run 0: 1 2 at 2, deadline"]


def test_of_two_windows_the_one_that_ends_first_is_waited_for():
    core = Core(line(0, window_ns=5 * MS), line(1, window_ns=9 * MS))
    rows(core, 900, model=0)
    rows(core, 900, model=1)
    core.fill()
    core.do(NOW)

    assert core.s.wake_at_ns() == NOW + 5 * MS


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_what_was_accepted_is_in_time_when_batches_take_what_is_expected(workers: int):
    core = Core(line(**ROOM), workers=workers, points=((1, 10 * MS), (2, 14 * MS), (4, 20 * MS)))
    core.tensors(6, deadline_ns=NOW + 60 * MS)
    core.tensors(3, deadline_ns=NOW + 90 * MS)
    core.tensors(5, deadline_ns=NOW + 2 * S, priority=1)

    words = [word for _, word in core.play()]
    assert sum(word.endswith(": ok") for word in words) == 14
    assert not any("deadline" in word for word in words)


# What goes wrong


def finished(core: Core) -> list[str]:
    return sorted(word for _, word in core.play() if word.startswith("finish"))


def test_a_window_never_breaks_a_promise():
    core = Core(line(0, window_ns=20 * MS), line(1), up=False)
    core.do(NOW)
    core.s.decoder_ready(0, NOW)
    core.worker_with(0, NOW, m0=((1, 10), (4, 10)), m1=((1, 31), (4, 31)))
    core.do(NOW)
    rows(core, 44.5, model=0)  # due at 40
    rows(core, 51, model=1)  # due at 45.9, for which the other one must go first
    core.fill()

    assert finished(core) == ["finish 1: ok", "finish 2: ok"]


def test_a_window_ends_in_time_for_the_batch_class_too():
    core = Core(line(window_ns=200 * MS), points=((1, 25 * MS), (2, 25 * MS), (4, 25 * MS)))
    rows(core, 110, 900, batch=(1,))
    core.fill()

    assert finished(core) == ["finish 1: ok", "finish 2: ok"]


def test_when_there_is_no_slack_what_is_due_first_runs_whatever_its_class():
    core = Core(line(0, **ROOM), line(1, deadline_ns=60 * MS, **ROOM), points=ONE)
    rows(core, 50, 900, batch=(1,), model=0)
    rows(core, 100, model=1)
    core.fill()
    core.lines[1].pace.offered(100, NOW)  # so much that the batch class is in its way

    assert core.do(NOW + 49 * MS - FLAT_NS) == ["run 0: 1 at 1, full"]


def test_a_slow_worker_does_not_give_up_what_a_fast_one_can_do():
    core = Core(points=ONE, workers=2)
    core.worker_with(1, NOW, kind="slow", m0=((1, 100),))
    rows(core, 1000, 1000)
    core.s.workers[1].ready = False
    core.fill()
    assert core.do(NOW) == ["run 0: 1 at 1, full"]
    core.s.workers[1].ready = True
    core.tickets[1].deadline_ns = NOW + 60 * MS

    assert core.do(NOW + 1 * MS) == []
    core.ran(at=NOW + FLAT_NS)
    assert core.do(NOW + FLAT_NS) == ["finish 1: ok", "run 0: 2 at 1, full"]


def test_nor_does_it_when_the_plan_is_broken_already():
    core = Core(points=ONE, workers=2)
    core.s.workers[1].bury(NOW)
    core.s.workers[1].was_ready = False
    rows(core, 60, 60)
    core.fill()
    assert core.do(NOW) == ["run 0: 1 at 1, full"]
    core.worker_with(1, NOW, kind="slow", m0=((1, 100),))

    assert core.do(NOW + 1 * MS) == []
    core.ran(at=NOW + FLAT_NS)
    assert core.do(NOW + FLAT_NS) == ["finish 1: ok", "run 0: 2 at 1, full"]


def test_a_slot_is_made_free_for_whoever_is_due_first():
    """One with a near deadline waited for a slot of its model, whose images waited behind another model's."""
    core = Core(line(0, slot_count=1), line(1))
    core.tensor(model=1)
    core.do(NOW)
    core.tensor(model=0, deadline_ns=NOW + 900 * MS)
    core.tensor(model=1, deadline_ns=NOW + 500 * MS)
    core.tensor(model=0, deadline_ns=NOW + 200 * MS)
    core.ran(at=NOW + 10 * MS)

    assert core.do(NOW + 10 * MS) == ["finish 1: ok", "run 0: 2 at 1, idle"]
