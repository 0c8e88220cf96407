"""A meter against the definition: the sum over every window, in fractions, and a replay without what was given back."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import errors
from gateway.scheduling.limiter import Limiter, Rule
from gateway.scheduling.meter import Meter
from gateway.scheduling.ticket import Priority

S = 1_000_000_000

RATES = st.fractions(Fraction(1, 3), 50, max_denominator=7)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "settle", "give back"]),
        st.integers(0, 6 * S // 10),
        st.integers(1, 6),
        st.integers(0, 50),
    ),
    max_size=30,
)


class Oracle:
    """The definition itself: every image that was let through, with its time."""

    def __init__(self, rate: Fraction, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self.taken: list[tuple[int, int]] = []

    def allows(self, now_ns: int, cost: int) -> bool:
        """Whether with `cost` more, every window that ends now holds at most rate * W + burst."""
        return cost <= self.burst and all(
            sum(other for _, other in self.taken[index:]) + cost <= self.rate * Fraction(now_ns - at_ns, S) + self.burst
            for index, (at_ns, _) in enumerate(self.taken)
        )


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(RATES, st.integers(1, 6), STEPS)
def test_it_lets_through_what_the_definition_allows_and_nothing_else(rate, burst, steps):
    meter, oracle, now_ns = Meter(rate, burst), Oracle(rate, burst), S
    charges = []
    for what, gap_ns, wanted, pick in steps:
        now_ns += gap_ns
        if what == "take":
            cost = min(wanted, burst)
            wait_ns = meter.wait_ns(now_ns, cost)
            assert (wait_ns == 0) == oracle.allows(now_ns, cost)
            assert oracle.allows(now_ns + wait_ns, cost)
            assert not wait_ns or not oracle.allows(now_ns + wait_ns - 1, cost)
            fits = [count for count in range(1, burst + 1) if oracle.allows(now_ns, count)]
            assert meter.remaining(now_ns) == max(fits, default=0)
            assert oracle.allows(now_ns + meter.full_ns(now_ns), burst)
            if not wait_ns:
                entry = (now_ns, cost)
                oracle.taken.append(entry)
                charges.append((entry, meter.take(now_ns, cost)))
        elif charges:
            entry, charge = charges.pop(pick % len(charges))
            if what == "settle":
                meter.settle(charge)
            else:
                meter.give_back(charge)
                oracle.taken.remove(entry)


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, S),
        st.sampled_from(list(Priority)),
        st.integers(1, 5),
        st.sampled_from(list(Priority)),
        st.sampled_from(["accept", "revoke", "bad body"]),
    ),
    max_size=25,
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(REQUESTS)
def test_requests_of_many_images_are_one_decision_in_their_class(requests):
    """Header and body together, one after the other: each class lets through what its definition allows."""
    limiter = Limiter(anonymous=Rule(3.0, 4, 1.5, 3), clients_max=2)
    oracles = {Priority.REALTIME: Oracle(Fraction(3), 4), Priority.BATCH: Oracle(Fraction(3, 2), 3)}
    now_ns, last = S, 1
    for gap_ns, asked, count, named, end in requests:
        now_ns += gap_ns
        client = limiter.address("192.0.2.1", now_ns)
        claim, fits = None, oracles[named].allows(now_ns, count)
        before = [meter._tat for meter in client.meters]
        try:
            claim = limiter.claim(client, asked, now_ns, now_ns + S)
            limiter.extend(claim, count, named, now_ns, now_ns + S)
        except errors.Refusal as refusal:
            wait_s = refusal.retry_after_s
            assert not fits or not oracles[asked].allows(now_ns, 1)
            if wait_s is None:
                assert count > oracles[named].burst
                oracles[asked].taken.append((now_ns, 1))
            else:
                if claim is not None:
                    last = count
                oracle = oracles[asked if claim is None else named]
                cost = min(last, oracle.burst)
                assert oracle.allows(now_ns + wait_s * S, cost)
                assert wait_s == 1 or not oracle.allows(now_ns + (wait_s - 1) * S, cost)
                assert [meter._tat for meter in client.meters] == before
        else:
            assert fits
            last = count
            if end == "revoke":
                limiter.revoke(claim)
                assert [meter._tat for meter in client.meters] == before
            else:
                oracles[named].taken.append((now_ns, count))
            if end == "accept":
                limiter.accept(claim, count)
        if claim is not None:
            limiter.release(claim)
        assert client.in_flight == 0
        assert not any(meter._open for meter in client.meters)
