"""A worker that builds engines while it starts: its own clock, and what the start's clock does meanwhile."""

from __future__ import annotations

import pytest

from gateway.scheduling.restarts import State
from gateway.scheduling.ticket import Role
from tests.support.core import MS, NOW, Core, S, line

START_S, BUILD_S, SILENCE_S = 20, 1800, 60
"""As `Core` has them, and the core itself."""


def starting() -> Core:
    """A worker that was started at NOW and has said nothing, beside a decoder that is up."""
    core = Core(line(0), line(1), up=False)
    core.do(NOW)
    core.s.decoder_ready(0, NOW)
    return core


def builds(core: Core, model: int, *, since: int, until: int, step_s: int = 50) -> list[str]:
    """It says every `step_s` that it builds; what was asked for meanwhile."""
    asked = []
    for at in range(since, until, step_s * S):
        asked += core.do(at)
        core.s.worker_building(0, model, at)
    return asked


def last_of(core: Core, after: int) -> tuple[int, str]:
    """When the core wants to be woken behind `after`, and what it does then."""
    core.do(after)
    at = core.s.wake_at_ns()
    assert at is not None
    return (at - NOW) // S, core.do(at)[0]


def test_the_clock_of_the_start_stands_still_while_an_engine_is_built():
    core = starting()
    core.s.worker_loading(0, NOW + 1 * S)

    assert builds(core, 0, since=NOW + 5 * S, until=NOW + 1000 * S) == []
    assert core.s.worker(0).state is State.BUILDING
    assert core.s.is_building
    core.s.worker_loading(0, NOW + 1005 * S)
    assert core.s.worker(0).state is State.WARMING
    assert not core.s.is_building
    assert last_of(core, NOW + 1006 * S) == (1000 + START_S, "kill worker 0: did not start in time")


def test_an_engine_has_its_time_and_the_next_one_the_same():
    core = starting()

    assert builds(core, 0, since=NOW, until=NOW + BUILD_S * S) == []
    assert builds(core, 1, since=NOW + BUILD_S * S - 1, until=NOW + 2 * BUILD_S * S - 1) == []
    end = NOW + 2 * BUILD_S * S - 2
    core.s.worker_building(0, 1, end)
    assert core.do(end) == []
    assert core.do(end + 1) == ["kill worker 0: did not build an engine in time"]


def test_a_builder_that_falls_silent_is_hung():
    core = starting()
    core.s.worker_building(0, 0, NOW + 1 * S)
    core.s.worker_building(0, 0, NOW + 31 * S)

    assert core.do(NOW + (31 + SILENCE_S) * S - 1) == []
    assert last_of(core, NOW + 32 * S) == (31 + SILENCE_S, "kill worker 0: hung while it built an engine")


def test_the_next_life_begins_with_a_whole_clock():
    core = starting()
    builds(core, 0, since=NOW, until=NOW + 100 * S)
    core.s.worker_lost(0, NOW + 100 * S, guilty=True)
    assert core.do(NOW + 100 * S) == ["spawn worker 0"]
    assert core.s.worker(0).state is State.STARTING
    assert last_of(core, NOW + 101 * S) == (100 + START_S, "kill worker 0: did not start in time")


def test_what_it_built_is_not_expected_of_the_next_start():
    core = starting()
    builds(core, 0, since=NOW + 1 * S, until=NOW + 101 * S)
    core.s.worker_ready(0, {0: core.points}, NOW + 103 * S)

    worker = core.s.worker(0)
    assert (worker.state, worker.start_ns) == (State.READY, 1 * S)


def test_one_that_was_condemned_is_not_believed():
    core = starting()
    core.s.gone(Role.WORKER, 0, NOW)
    core.s.worker_building(0, 0, NOW)
    core.s.worker_loading(0, NOW)

    assert core.s.worker(0).state is State.DEAD


def test_nobody_waits_for_more_of_a_worker_that_is_up():
    core = starting()
    core.s.worker_building(0, 0, NOW)
    core.s.worker_ready(0, {0: core.points, 1: core.points}, NOW + 1 * S)

    assert core.do(NOW + 9000 * S) == []


# Sizes that did not fit when they were warmed


def test_sizes_that_one_worker_gave_up_are_planned_on_none():
    core = Core(workers=2, up=False)
    core.do(NOW)
    core.s.decoder_ready(0, NOW)
    core.worker_with(0, NOW, kind="large", m0=[(1, 10), (2, 10), (4, 10)])
    core.s.worker_ready(1, {0: core.points[:2]}, NOW, kind="small", size_ends={0: 4})

    assert [worker.profiles[0].sizes for worker in core.s.workers] == [[1, 2], [1, 2]]
    core.tensors(4)
    assert core.do(NOW) == ["run 0: 1 2 at 2, full", "run 1: 3 4 at 2, full"]


@pytest.mark.parametrize("first", [0, 1])
def test_alike_workers_share_what_fits_in_the_smaller_room(first: int):
    core = Core(workers=2, up=False)
    core.do(NOW)
    core.s.decoder_ready(0, NOW)
    for index in (first, 1 - first):
        fewer = index == 1
        points = core.points[:2] if fewer else core.points
        core.s.worker_ready(index, {0: points}, NOW, kind="same", size_ends={0: 4} if fewer else {})

    assert [worker.profiles[0].sizes for worker in core.s.workers] == [[1, 2], [1, 2]]
    assert core.lines[0].size_end == 4
    core.tensors(8, deadline_ns=NOW + 900 * MS)
    sizes = {word.partition(" at ")[2] for _, word in core.play() if word.startswith("run")}
    assert sizes == {"2, full"}
