"""What an operator sees of long work: a bar on a terminal, and at its end what became of memory."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gateway.admin import client, screens
from gateway.client import ServerSaysNo

STEPS = [
    {"kind": "load", "model": "m", "state": "running", "stage": "warming [bold]", "share": 0.4},
    {"kind": "load", "model": "m", "state": "succeeded", "stage": "done", "share": 1.0, "result": {}},
]


def shown(renderable) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(renderable)
    return out.getvalue()


def test_a_terminal_gets_a_bar():
    out = io.StringIO()
    assert screens.follow(Console(file=out, force_terminal=True, width=120), iter(STEPS)) == STEPS[1]
    assert "load m: warming [bold]" in out.getvalue()
    assert "40%" in out.getvalue()


def test_the_end_says_what_was_done_and_where_memory_went():
    gone = {"worker": 3, "before": {"memory_size": 300 << 20}, "after": {"memory_size": 0}, "holders": []}
    result = {"loaded": ["m/2"], "unloaded": [], "seconds": 1.5, "workers": [gone]}
    said = shown(screens.ended({**STEPS[1], "result": result}))
    assert "succeeded  load m" in said
    assert 'loaded: ["m/2"]' in said
    assert "worker 3 gone, memory 300 MiB → 0 MiB" in said
    assert "unloaded" not in said
    assert "held by" not in said
    assert "device memory" not in said
    gone["before"]["device_memory_size"], gone["after"]["device_memory_size"] = 2 << 30, 0
    assert "MiB, device memory 2,048 MiB → 0 MiB" in shown(screens.ended({**STEPS[1], "result": result}))
    result["workers"] = [{**gone, "holders": [{"pid": 7, "name": "leak"}]}]
    assert 'held by [{"pid": 7, "name": "leak"}]' in shown(screens.ended({**STEPS[1], "result": result}))


@pytest.mark.parametrize("found", [{}, {"models": [{}], "workers": [{}]}, {"models": [{"versions": [{}]}]}])
def test_a_status_of_another_version_of_us_is_still_shown(found):
    assert "penstock" in shown(screens.status(found))


def test_a_status_says_how_far_an_engine_is():
    versions = [{"version": 1, "state": "building", "share": 0.42}, {"version": 2, "state": "ready"}]
    said = shown(screens.status({"models": [{"name": "m", "versions": versions}]}))
    assert "building 42%" in said
    assert "ready %" not in said


def test_nothing_is_followed_for_ever(monkeypatch):
    asked = client.AdminClient("nowhere")
    monkeypatch.setattr(client.AdminClient, "ask", lambda *_: {"pid": 1, "state": "running"})
    monkeypatch.setattr(client, "OPERATION_S_MAX", -1.0)
    with pytest.raises(ServerSaysNo, match="longer than a day"):
        list(asked.follow({"state": "running"}))
    monkeypatch.setattr(client, "DRAIN_S_MAX", -1.0)
    with pytest.raises(ServerSaysNo, match="still there"):
        list(asked.drain())
