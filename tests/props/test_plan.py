"""The plan against one that is worked out naively: what it answers quickly is never bolder than what it means.

Where it may be more careful: `_has_room` always (one worker, whole batches, the first due time for all); `_alone_ns`
by the growth that it expects of the newcomers' batch (never less than what they are now), by letting everything behind
newcomers that are not decoded wait with them, also on other workers, and, while it has kept its starts for up to
STALE_NS beside an idle worker, by taking busy workers for free as much later as time has gone on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gateway.scheduling.plan import NEVER_NS, STALE_NS, Plan
from tests.support.core import MS, NOW, line, profile, promised, worker

if TYPE_CHECKING:
    from gateway.scheduling.line import Line
    from gateway.scheduling.placement import WorkerState
    from gateway.scheduling.profile import Profile

pytestmark = pytest.mark.slow
quick = settings(max_examples=300, deadline=None, derandomize=True)

tight = st.lists(st.integers(0, 40), max_size=9)
loose = st.lists(st.integers(200, 500), max_size=6)
frees = st.lists(st.integers(-3, 15), min_size=1, max_size=3)
counts = st.integers(1, 9)
soon = st.integers(0, 45)
late = st.integers(200, 500)


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """One size to three, and no batch quicker than a smaller one."""
    return draw(timed(sorted(draw(st.sets(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3)))))


@st.composite
def timed(draw: st.DrawFn, sizes: list[int]) -> Profile:
    """What a device takes for these sizes."""
    times_ms = sorted(draw(st.lists(st.integers(1, 40), min_size=len(sizes), max_size=len(sizes))))
    return profile(*zip(sizes, times_ms, strict=True))


def lined(index: int, shape: Profile, waiting: list[int], size: int) -> Line:
    made = line(index)
    made.profile = shape
    made.pace.size = size
    return promised(made, *[NOW + due_ms * MS for due_ms in waiting])


@st.composite
def lines(draw: st.DrawFn, shapes: list[Profile], dues: st.SearchStrategy[list[int]]) -> list[Line]:
    return [lined(index, shape, draw(dues), draw(st.sampled_from(shape.sizes))) for index, shape in enumerate(shapes)]


@st.composite
def floors(
    draw: st.DrawFn, *, models: int = 1, alike: bool = True, dues: st.SearchStrategy[list[int]] = tight
) -> tuple[list[Line], list[WorkerState]]:
    """Lines, and workers that are free sooner or later. Unlike ones differ in speed, and may lack a model.

    A line's own profile is that of the slowest one, as admission chooses it.
    """
    shapes = [draw(profiles()) for _ in range(models)]
    workers = []
    for index, free_ms in enumerate(draw(frees)):
        loaded = dict(enumerate(shapes))
        if not alike:
            loaded = {model: draw(timed(shape.sizes)) for model, shape in loaded.items() if draw(st.booleans())}
        workers.append(worker(index, loaded, free_at_ns=NOW + free_ms * MS))
    made = draw(lines(shapes, dues))
    for each in made:
        able = [one.profiles[each.index] for one in workers if each.index in one.profiles]
        each.profile = max(able, key=lambda shape: shape.by_count[-1], default=each.profile)
        each.alike = all(shape is each.profile for shape in able)
    return made, workers


def planned(all_lines: list[Line], workers: list[WorkerState]) -> Plan:
    """A plan of them all; from now on the lines keep what it knows of who waits."""
    busy = [each for each in all_lines if each.dues]
    for each in all_lines:
        each.busy = busy
    return Plan(all_lines, workers, busy)


class Newcomers:
    """Images that ask to be promised an answer."""

    def __init__(self, of: Line, due_ns: int, count: int, ready_ns: int) -> None:
        self.line, self.due_ns, self.count, self.ready_ns = of, due_ns, count, ready_ns


def naive(
    all_lines: list[Line], workers: list[WorkerState], now_ns: int, new: Newcomers | None = None
) -> list[tuple[int, bool]]:
    """How late each batch ends, and whether it is the first one with newcomers or one behind it. Images in order of
    their due times, who came first before who came later; batches in order of their first images.
    """
    batches = []
    for each in all_lines:
        images = [(due_ns, False) for due_ns in each.dues]
        if new is not None and new.line is each:
            images += [(new.due_ns, True)] * new.count
        images.sort(key=lambda image: image[0])
        size, seen = each.pace.size, False
        for head in range(0, len(images), size):
            batch = images[head : head + size]
            fresh = any(is_new for _, is_new in batch)
            seen = seen or fresh
            batches.append((batch[0][0], each.index, len(batch), fresh, seen))
    batches.sort(key=lambda batch: batch[:2])
    free = {each.index: max(now_ns, each.expected_free_ns(now_ns)) for each in workers if each.is_expected}
    found = []
    for due_ns, model, count, fresh, seen in batches:
        able = [each for each in workers if each.index in free and model in each.profiles]
        if not able and fresh:
            return [(NEVER_NS, True)]
        if not able:
            continue
        best = min(able, key=lambda each: (free[each.index], each.index))
        start_ns = max(free[best.index], new.ready_ns) if fresh and new is not None else free[best.index]
        free[best.index] = start_ns + best.profiles[model].by_count[count]
        found.append((free[best.index] - due_ns, seen))
    return found


def companions(line: Line, all_lines: list[Line], workers: list[WorkerState]) -> list[Line]:
    """The lines that can be reached from this one by workers that have both; found one step after the other."""
    found = [line]
    for known in found:
        for each in all_lines:
            meets = any(known.index in one.profiles and each.index in one.profiles for one in workers)
            if meets and each not in found:
                found.append(each)
    return sorted(found, key=lambda each: each.index)


def worst(found: list[tuple[int, bool]], *, from_newcomers: bool = False) -> int:
    return max((late_ns for late_ns, seen in found if seen or not from_newcomers), default=-NEVER_NS)


@quick
@given(floors(models=3, alike=False))
def test_slack_is_what_the_naive_plan_has(floor):
    all_lines, workers = floor
    for each in all_lines:
        company = companions(each, all_lines, workers)
        assert planned(*floor).company(each) == company
        assert -planned(*floor).slack_ns(NOW, each) == worst(naive(company, workers, NOW))


@quick
@given(floors(models=2, alike=False), soon, counts, soon)
def test_models_together_are_planned_naively(floor, due_ms: int, count: int, ready_ms: int):
    all_lines, workers = floor
    new = Newcomers(all_lines[0], NOW + due_ms * MS, count, NOW + ready_ms * MS)

    for company in (all_lines, companions(new.line, all_lines, workers)):
        planned_ns = planned(*floor)._together_ns(NOW, company, new.line, new.due_ns, new.count, new.ready_ns)
        assert planned_ns == worst(naive(company, workers, NOW, new))


@quick
@given(floors(models=1, alike=False), soon, counts)
def test_a_model_alone_is_planned_naively_from_the_newcomers_on(floor, due_ms: int, count: int):
    new = Newcomers(floor[0][0], NOW + due_ms * MS, count, NOW)

    planned_ns = planned(*floor)._alone_ns(new.line, new.due_ns, count, NOW, NOW, growing=False)
    assert planned_ns == worst(naive(*floor, NOW, new), from_newcomers=True)


@quick
@given(floors(models=1, alike=False), soon, counts, soon)
def test_a_model_alone_is_planned_no_bolder_behind_newcomers_that_are_not_decoded(
    floor, due_ms: int, count: int, ready_ms: int
):
    new = Newcomers(floor[0][0], NOW + due_ms * MS, count, NOW + ready_ms * MS)

    planned_ns = planned(*floor)._alone_ns(new.line, new.due_ns, count, new.ready_ns, NOW, growing=False)
    assert planned_ns >= worst(naive(*floor, NOW, new), from_newcomers=True)


@quick
@given(floors(models=1), soon, counts, st.integers(0, 500))
def test_what_may_come_makes_the_plan_more_careful_only(floor, due_ms: int, count: int, offered: int):
    new = Newcomers(floor[0][0], NOW + due_ms * MS, count, NOW)
    exact_ns = planned(*floor)._alone_ns(new.line, new.due_ns, count, NOW, NOW, growing=False)
    new.line.pace.offered(offered, NOW)

    plan = planned(*floor)
    assert plan._alone_ns(new.line, new.due_ns, count, NOW, NOW, growing=True) >= exact_ns
    assert plan._alone_ns(new.line, new.due_ns, count, NOW, NOW, growing=False) == exact_ns


@quick
@given(floors(models=2, dues=loose), late, counts, st.integers(-20, 40))
def test_room_is_never_seen_where_there_is_none(floor, due_ms: int, count: int, ready_ms: int):
    new = Newcomers(floor[0][0], NOW + due_ms * MS, count, max(NOW, NOW + ready_ms * MS))
    assume(planned(*floor)._has_room(new.line, new.due_ns, count, new.ready_ns))

    assert worst(naive(*floor, NOW, new)) <= 0


@quick
@given(floors(models=2, alike=False, dues=loose), late, counts, soon)
def test_a_promise_that_is_accepted_breaks_none(floor, due_ms: int, count: int, ready_ms: int):
    new = Newcomers(floor[0][0], NOW + due_ms * MS, count, NOW + ready_ms * MS)
    assume(planned(*floor).lateness_ns(new.line, new.due_ns, count, new.ready_ns, NOW) <= 0)

    assert worst(naive(*floor, NOW, new), from_newcomers=True) <= 0


@quick
@given(floors(models=1), soon, counts, counts, st.integers(0, 3 * STALE_NS))
def test_starts_that_were_kept_are_never_bolder_as_time_goes_on(
    floor, due_ms: int, count: int, before: int, later: int
):
    now_ns = NOW + later
    assume(all(each.free_at_ns <= NOW or each.free_at_ns >= now_ns for each in floor[1]))  # nobody is overdue
    new = Newcomers(floor[0][0], NOW + due_ms * MS, count, now_ns)
    plan = planned(*floor)
    plan._alone_ns(new.line, new.due_ns, before, NOW, NOW, growing=False)

    planned_ns = plan._alone_ns(new.line, new.due_ns, count, now_ns, now_ns, growing=False)
    exact_ns = worst(naive(*floor, now_ns, new), from_newcomers=True)
    assert exact_ns <= planned_ns <= exact_ns + STALE_NS


changes = st.lists(
    st.one_of(
        st.tuples(st.just("promise"), soon),
        st.tuples(st.just("forget"), st.integers(0, 8)),
        st.tuples(st.just("size"), st.integers(0, 2)),
        st.tuples(st.just("free"), st.integers(0, 15)),
        st.tuples(st.just("down"), st.just(0)),
        st.tuples(st.just("ask"), soon),
    ),
    max_size=12,
)


@quick
@given(floors(models=1), changes, soon, counts)
def test_starts_that_were_kept_are_those_of_a_plan_that_kept_nothing(floor, happened, due_ms: int, count: int):
    (only,), workers = floor
    plan = planned(*floor)
    for what, value in happened:
        if what == "promise":
            promised(only, NOW + value * MS)
        elif what == "forget" and only.dues:
            del only.dues[value % len(only.dues)]
        elif what == "size":
            only.pace.size = only.profile.sizes[value % len(only.profile.sizes)]
        elif what == "free":
            workers[-1].free_at_ns = NOW + value * MS
            plan.changed()
        elif what == "down":
            workers[0].ready = not workers[0].ready
            workers[0].spawn_at_ns, workers[0].start_ns = NOW, 5 * MS
            plan.changed()
        else:
            plan.lateness_ns(only, NOW + value * MS, 1, NOW, NOW)

    due_ns = NOW + due_ms * MS
    kept_ns, fresh_ns = (
        each._alone_ns(only, due_ns, count, NOW, NOW, growing=False) for each in (plan, planned(*floor))
    )
    assert kept_ns == fresh_ns
