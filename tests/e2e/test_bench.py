"""`penstock bench` as its user types it: against our own gateway, and against servers that are slow, fail and lie."""

from __future__ import annotations

import html.parser
import json
import os
import signal
import subprocess
import sys

import msgpack
import pytest
from typer.testing import CliRunner

from gateway.cli import app
from tests.support.gateways import ROOT, encode, gateway, pixels, wait_until, write_model
from tests.support.strangers import CAT, answer, stranger

pytestmark = pytest.mark.slow

BRIEF = ("--warmup", "0", "--seconds", "0.4")


def bench(*arguments, status=0):
    """(the JSON report, what a person reads) of one run in this process; `status` None: 0 or 1."""
    done = CliRunner().invoke(app, ["bench", *map(str, arguments), "--json", "-"], env={"COLUMNS": "160"})
    assert done.exit_code in ((0, 1) if status is None else (status,)), (done.stderr, done.exception)
    return json.loads(done.stdout) if done.stdout else None, done.stderr


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_model(root, "m")
    with gateway(root) as found:
        yield found


# -- our own server ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["raw", "json", "msgpack", "multipart", "tensor"])
def test_every_form_is_understood(running, tmp_path, form):
    (tmp_path / "one.png").write_bytes(encode(pixels(1)))
    count = () if form == "raw" else ("--images-per-request", 3)
    found, _ = bench(running.url, *BRIEF, "--form", form, "--images", tmp_path, *count, "--connections", 2)

    assert set(found["statuses"]) == {"200"}
    assert (found["model"], found["failed_count"]) == ("m/1", 0)
    images = found["good_count"] * (3 if count else 1)
    assert found["inside"]["images"] == {"ok": images}, "what the server counted is what was sent"
    batches = {seal: sum(sizes.values()) for seal, sizes in found["inside"]["batches"].items()}
    assert sum(batches.values()) * found["inside"]["batch_images_mean"] == pytest.approx(images)
    assert {"decode", "infer", "batch_queue"} <= set(found["inside"]["stages_ms"])


def test_its_processes_are_found_by_their_port(running):
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "bench", running.url, *BRIEF, "--json", "-"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    found, said = json.loads(done.stdout), done.stderr
    roles = {process["role"] for process in found["processes"]}
    assert roles == {"gateway", "decoder", "worker"}
    assert running.pid in {process["pid"] for process in found["processes"]}
    assert sum(process["cpu_us_per_request"] for process in found["processes"]) > 0
    assert "CPU µs a request" in said


def test_what_the_server_refuses_is_counted_and_shown(running):
    found, said = bench(f"{running.url}/predictions/m?deadline_ms=0.000001", *BRIEF, status=1)
    assert (found["good_count"], found["latency_ms"]["p50"]) == (0, None)
    assert found["failed_count"] == found["count"] > 0
    status = next(iter(found["failures"]))
    assert f"{status}: {{" in said


def test_open_loops_keep_their_schedule(running):
    for load, more in (("poisson", ()), ("bursts", ("--burst-size", 5))):
        found, _ = bench(running.url, *BRIEF, "--load", load, "--rate", 100, "--seed", 3, *more)
        again, _ = bench(running.url, *BRIEF, "--load", load, "--rate", 100, "--seed", 3, *more)
        assert found["count"] == again["count"] > 10, "a seed draws the same arrivals"
        assert found["load"]["rate"] == 100


def test_a_recorded_run_is_replayed(running, tmp_path):
    recorded = tmp_path / "trace.txt"
    found, _ = bench(running.url, *BRIEF, "--load", "poisson", "--rate", 60, "--record", recorded)
    again, _ = bench(running.url, "--warmup", 0, "--load", "trace", "--trace", recorded, "--speed", 4)
    assert again["count"] == found["count"] > 5
    assert again["failed_count"] == 0


def test_a_trace_takes_the_image_of_the_nearest_size(running, tmp_path):
    small, large = encode(pixels(1)), encode(pixels(1, side=64))
    (tmp_path / "small.png").write_bytes(small)
    (tmp_path / "large.png").write_bytes(large)
    (tmp_path / "t").write_text(f"5.0 {len(large)}\n5.01 {len(small) + 3}\n5.02 9999999\n")
    images = ("--images", tmp_path / "small.png", "--images", tmp_path / "large.png")
    with stranger(lambda _: CAT) as server:
        bench(f"{server.url}/p", "--warmup", 0, "--load", "trace", "--trace", tmp_path / "t", *images)
        assert [request.body for request in server.seen] == [large, small, large]


@pytest.mark.parametrize("load", ["single-stream", "multi-stream", "offline"])
def test_a_scenario_says_which_rules_it_kept(running, load):
    found, said = bench(running.url, *BRIEF, "--load", load)
    verdict = found["mlperf"]
    assert (verdict["scenario"], verdict["valid"]) == (load, False)
    rules = {rule["name"]: rule["kept"] for rule in verdict["rules"]}
    assert (rules["duration"], rules["every query answered"]) == (False, True)
    assert found["request"]["images"] == (8 if load == "multi-stream" else 1)
    assert "NOT valid" in said
    assert rules.get("samples in a query", True)


def test_a_search_says_the_rate_that_was_confirmed_and_no_other(running):
    found, said = bench(
        running.url, *BRIEF, "--load", "poisson", "--search", "--bound-ms", 5000, "--percentile", 90, status=None
    )
    search = found["search"]
    last = search["probes"][-1]
    assert any(probe["met"] for probe in search["probes"])
    # The report is of the last run. What the machine sustains just now is its own business.
    assert (found["count"], found["load"]["rate"]) == (last["due_count"], last["rate"])
    assert search["rate"] == (last["rate"] if last["met"] and last["confirms"] else None)
    assert "p90 within 5000 ms" in said
    assert ("no rate was found" in said) == (search["rate"] is None)


def test_a_model_is_chosen_by_name(tmp_path):
    for name in ("cats", "dogs"):
        write_model(tmp_path, name)
    with gateway(tmp_path) as several:
        assert "serves cats, dogs; choose one with --model" in bench(several.url, *BRIEF, status=2)[1]
        assert "has no model birds; it serves cats, dogs" in bench(several.url, "--model", "birds", status=2)[1]
        assert "has no version 7 of dogs" in bench(several.url, "--model", "dogs/7", status=2)[1]
        assert "--model goes with the address" in bench(several.url + "/x", "--model", "dogs", status=2)[1]
        found, _ = bench(several.url, *BRIEF, "--model", "dogs")
        assert found["url"] == several.url + "/predictions/dogs"
        assert found["inside"]["images"] == {"ok": found["good_count"]}


def test_ctrl_c_ends_it_with_a_word(running):
    command = [sys.executable, "-m", "gateway", "bench", running.url, "--warmup", "0", "--seconds", "60"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        before = running.metric("penstock_requests_total", "ok", "m/1")
        wait_until(lambda: running.metric("penstock_requests_total", "ok", "m/1") > before, "it sends")
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert (process.returncode, said) == (130, "penstock: interrupted; nothing is reported\n")


# -- any other server ----------------------------------------------------------------------------------------------


def test_a_stranger_gets_what_it_is_sent(tmp_path):
    (tmp_path / "body").write_bytes(b"instances")
    with stranger(lambda _: CAT) as server:
        found, _ = bench(
            f"{server.url}/v1/x:predict?q=1", *BRIEF, "--body", tmp_path / "body", "--content-type", "application/x-y",
            "--header", "Authorization: Bearer k", "--expect", "$.labels[0].name=cat", "--expect", "score",
        )  # fmt: skip
        assert {request.line for request in server.seen} == {"POST /v1/x:predict?q=1 HTTP/1.1"}
        assert {request.body for request in server.seen} == {b"instances"}
        assert {request.headers["content-type"] for request in server.seen} == {"application/x-y"}
        assert {request.headers["authorization"] for request in server.seen} == {"Bearer k"}
    assert found["statuses"] == {"200": len(server.seen)}
    assert (found["inside"], found["model"]) == (None, None)


def test_a_stranger_gets_images_in_every_form():
    with stranger(lambda _: CAT) as server:
        bench(server.url + "/p", *BRIEF)
        assert server.seen[0].headers["content-type"] == "image/jpeg"
        bench(server.url + "/p", *BRIEF, "--form", "msgpack", "--images-per-request", 2)
        assert len(msgpack.unpackb(server.seen[-1].body)["images"]) == 2
        bench(server.url + "/p", *BRIEF, "--images-per-request", 2)
        assert server.seen[-1].headers["content-type"].startswith("multipart/form-data; boundary=")
        _, said = bench(server.url + "/p", *BRIEF, "--form", "tensor", status=2)
        assert "--form tensor needs a Penstock server" in said


def test_one_that_lies_is_caught():
    with stranger(lambda number: answer(b'{"label": "dog"}') if number % 2 else answer(b'{"label": "cat"}')) as server:
        found, said = bench(server.url + "/p", *BRIEF, "--connections", 1, "--expect", "$.label=cat")
    assert abs(found["statuses"]["200"] - found["statuses"]["wrong answer"]) <= 1
    assert found["failures"]["wrong answer"] == '{"label": "dog"}'
    assert found["good_count"] == found["statuses"]["200"]
    assert 'wrong answer: {"label": "dog"}' in said


def test_one_that_fails_is_counted_by_how():
    def say(number: int) -> bytes | None:
        return (CAT, answer(b"no", "503 Busy"), None)[number % 3]

    with stranger(say) as server:
        found, _ = bench(server.url + "/p", *BRIEF, "--connections", 1)
    assert set(found["statuses"]) == {"200", "503", "broken"}
    assert found["failures"] == {"503": "no"}
    assert found["failed_count"] + found["good_count"] == found["count"]


def test_one_that_is_slow_is_given_up_and_cannot_hide_it():
    with stranger(lambda _: CAT, delay_s=30) as server:
        found, said = bench(
            server.url + "/p", *BRIEF, "--load", "poisson", "--rate", 50, "--timeout", 0.3, "--connections", 3, status=1
        )
    assert found["statuses"]["timed out"] >= 3
    assert set(found["statuses"]) <= {"timed out", "unsent"}
    assert found["statuses"]["unsent"] > 0
    assert "requests were not sent, for all connections were busy" in said


def test_a_search_that_finds_nothing_says_so():
    with stranger(lambda _: CAT, delay_s=0.05) as server:
        found, said = bench(server.url + "/p", *BRIEF, "--load", "server", "--search", "--bound-ms", 10, status=1)
    assert found["search"]["rate"] is None
    assert "no rate was found with p99 within 10 ms" in said
    assert found["mlperf"]["valid"] is False


def test_one_that_speaks_in_chunks_is_read():
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nc\na\r\n2\r\nt!\r\n0\r\n\r\n"
    with stranger(lambda _: chunked) as server:
        found, _ = bench(server.url + "/p", *BRIEF, "--expect", "c\nat!")
    assert set(found["statuses"]) == {"200"}


def test_one_whose_answers_have_no_end_is_refused():
    with stranger(lambda _: b"HTTP/1.1 200 OK\r\n\r\nhello") as server:
        _, said = bench(server.url + "/p", *BRIEF, status=2)
    assert "without a Content-Length" in said
    assert said.count("\n") == 1


def test_a_stranger_needs_a_path():
    with stranger(lambda _: CAT) as server:
        _, said = bench(server.url, *BRIEF, status=2)
    assert "is no Penstock server; give the whole URL of its endpoint" in said


# -- the page ------------------------------------------------------------------------------------------------------


class Reader(html.parser.HTMLParser):
    """What stands in a page, and whether its elements are closed."""

    VOID = frozenset({"meta", "path", "rect", "circle", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.sources: list[str] = []
        self.words = ""

    def handle_starttag(self, tag, attributes) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.sources += [value for name, value in attributes if name in {"src", "href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, text) -> None:
        self.words += text


def test_the_page_is_whole_and_stands_alone(running, tmp_path):
    page = tmp_path / "report.html"
    evil = 'x</title><script>alert("1")</script>'
    with stranger(lambda number: answer(evil.encode(), "500 No") if number % 2 else CAT) as server:
        bench(server.url + "/p", *BRIEF, "--html", page)
    reader = Reader()
    reader.feed(page.read_text())
    assert (reader.open, reader.sources, reader.counts.get("script")) == ([], [], None)
    assert evil in reader.words, "what a server says is shown, and runs nothing"

    bench(running.url, *BRIEF, "--load", "server", "--rate", 50, "--bound-ms", 1000, "--html", page)
    reader = Reader()
    reader.feed(page.read_text())
    assert reader.open == []
    titles = (
        "Latency percentiles",
        "Rate over time",
        "Batches by size",
        "Where an image's time went",
        "CPU per request",
    )
    assert [title for title in titles if title not in reader.words] == []
    assert reader.counts["svg"] >= len(titles)
    assert "MLPerf scenario server" in reader.words
    assert "nan" not in page.read_text()
