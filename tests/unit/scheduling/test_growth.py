"""What a request costs the core does not grow with models and images that are not its own. Counted, not timed."""

from __future__ import annotations

import sys

import pytest

from tests.support.core import FLAT_NS, MS, NOW, ROOM, Core, S, line, refused


def steps(what) -> int:
    """The bytecodes that `what` takes."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        what()
    finally:
        sys.settrace(before)
    return count


def of_many(model_count: int) -> Core:
    """A core with that many models, of which the first was asked for before; none is due for a review."""
    core = Core(*(line(index, **ROOM) for index in range(model_count)))
    serve(core, NOW)
    for each in core.lines:
        each.review_ns = NOW + 10 * S
    return core


def serve(core: Core, now_ns: int) -> None:
    """One request, from its headers to its answer."""
    core.s.precheck(core.lines[0], now_ns + 1 * S, now_ns)
    ticket = core.submit(model=0, deadline_ns=now_ns + 1 * S, at=now_ns)[0]
    core.do(now_ns)
    core.decoded(len(core.tickets), at=now_ns)
    core.do(now_ns)
    core.ran(at=now_ns + FLAT_NS)
    assert core.do(now_ns + FLAT_NS) == [f"finish {len(core.tickets)}: ok"]
    core.s.release(ticket)


def test_models_that_nobody_asks_for_cost_a_request_nothing():
    one, many = of_many(1), of_many(64)
    counts = [steps(lambda core=core: serve(core, NOW + 100 * MS)) for core in (one, many)]

    assert counts[0] == counts[1]


def test_a_review_looks_only_at_models_that_have_something_to_do():
    core = of_many(3)
    later = NOW + 10 * S
    assert refused(core, at=later) is None

    assert [each.review_ns > later for each in core.lines] == [True, False, False]
    assert refused(core, model=1, at=later) is None
    assert [each.review_ns > later for each in core.lines] == [True, True, False]


@pytest.mark.parametrize("end", ["cancel", "expire"])
def test_a_line_is_busy_while_its_images_wait(end):
    core = Core(line(0, **ROOM), line(1, **ROOM), line(2, **ROOM))
    busy = core.s._roster.busy
    for model in (2, 0, 2):
        core.submit(model=model, deadline_ns=NOW + 1 * S)
    assert [each.index for each in busy] == [0, 2], "in their order, each once"

    if end == "cancel":
        for ticket in core.tickets:
            core.s.cancel(ticket, NOW)
    else:
        core.do(NOW + 1 * S)
    assert not busy
