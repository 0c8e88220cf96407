"""The RateLimit headers: structured fields that say what the meters say."""

from __future__ import annotations

import pytest

from gateway.http.ratelimit import header_text
from gateway.scheduling.limiter import Limiter, Rule
from gateway.scheduling.ticket import Priority

S = 1_000_000_000


def text(rule, taken=0, priority=Priority.REALTIME, **more):
    client = Limiter(anonymous=rule, clients_max=1).address("a", S)
    if taken:
        client.meters[priority].take(S, taken)
        client.in_flight = taken
    return header_text(client, priority, S, **more)


@pytest.mark.parametrize(
    ("rule", "taken", "more", "policy", "state"),
    [
        (Rule(100.0, 200), 1, {}, '"realtime";q=200;w=2;qu="images"', '"realtime";r=199;t=1'),
        (Rule(100.0, 200), 0, {}, '"realtime";q=200;w=2;qu="images"', '"realtime";r=200;t=0'),
        (Rule(0.5), 1, {}, '"realtime";q=1;w=2;qu="images"', '"realtime";r=0;t=2'),
        (Rule(3.0, 10), 10, {"retry_s": 1}, '"realtime";q=10;w=4;qu="images"', '"realtime";r=0;t=1'),
        (
            Rule(3.0, 10, in_flight_max=8),
            5,
            {"ending": 2},
            '"realtime";q=10;w=4;qu="images", "in_flight";q=8;qu="images"',
            '"realtime";r=5;t=2, "in_flight";r=5',
        ),
    ],
)
def test_both_headers(rule, taken, more, policy, state):
    assert text(rule, taken, **more) == f"RateLimit-Policy: {policy}\r\nRateLimit: {state}\r\n"


def test_each_class_has_its_own():
    assert '"batch";q=4;w=2;qu="images"' in text(Rule(100.0, 200, 2.0, 4), 1, Priority.BATCH)


def test_in_flight_alone():
    assert (
        text(Rule(in_flight_max=2)) == 'RateLimit-Policy: "in_flight";q=2;qu="images"\r\nRateLimit: "in_flight";r=2\r\n'
    )


def test_no_limit_no_header():
    assert text(Rule()) == ""
