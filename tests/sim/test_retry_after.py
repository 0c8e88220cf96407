"""A Retry-After is true: whoever waits so long and comes back is served, while the load stays what it was."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench.lab import traces
from bench.lab.core import Core
from bench.lab.law import T4, Law
from bench.lab.machine import Machine, Outcome
from gateway import errors

if TYPE_CHECKING:
    from bench.lab.machine import Played
    from bench.lab.traces import Trace

SECONDS = 6.0
PROBES = 12


class Named(Core):
    """Every request has a client of its own, but for those in `same`, which are another one's second try."""

    def __init__(self, same: dict[int, int]) -> None:
        super().__init__()
        self._same = same
        self.retry_s: dict[int, int] = {}

    def offer(self, request: int, now_ns: int) -> bool:
        core, machine = self.scheduler, self._machine
        line, deadline_ns = core.lines[0], machine.deadline_ns[request]
        client = f"client {self._same.get(request, request)}"
        body = core.allocate_body(64)
        try:
            core.precheck(line, deadline_ns, now_ns, client=client)
            (ticket,) = core.submit(
                line,
                body,
                [(body.region.offset, 64, self._encoding)],
                priority=0,
                deadline_ns=deadline_ns,
                top_k=1,
                now_ns=now_ns,
                client=client,
            )
        except errors.Overloaded as refusal:
            self.retry_s[request] = refusal.retry_after_s
            return False
        finally:
            body.release()
        ticket.owner = request
        return True


CPU = Law("cpu", 8_000_000, 1_000_000, 100_000_000, (1, 2))
"""Where larger batches gain next to nothing: B* is one or two."""


def with_second_try(trace: Trace, at_ns: int, law: Law) -> tuple[Trace, int]:
    """The same trace with one more request, and where it stands."""
    place = int(np.searchsorted(trace.arrival_ns, at_ns))
    arrival_ns = np.insert(trace.arrival_ns, place, at_ns)
    return (
        replace(
            trace,
            arrival_ns=arrival_ns,
            deadline_ns=np.insert(trace.deadline_ns, place, at_ns + law.deadline_ns),
            priority=np.insert(trace.priority, place, 0),
            model=np.insert(trace.model, place, 0),
        ),
        place,
    )


def played(trace: Trace, policy: Named, law: Law = T4) -> Played:
    return Machine(trace, law, policy).play()


@pytest.mark.slow
@pytest.mark.parametrize(("law", "load"), [(T4, 1.2), (T4, 2), (CPU, 2)])
def test_who_waits_as_told_is_served_at_the_same_load(law: Law, load: float):
    trace = traces.poisson(5, load * law.capacity(1), SECONDS, law.deadline_ns)
    first = Named({})
    played(trace, first, law)
    again = {
        request: int(trace.arrival_ns[request]) + retry_s * 1_000_000_000 for request, retry_s in first.retry_s.items()
    }
    within = [request for request, again_ns in again.items() if again_ns < trace.end_ns]
    assert len(within) > PROBES, "many are refused, and some are told to come back while the load lasts"

    for request in within[:: len(within) // PROBES]:
        again_ns = again[request]
        longer, place = with_second_try(trace, again_ns, law)
        second = Named({place: request})
        outcome = played(longer, second, law).outcome
        assert outcome[place] == Outcome.ON_TIME, f"request {request} waited {first.retry_s[request]} s for nothing"


@pytest.mark.slow
@pytest.mark.parametrize(("law", "share"), [(T4, 0.97), (CPU, 0.9)])
def test_dates_do_not_cost_the_others_much(law: Law, share: float):
    """Nobody keeps one here. Where batches are of one image, the place that is kept free is a large part."""
    trace = traces.poisson(5, 2 * law.capacity(1), SECONDS, law.deadline_ns)

    with_dates, without = played(trace, Named({}), law), Machine(trace, law, Core()).play()

    assert with_dates.on_time > share * without.on_time
    assert with_dates.late == without.late == 0
