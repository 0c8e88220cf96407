"""bench/peers.py: its arithmetic by hand, and its rig with our own gateway as its own peer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import uvloop

from bench import peers, rig
from bench.peers_lab import account, catalogue, installing, loop, measuring, report, serving, trees
from bench.peers_lab.account import Pair, Reading, Row
from bench.peers_lab.catalogue import BY_NAME, OURS, PEERS

ROW, OTHER = Row("null", 1, "224x224", 1), Row("null", 1, "224x224", 32)


def reading(cpu_us=100.0, rate=1000.0, pss=50.0):
    return Reading(rate, 1.0, 2.0, cpu_us, pss)


def pair(row=ROW, peer="a", ours=None, theirs=None):
    return Pair(row, peer, ours or reading(), theirs or reading())


# The account


def test_margins_are_medians_of_pairs_so_a_slow_minute_of_both_changes_nothing():
    quiet = pair(ours=reading(100, 1000), theirs=reading(150, 500))
    slow = pair(ours=reading(1000, 100), theirs=reading(1500, 50))

    (one,) = account.standings([quiet, slow, quiet])

    assert (one.cpu_margin, one.rate_margin) == (1.5, 2.0)
    assert one.ours == reading(100, 1000)


def test_a_row_is_won_only_against_every_peer_and_a_tie_is_lost():
    better, worse, same = reading(200, 500), reading(50, 2000), reading()
    found = account.standings(
        [
            *(pair(ROW, "a", theirs=better), pair(ROW, "b", theirs=better)),
            *(pair(OTHER, "a", theirs=better), pair(OTHER, "b", theirs=worse)),
            pair(Row("null", 2, "224x224", 1), "a", theirs=same),
        ]
    )

    figures = account.figures(found, "null")

    assert figures["peer_rows"] == 3
    assert figures["peer_rows_cpu_won"] == figures["peer_rows_rate_won"] == 1
    assert figures["cpu_margin_min"] == 0.5


def test_memory_stands_against_the_median_of_the_peers():
    theirs = {"a": 10.0, "b": 100.0, "c": 1000.0}
    found = account.standings([pair(peer=name, theirs=reading(pss=size)) for name, size in theirs.items()])

    assert account.figures(found, "null")["peer_memory_over_median"] == 0.5


def test_a_model_without_rows_has_no_figures():
    assert account.figures(account.standings([pair()]), "efficientnet_lite0") == {}


def test_cpu_time_of_a_process_that_came_in_between_counts_whole():
    before, after = {1: 100, 2: 50}, {1: 160, 3: 7}

    assert trees.spent_ns(before, after) == 67


def test_the_generator_gets_the_cores_that_are_left_over():
    assert measuring.placed([4, 0, 1], 1) == ([0], [1, 4])
    assert measuring.placed([0, 1], 2) == ([0, 1], [0, 1])


# The catalogue


def test_every_peer_has_its_file_and_floors():
    for peer in PEERS:
        assert (catalogue.FOLDER / peer.script).is_file(), peer.name
        assert all(">=" in line for line in peer.requirements), peer.name


def test_triton_gets_the_photo_as_one_binary_element_and_its_answer_is_found_behind_the_header():
    ask = BY_NAME["triton"].ask("null", b"photo")
    head = int(dict(ask.headers)["Inference-Header-Content-Length"])

    assert ask.body[head:] == b"\x05\0\0\0photo"
    assert ask.body[:head].endswith(b"}")
    assert catalogue.top_of_triton(b'{"outputs":[]}\x2e\0\0\0{"prediction":[{"index":7}]}') == 7


@pytest.mark.slow
def test_what_cannot_be_installed_is_named_with_its_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(catalogue, "VENVS", tmp_path)
    nobody = OURS._replace(name="nobody", script="serve_nobody.py", requirements=("penstock-nobody>=1",))

    reason = installing.install(nobody)

    assert "penstock-nobody" in reason
    assert not installing.is_installed(nobody)


# The rig

SCRIPTS = {
    "dies": ("raise SystemExit('no such model')", "it ended with 1: no such model"),
    "differs": (
        """
import http.server, os
class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        reply = b'{"prediction": [{"index": 3}]}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)
http.server.HTTPServer(("127.0.0.1", int(os.environ["PEER_PORT"])), Answer).serve_forever()
""",
        "its best class is 3, ours is 0: not the same work",
    ),
}


@pytest.fixture
def plan():
    return measuring.Plan(
        models=["null"],
        cores=[1],
        photos={"64x48": rig.jpeg(64, 48)},
        connections=[1, 4],
        rounds=1,
        seconds=0.3,
        warmup_s=0.05,
    )


@pytest.mark.slow
def test_against_itself_every_row_is_read_and_the_figures_are_near_one(plan, tmp_path):
    itself = OURS._replace(name="itself")
    kept = []

    found = measuring.take([itself], plan, lambda _: None, kept.append)
    standings = account.standings(found.pairs)

    assert found.left_out == []
    assert kept == [found]
    assert [(one.row.connections, one.peer) for one in standings] == [(1, "itself"), (4, "itself")]
    # Three processes of Python with NumPy: a tree of which one were overlooked would be far below.
    assert all(30 < side.pss_mib < 1000 for one in standings for side in (one.ours, one.theirs))
    assert all(20 < side.cpu_us < 1e6 and side.rate > 1 for one in standings for side in (one.ours, one.theirs))
    assert account.figures(standings, "null")["peer_rows"] == 2
    assert report.table(standings).row_count == 2
    assert report.document(found, standings, {})["rows"][0]["theirs"]["rate"] == standings[0].theirs.rate
    (picture,) = report.draw(standings, tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_peer_that_fails_is_left_out_with_its_reason_and_the_rest_goes_on(name, plan, tmp_path):
    source, reason = SCRIPTS[name]
    script = tmp_path / "serve.py"
    script.write_text(source)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    failing = _at(tmp_path, script)

    found = measuring.take(
        [failing, OURS._replace(name="itself")], plan._replace(connections=[1]), lambda _: None, lambda _: None
    )

    assert [(one.peer, one.reason) for one in found.left_out] == [("failing", reason)]
    assert [one.peer for one in found.pairs] == ["itself"]


def _at(folder, script):
    class Elsewhere(catalogue.Peer):
        @property
        def venv(self):
            return folder

    return Elsewhere("failing", (), str(script), BY_NAME["fastapi"].ask, catalogue.top_of_json, "")


@pytest.mark.slow
def test_nothing_of_a_server_is_left_when_its_block_ends(plan):
    (photo,) = plan.photos.values()
    with (
        measuring.workloads(["null"], plain=False) as made,
        serving.served(OURS, made["null"], [min(os.sched_getaffinity(0))], photo, 0) as server,
    ):
        alive = trees.marked(server.mark)
        request = loop.message(OURS.ask("null", photo), server.port)
        result = uvloop.run(loop.closed(server.port, request, 2, 0.1))

    assert len(alive) >= 3
    assert set(result.statuses) == {200}
    assert trees.marked(server.mark) == []


def test_without_a_peer_it_says_how_to_install_one_and_ends_with_three(monkeypatch, capsys):
    monkeypatch.setattr(installing, "is_installed", lambda _: False)
    monkeypatch.setattr(sys, "argv", ["peers.py", "--peers", "mosec"])

    assert peers.main() == peers.NOTHING_THERE
    assert "--install all" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_refuses_an_unknown_peer_in_words():
    done = subprocess.run(
        [sys.executable, str(rig.ROOT / "bench" / "peers.py"), "--install", "torchserve"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "invalid choice: 'torchserve'" in done.stderr
