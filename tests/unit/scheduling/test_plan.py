from __future__ import annotations

import pytest

from gateway.scheduling.plan import NEVER_NS, STALE_NS, Plan
from tests.support.core import MS, NOW, S, line, profile, promised, worker

SLOPE = profile((1, 10), (2, 12), (4, 16))


class Floor:
    """Lines of one model each, all on like workers that are free so many ms from NOW."""

    def __init__(self, *free_ms: float, models: int = 1, size: int = 1, shape=SLOPE) -> None:
        self.lines = [line(index) for index in range(models)]
        for each in self.lines:
            each.profile = shape
            each.pace.size = size
            each.serving = True
        self.workers = [
            worker(index, dict.fromkeys(range(models), shape), free_at_ns=NOW + int(ms * MS))
            for index, ms in enumerate(free_ms)
        ]
        busy = []
        for each in self.lines:
            each.busy = busy
        self.plan = Plan(self.lines, self.workers, busy)

    def waits(self, *dues_ms: float, model: int = 0) -> Floor:
        promised(self.lines[model], *[NOW + int(ms * MS) for ms in dues_ms])
        return self

    def late_ms(self, due_ms: float, count: int = 1, *, ready_ms: float = 0, model: int = 0, at_ms: float = 0) -> float:
        now_ns = NOW + int(at_ms * MS)
        due_ns, ready_ns = NOW + int(due_ms * MS), NOW + int(ready_ms * MS)
        return self.plan.lateness_ns(self.lines[model], due_ns, count, ready_ns, now_ns) / MS

    def crowds(self) -> bool:
        return self.plan.crowds(NOW, self.lines[0])

    def slack_ms(self, at_ms: float = 0) -> float:
        return self.plan.slack_ns(NOW + int(at_ms * MS), self.lines[0]) / MS


# One model


def test_what_one_worker_does_in_time_in_whole_batches_is_not_planned():
    assert Floor(0, size=4).late_ms(16) == 0
    assert Floor(0, size=4).late_ms(32, 5) == 0


def test_with_many_batches_waiting_nobody_looks_whether_one_worker_does_them_all():
    assert Floor(0).waits(900, 900, 900).late_ms(900) == 0
    assert Floor(0).waits(900, 900, 900, 900).late_ms(900) == 50 - 900


def test_an_image_alone_takes_what_a_batch_of_one_takes():
    assert Floor(0, size=4).late_ms(10) == 0
    assert Floor(0, size=4).late_ms(9) == 1


def test_a_busy_worker_starts_when_it_is_free():
    assert Floor(7).late_ms(10) == 7


def test_nothing_starts_before_it_is_decoded():
    assert Floor(0).late_ms(10, ready_ms=3) == 3
    assert Floor(5).late_ms(10, ready_ms=3) == 5


def test_more_images_than_a_batch_take_more_batches():
    assert Floor(0, size=4).late_ms(20, 5) == 6  # 16, and 10 for the fifth
    assert Floor(0, 0, size=4).late_ms(20, 5) == -4


def test_a_newcomer_fills_the_last_batch_up():
    assert Floor(0, size=4).waits(50, 50, 50).late_ms(15) == 1


def test_who_is_due_before_the_newcomers_is_not_delayed_by_them():
    # The first one is late already; that is no reason to refuse the second.
    assert Floor(0).waits(5).late_ms(21) == -1


def test_a_newcomer_that_is_due_first_delays_the_others():
    assert Floor(0).waits(20, 30).late_ms(25) == 0
    assert Floor(0).waits(20, 29).late_ms(25) == 1
    assert Floor(0).waits(20, 29).late_ms(15) == 1


def test_newcomers_between_others_cut_the_batches_anew():
    # 10 10 | 30 30 | 40 become 10 10 | 20 30 | 30 40.
    floor = Floor(0, size=2).waits(12, 13, 35, 36, 40)

    assert floor.late_ms(24) == 0
    assert floor.late_ms(23) == 1


def test_a_batch_is_due_with_its_first_image():
    assert Floor(0, size=2).waits(11).late_ms(100) == 1


def test_equals_are_served_in_order_of_their_promises():
    assert Floor(0).waits(20, 20).late_ms(20) == 10


def test_each_batch_goes_to_the_worker_that_is_free_first():
    floor = Floor(1, 4).waits(11, 14, 21)

    assert floor.slack_ms() == 0
    assert floor.late_ms(24) == 0
    assert floor.late_ms(23) == 1


def test_the_newcomers_batch_may_have_grown_until_it_starts():
    floor = Floor(8, size=4)
    assert floor.late_ms(20) == -2

    floor.lines[0].pace.offered(5, NOW)  # 250 a second: two more in 8 ms
    assert floor.late_ms(20) == 8 + 16 - 20


def test_who_was_told_to_come_is_planned_without_what_may_come():
    floor = Floor(8, size=4)
    floor.lines[0].pace.offered(5, NOW)

    assert floor.plan.lateness_ns(floor.lines[0], NOW + 20 * MS, 1, NOW, NOW, growing=False) == -2 * MS


def test_a_batch_grows_to_its_size_at_most():
    floor = Floor(8, size=2)
    floor.lines[0].pace.offered(500, NOW)

    assert floor.late_ms(20) == 8 + 12 - 20


def test_without_a_worker_there_is_no_time():
    assert Floor().late_ms(1000) * MS == NEVER_NS


def test_a_worker_that_is_down_for_good_does_not_count():
    floor = Floor(0, 0)
    for _ in range(5):
        floor.workers[1].restarts.died(NOW)
    floor.workers[1].ready = False
    assert floor.waits(10).late_ms(19) == 1

    floor.workers[1].restarts.ready(NOW)  # one that restarts does
    floor.workers[1].spawn_at_ns = NOW
    floor.plan.changed()
    assert floor.late_ms(19) == -9


def test_while_every_worker_restarts_there_is_time_once_they_are_back():
    floor = Floor(0)
    floor.workers[0].ready = False
    floor.workers[0].spawn_at_ns, floor.workers[0].start_ns = NOW, 300 * MS

    assert floor.late_ms(309) == 1
    assert floor.late_ms(310) == 0


def test_a_worker_without_the_model_runs_none_of_its_batches():
    floor = Floor(0, 0, models=2)
    floor.workers[0].profiles = {1: SLOPE}

    assert floor.late_ms(11, 2) == 9
    assert floor.late_ms(11, 1) == 0


def test_a_model_whose_only_worker_is_not_coming_back_takes_nobody_s_room():
    floor = Floor(0, 0, models=2).waits(20, model=1).waits(20, model=0)
    floor.workers[1].profiles = {0: SLOPE}
    floor.workers[0].ready = floor.workers[0].was_ready = False
    assert not floor.workers[0].is_expected

    assert floor.late_ms(20, model=0) == 0, "behind the one that waits"
    assert floor.late_ms(90, model=1) == NEVER_NS / MS


def test_what_is_late_on_other_workers_is_nobody_else_s_business():
    floor = Floor(0, 90, models=2).waits(50, 50, 50, model=1)
    floor.workers[0].profiles = {0: SLOPE}
    floor.workers[1].profiles = {1: SLOPE}
    floor.waits(20, 20)

    assert floor.late_ms(20) == 10, "behind the two that wait"
    assert floor.slack_ms() == 0
    assert floor.late_ms(30) == 0


# As time goes on


def test_starts_are_kept_while_nothing_changes():
    floor = Floor(5, size=1)
    assert floor.late_ms(14) == 1
    starts = floor.plan._starts[0]

    assert floor.late_ms(14, at_ms=1) == 1
    assert floor.plan._starts[0] is starts


def test_starts_follow_a_worker_that_is_free_later_once_that_is_told():
    floor = Floor(5)
    assert floor.late_ms(14) == 1

    floor.workers[0].free_at_ns += 2 * MS
    floor.plan.changed()
    assert floor.late_ms(14) == 3


def test_starts_follow_the_size():
    floor = Floor(5, size=4)
    assert floor.late_ms(19, 2) == -2

    floor.lines[0].pace.size = 1
    assert floor.late_ms(19, 2) == 6


def test_the_starts_of_an_idle_worker_move_with_time():
    floor = Floor(0).waits(10)
    assert floor.late_ms(19) == 1

    assert floor.late_ms(19, at_ms=0.4) == 1.4
    assert floor.late_ms(19, at_ms=3) == 4


def test_a_busy_worker_beside_an_idle_one_is_taken_for_later_until_it_matters():
    floor = Floor(0, 5).waits(10)
    assert floor.late_ms(14) == 1

    assert floor.late_ms(14, at_ms=STALE_NS / MS) == 1.5, "it moved along"
    assert floor.late_ms(14, at_ms=STALE_NS / MS + 0.1) == 1, "worked out anew"


# Many models


def test_models_share_the_workers_in_order_of_their_first_due_times():
    floor = Floor(0, models=2).waits(10, model=1)

    assert floor.late_ms(20) == 0
    assert floor.late_ms(19) == 1
    assert floor.late_ms(9) == 10, "it would go first, and delay the other"


def test_batches_of_two_models_are_not_mixed():
    floor = Floor(0, models=2, size=4).waits(100, 100, model=1)

    assert floor.late_ms(25, 2) == 12 - 25, "no batch of the other is due before"
    assert floor.late_ms(101, 1) == 0
    assert Floor(0, models=2, size=4).waits(12, 12, model=1).late_ms(101, 4) == 0, "just in time"


def test_newcomers_that_are_not_decoded_keep_their_worker_waiting():
    floor = Floor(0, models=2).waits(40, model=1)

    assert floor.late_ms(35, ready_ms=25) == 5  # both 20 late for the other: 25, 35, 45
    assert floor.late_ms(35, ready_ms=20) == 0


def test_newcomers_join_a_batch_of_their_model_among_others():
    floor = Floor(0, models=2, size=2).waits(12, 50, model=0).waits(22, model=1)

    assert floor.late_ms(60) == 0
    assert floor.late_ms(11) == 1  # 11 12 | 22 | 50 are done at 12, 22, 32


def test_a_model_that_only_some_workers_have_waits_for_those():
    floor = Floor(0, 6, models=2).waits(10, model=1)
    floor.workers[0].profiles = {1: SLOPE}

    assert floor.late_ms(15) == 1
    assert floor.late_ms(16) == 0
    assert floor.late_ms(9) == 7, "due first, and passed over by the worker that is free first"


def test_room_for_all_is_room_on_one_worker():
    # Three batches of two at most, whoever is first: 36 ms.
    floor = Floor(0, models=2, size=2).waits(46, 50, 60, model=1)
    first = floor.lines[0]
    assert floor.plan._has_room(first, NOW + 36 * MS, 2, NOW)
    assert not floor.plan._has_room(first, NOW + 36 * MS - 1, 2, NOW)
    assert not floor.plan._has_room(first, NOW + 36 * MS, 2, NOW + 1)

    floor.waits(35, model=1)
    assert not floor.plan._has_room(first, NOW + 90 * MS, 2, NOW), "who waits counts as well"


def test_there_is_no_quick_answer_without_a_worker_that_is_up_and_has_all():
    floor = Floor(0, models=2).waits(900, model=1)
    floor.workers[0].profiles = {0: SLOPE}
    assert not floor.plan._has_room(floor.lines[0], NOW + 1 * S, 1, NOW)

    floor.workers[0].ready = False
    assert not floor.plan._has_room(floor.lines[0], NOW + 1 * S, 1, NOW)


def test_who_is_behind_newcomers_waits_for_their_decoding():
    # Whichever goes first, the other is late: 25 50, or 20+25 and 25 more. _together_ns says so, _alone_ns does not.
    floor = Floor(0, shape=profile((1, 25))).waits(60)

    assert floor.late_ms(46, ready_ms=20) > 0


def test_newcomers_that_are_several_batches_run_one_after_another_once_they_are_decoded():
    assert Floor(0, size=4).late_ms(40, 8, ready_ms=20) == 20 + 16 + 16 - 40


def test_newcomers_that_nobody_can_run_are_never_done():
    floor = Floor(0, models=2).waits(900, model=0)
    floor.workers[0].profiles = {0: SLOPE}

    assert floor.late_ms(1000, model=1) * MS == NEVER_NS


def test_images_that_nobody_can_run_take_no_room_of_others():
    floor = Floor(0, models=2).waits(900, model=1)
    floor.workers[0].profiles = {0: SLOPE}

    assert floor.late_ms(12) <= 0


def test_an_overdue_worker_delays_all_that_is_behind():
    floor = Floor(5).waits(30)
    floor.workers[0].batches = [None]
    assert floor.late_ms(24) == 25 - 30  # 15, 25

    # Three ms overdue, so three more are expected: 21, 31.
    assert floor.late_ms(24, at_ms=8) == 1


def test_a_slow_worker_that_is_free_is_not_overlooked():
    floor = Floor(0, 5)
    floor.lines[0].profile = profile((1, 200))  # of unlike workers, the slowest one's
    floor.workers[1].profiles = {0: floor.lines[0].profile}

    assert floor.late_ms(110, 2) > 0


def test_a_small_batch_is_not_taken_for_quicker_than_it_is():
    assert Floor(0, size=4, shape=profile((1, 12), (4, 10))).late_ms(11) > 0


# Slack


def test_without_promises_there_is_slack_without_end():
    assert Floor(0).slack_ms() == NEVER_NS / MS


def test_slack_is_the_least_that_any_batch_has():
    assert Floor(0).waits(15, 22, 90).slack_ms() == 2


def test_slack_shrinks_as_time_goes_on_and_an_idle_worker_waits():
    floor = Floor(0).waits(15)

    assert [floor.slack_ms(at_ms) for at_ms in (0, 3, 7)] == [5, 2, -2]


# The batch class


def asked(floor: Floor, count: int, model: int = 0) -> Floor:
    floor.lines[model].pace.offered(count, NOW)
    return floor


@pytest.mark.parametrize(("count", "crowded"), [(0, False), (1, True)])
def test_room_is_kept_for_real_time_images_that_come_lately(count: int, crowded: bool):  # noqa: FBT001
    # A second of deadline, of which a tenth is kept back; the worker is taken for all but 9 ms of the rest.
    assert asked(Floor(891), count).crowds() is crowded


def test_a_batch_of_those_that_come_may_have_grown_until_a_worker_is_free():
    assert not asked(Floor(884, size=4), 1).crowds()
    assert asked(Floor(885, size=4), 1).crowds()


def test_the_next_worker_takes_those_that_come_when_a_batch_is_full():
    # 50 a second: the second image comes 20 ms after the first.
    assert not asked(Floor(0, 910), 1).crowds()
    assert asked(Floor(0, 911), 1).crowds()


def test_a_model_that_no_worker_has_is_not_waited_for():
    floor = asked(Floor(895, models=2), 1, model=1)
    assert floor.crowds()

    floor.workers[0].profiles = {0: SLOPE}
    assert not floor.crowds()


def test_a_model_that_is_not_served_is_not_waited_for():
    floor = asked(Floor(895), 1)
    floor.lines[0].serving = False

    assert not floor.crowds()
