"""The search for the largest rate, against servers that are one line of arithmetic."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.tuning.search import CONFIRMATIONS_MAX, PRECISION, PROBES_MAX, Probe, RateSearch


def search(sustains, first: float, rate_max: float = 1e6) -> tuple[RateSearch, list[float]]:
    """Run a whole search; `sustains(rate, confirms)` is the server."""
    found, tried = RateSearch(first, rate_max=rate_max), []
    while step := found.next():
        tried.append(step.rate)
        found.note(met=sustains(step.rate, step.confirms))
    return found, tried


@settings(deadline=None, derandomize=True)
@given(capacity=st.floats(20, 3000), first=st.floats(50, 1000))
def test_it_comes_close_to_the_capacity_in_few_probes(capacity, first):
    found, tried = search(lambda rate, _: rate <= capacity, first)
    assert len(tried) <= PROBES_MAX
    assert found.confirmed is not None
    assert found.confirmed <= capacity
    if first / 8 <= capacity <= first * 8:
        assert found.confirmed >= capacity / PRECISION**2


def test_a_server_that_keeps_up_with_anything_is_tried_up_to_the_bound():
    found, tried = search(lambda *_: True, 100, rate_max=350)
    assert tried == [100, 200, 350, 350]
    assert found.confirmed == 350


def test_a_server_that_keeps_up_with_nothing_has_no_rate():
    found, tried = search(lambda *_: False, 100)
    assert (found.confirmed, found.low) == (None, None)
    assert len(tried) == PROBES_MAX - CONFIRMATIONS_MAX
    assert tried[-1] == 100 / 2 ** (len(tried) - 1)


def test_what_a_longer_look_does_not_confirm_is_lowered_and_looked_at_again():
    found, tried = search(lambda rate, confirms: rate <= (95 if confirms else 100), 80)
    assert found.confirmed is not None
    assert found.confirmed <= 95
    assert tried[-1] == found.confirmed


def test_in_a_hurry_the_next_probe_confirms_what_is_known():
    found = RateSearch(100, rate_max=1e6)
    found.next()
    found.note(met=True)
    assert found.next() == (200, False)
    found.hurry()
    assert found.next() == (100, True)
    found.note(met=True)
    assert (found.next(), found.confirmed) == (None, 100)


def test_in_a_hurry_with_nothing_known_it_is_over():
    found = RateSearch(100, rate_max=1e6)
    found.next()
    found.note(met=False)
    found.hurry()
    assert found.next() is None


def test_asking_twice_is_asking_once():
    found = RateSearch(100, rate_max=1e6)
    assert found.next() == found.next() == (100, False)


@pytest.mark.parametrize(
    ("p99_ms", "refused_share", "confirms", "verdict"),
    [
        (50.0, 0.01, False, "meets"),
        (50.0, 0.01, True, "confirmed"),
        (50.1, 0.0, False, "late"),
        (20.0, 0.011, True, "refuses"),
        (math.nan, 1.0, False, "refuses"),
        (math.nan, 0.0, False, "late"),
    ],
)
def test_a_probe_is_judged_by_its_tail_and_its_refusals(p99_ms, refused_share, confirms, verdict):
    assert Probe(100.0, 1000, 10.0, p99_ms, refused_share, confirms).verdict(50.0) == verdict


def queue(rate: float, capacity: float = 1000.0, single_ms: float = 5.0) -> Probe:
    """A single server with exponential times: p99 of the sojourn is ln(100) / (mu - lambda); over capacity it sheds."""
    if rate >= capacity:
        return Probe(rate, 1000, 50.0, 50.0, 1 - capacity / rate)
    return Probe(rate, 1000, single_ms, math.log(100) / (capacity - rate) * 1e3, 0.0)


def test_against_a_queue_it_finds_the_rate_at_which_the_tail_meets_the_deadline():
    found, _ = search(lambda rate, _: queue(rate).meets(50.0), 400)
    ideal = 1000 - math.log(100) / 0.050
    assert ideal / PRECISION <= found.confirmed <= ideal
