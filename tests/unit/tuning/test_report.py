"""What is printed at each point of a run: nothing is needed that is not known yet."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from gateway import config
from gateway.models.repository import read_version
from gateway.tuning import plot, report
from gateway.tuning.choice import choose
from gateway.tuning.decode import DecodeRate, Skipped
from gateway.tuning.findings import Findings, Goal
from gateway.tuning.search import Probe
from shm.wire import ProfilePoint
from tests.support.gateways import write_model

PROBES = [
    Probe(100.0, 400, 10.0, 20.0, 0.0),
    Probe(200.0, 800, 30.0, 60.0, 0.0),
    Probe(400.0, 1600, math.nan, math.nan, 1.0),
    Probe(150.0, 1200, 15.0, 45.0, 0.005, confirms=True),
]


@pytest.fixture
def goal(tmp_path):
    model = read_version(write_model(tmp_path, "flowers"))
    return Goal(model, "", config.load(None, {}, {"decoders": 2}), 50.0, 180.0, tmp_path)


@pytest.fixture
def findings():
    found = Findings()
    found.note(ProfilePoint(size, (3 + size) * 1_000_000, (4 + size) * 1_000_000) for size in (1, 2, 4, 8))
    found.choice = choose(list(found.points.values()), budget_ms=45.0, worker_count=1)
    found.decode = DecodeRate(1.0, 2.0, 400.0, 2)
    found.photo_count = 3
    return found


def shown(renderable) -> str:
    out = io.StringIO()
    Console(file=out, width=200, highlight=False).print(renderable)
    return out.getvalue()


def test_a_run_that_learnt_nothing_has_nothing_to_say(goal):
    assert shown(report.report(goal, Findings())).strip() == ""


def test_a_run_that_was_stopped_early_says_what_it_knows(goal):
    found = Findings()
    found.note([ProfilePoint(1, 4_000_000, 5_000_000)])
    said = shown(report.report(goal, found))
    assert "4.00" in said
    assert "250" in said
    assert "offered" not in said


def test_sizes_are_marked_and_the_best_one_by_name(goal, findings):
    rows = {line.split()[1]: line for line in shown(report.report(goal, findings)).splitlines() if line[:1] == "│"}
    assert "best" in rows["8"]
    assert "yes" in rows["1"]


def test_decoding_that_is_slower_than_the_model_is_told_with_what_it_would_take(goal, findings, monkeypatch):
    monkeypatch.setattr(report.config, "cores", lambda: 3)
    said = shown(report.report(goal, findings))
    assert "1 worker in batches of 8: 727 images/s; decoding is the limit: it would take 4 decoders" in said
    assert "more than the 3 cores here" in said
    findings.decode = DecodeRate(1.0, 2.0, 900.0, 2)
    assert "the model is the limit, not decoding" in shown(report.report(goal, findings))


def test_a_deadline_without_room_for_a_batch_is_told(goal, findings):
    findings.choice = choose(list(findings.points.values()), budget_ms=1.0, worker_count=1)
    assert "50 ms leave no room" in shown(report.report(goal, findings))


def test_files_that_are_not_sent_are_named_up_to_a_bound(goal, findings):
    findings.skipped = [Skipped(f"{number}.txt", "not an image [red]") for number in range(7)]
    said = shown(report.report(goal, findings))
    assert "4.txt is not sent: not an image [red]" in said
    assert "5.txt" not in said
    assert "and 2 more" in said


def test_every_probe_has_its_row_and_its_verdict(goal, findings):
    findings.probes = PROBES
    said = shown(report.report(goal, findings))
    for verdict in ("meets", "late", "refuses", "confirmed"):
        assert verdict in said
    assert "p99 within 50 ms, at most 1% refused" in said
    assert "100.0%" in said


def test_the_result_is_the_confirmed_rate(goal, findings):
    findings.probes, findings.rate = PROBES, 150.0
    assert "150 images/s with p99 45.0 ms of 50 and 0.5% refused" in shown(report.result(goal, findings))


def test_without_a_confirmation_the_result_says_so_and_what_did_once(goal, findings):
    findings.probes = PROBES[:3]
    said = shown(report.result(goal, findings))
    assert "no rate was confirmed" in said
    assert "100 images/s did once" in said
    findings.probes = PROBES[1:3]
    assert "did once" not in shown(report.result(goal, findings))


def test_the_plot_has_a_mark_for_each_rate_and_the_deadline_across(goal):
    drawn = plot.drawn(PROBES, 50.0).plain
    lines = drawn.splitlines()
    assert drawn.count("●") == 2
    assert drawn.count("x") == 2
    (deadline,) = [line for line in lines if "50 ┤" in line]
    assert deadline.count("─") >= plot.WIDTH - 1
    above = lines[: lines.index(deadline)]
    assert any("x" in line for line in above), "the late one"
    assert above[1].rstrip().endswith("x"), "nothing was answered: at the top, at the right"
    assert "400 images/s" in lines[-1]


def test_a_plot_of_nothing_is_empty():
    assert "●" not in plot.drawn([], 50.0).plain


@pytest.mark.slow
def test_the_plot_as_a_file(tmp_path):
    plot.save_png(tmp_path / "p.png", "m/1", PROBES, 50.0)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(plot.InvalidSettings, match="cannot be written"):
        plot.save_png(tmp_path / "no" / "p.png", "m/1", PROBES, 50.0)
