"""What a gateway says of itself, and that a drain is asked for once."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from gateway.admin.facts import GatewayFacts


def driver(*, ready=True, draining=False):
    core = SimpleNamespace(
        draining=draining,
        is_ready=ready,
        live_count=7,
        feeder=SimpleNamespace(decoders=[SimpleNamespace(ready=True), SimpleNamespace(ready=False)]),
        bodies=SimpleNamespace(held_size=10, size=100),
    )
    return SimpleNamespace(core=core)


def test_it_says_what_it_is():
    found = GatewayFacts(driver(), "http://127.0.0.1:8080", lambda: None).status()
    assert (found["pid"], found["url"], found["in_flight"]) == (os.getpid(), "http://127.0.0.1:8080", 7)
    assert found["decoders_ready"] == 1
    assert (found["memory"]["bodies"], found["memory"]["bodies_max"]) == (10, 100)
    assert found["memory"]["gateway"] > 1 << 20
    assert found["uptime_s"] >= 0


@pytest.mark.parametrize(
    ("state", "said"),
    [({"ready": True}, "ready"), ({"ready": False}, "not_ready"), ({"ready": True, "draining": True}, "draining")],
)
def test_it_says_how_it_stands(state, said):
    assert GatewayFacts(driver(**state), "", lambda: None).status()["status"] == said


def test_a_second_drain_does_not_hurry_the_first():
    asked = []
    facts = GatewayFacts(driver(), "", lambda: asked.append(1))
    facts.drain()
    facts.drain()
    assert asked == [1]
    assert facts.status()["status"] == "draining"
