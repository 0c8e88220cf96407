"""Models come, go and are replaced under a real gateway: nobody who asks meanwhile is turned away for it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.support import graphs
from tests.support.commanded import OTHER_COUNT, Askers, commanded, other, rewrite
from tests.support.gateways import CLASS_COUNT, assert_problem, digest, head, pixels, png, wait_until, write_model

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


# -- load and unload -----------------------------------------------------------------------------------------------


def test_a_new_model_is_loaded_and_unloaded_while_another_serves(root, state):
    write_model(root, "a")
    with commanded(root, state) as running:
        write_model(root, "b")
        assert_problem(running.predict(png(1), "b"), 404, "unknown_model")
        with Askers(running, model="a") as askers:
            askers.wait_more()
            ended = running.done("load", "b")
            assert ended["result"]["loaded"] == ["b/1"]
            assert running.predict(png(1), "b").top == digest(pixels(1))
            assert running.version("b")["state"] == "ready"
            ended = running.done("unload", "b")
            askers.wait_more()
        askers.assert_all_ok(CLASS_COUNT)
        assert ended["result"]["unloaded"] == ["b/1"]
        assert ended["result"]["given_back_share"] >= 0.99
        assert ended["result"]["workers"][0]["before"]["memory_size"] > 1 << 20
        assert_problem(running.predict(png(1), "b"), 404, "unknown_model")
        assert running.metric("penstock_unload_given_back_ratio") >= 0.99
        assert running.metric("penstock_worker_memory_bytes", "0") > 1 << 20
        assert running.metric("penstock_operations_total", "load", "succeeded") == 1
        running.wait_idle("a/1")


def test_who_asked_before_an_unload_is_answered(root, state):
    write_model(root, "a")
    write_model(root, "b", batching={"sizes": [1]}, fake={"base_ms": 200.0})
    with commanded(root, state) as running:
        begun = [running.begin(png(seed), "b") for seed in range(6)]
        wait_until(lambda: running.slots("b/1").get("running"), "they run")
        late = running.connect()  # whose body comes when the model is gone
        kind = {"Content-Length": str(len(png(9))), "Content-Type": "image/png"}
        late.send(head("POST", "/predictions/b", kind) + png(9)[:10])
        begun_unload = running.tell("unload", "b")
        wait_until(lambda: running.predict(png(1), "b").status == 404, "b takes nothing new")
        assert running.version("b")["state"] in {"unloading", "unloaded"}
        for seed, connection in enumerate(begun):
            with connection:
                assert connection.read_answer().top == digest(pixels(seed))
        with late:
            late.send(png(9)[10:])
            assert_problem(late.read_answer(), 404, "unknown_model")
        assert running.tell("wait", begun_unload["id"])["state"] == "succeeded"
        assert running.predict(png(1), "a").top == digest(pixels(1))


def test_the_last_model_can_go_and_come_back(root, state):
    write_model(root)
    with commanded(root, state) as running:
        running.done("unload", "m")
        wait_until(lambda: not running.children("worker"), "an empty device has no worker")
        assert_problem(running.predict(png(1)), 404, "unknown_model")
        running.done("load", "m")
        assert running.predict(png(1)).top == digest(pixels(1))


def test_cycles_leave_nothing_behind(root, state):
    write_model(root, "a")
    write_model(root, "b")
    with commanded(root, state, decoders=2) as running:

        def cycle():
            running.done("unload", "b")
            running.done("load", "b")
            assert running.predict(png(1), "b").top == digest(pixels(1))

        def segments(pid):
            """Mapped segments, by their names."""
            return Path(f"/proc/{pid}/maps").read_text().count("memfd:")

        def counts():
            return (
                running.fd_count(),
                [segments(pid) for pid in (running.pid, *sorted(running.children("decoder")))],
                len(running.children("worker")),
            )

        wait_until(lambda: len(running.events("decoder_ready")) == 2, "both decoders are up")
        cycle()
        # The connection that was asked on last may be closed a moment later: the least is what counts.
        before = min(counts() for _ in range(50))
        for _ in range(3):
            cycle()
        with contextlib.suppress(AssertionError):
            wait_until(lambda: counts() == before, "descriptors, mappings and children are as before", 5.0)
        assert counts() == before


def test_versions_and_aliases_at_run_time(root, state):
    write_model(root, version=1)
    write_model(root, version=2, **other())
    with commanded(root, state) as running:
        assert running.predict(png(1)).document["version"] == 2
        running.done("load", "m", [1])
        assert running.predict(png(1), "m/1").document["version"] == 1
        assert running.predict(png(1)).document["version"] == 2
        running.done("configure", "m", {"versions": [1, 2], "default": 1, "aliases": {"next": 2}})
        assert running.predict(png(1)).document["version"] == 1
        assert running.predict(png(1), "m/next").document["version"] == 2
        running.done("unload", "m", 1)
        assert running.predict(png(1)).document["version"] == 2
        assert_problem(running.predict(png(1), "m/1"), 404, "unknown_model")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["load", "nobody"], "unknown_model"),
        (["load", "../x"], "unknown_model"),
        (["load", "m", [7]], "unknown_model"),
        (["unload", "m", 7], "unknown_model"),
        (["reload", "nobody"], "unknown_model"),
        (["model", "nobody"], "unknown_model"),
        (["configure", "m", {"versions": [1], "default": 2}], "bad_request"),
        (["restart", 99], "not_found"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(standing, command, code):
    assert standing.tell(*command)["code"] == code
    assert standing.predict(png(1)).status == 200


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standing")
    write_model(folder / "models")
    with commanded(folder / "models", folder / "state") as running:
        yield running


def test_what_is_not_loaded_cannot_be_reloaded(root, state):
    write_model(root)
    write_model(root, "a")
    with commanded(root, state) as running:
        running.done("unload", "m")
        assert running.done("reload", "m", state="failed")["error"]["code"] == "unknown_model"
        assert running.done("load", "m")["result"]["loaded"] == ["m/1"]


# -- reload --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["auto", "never"])
def test_a_reload_under_load_costs_no_request_and_mixes_nothing(root, state, overlap):
    write_model(root, batching={"sizes": [1, 4]}, fake={"base_ms": 5.0})
    with commanded(root, state, overlap=overlap) as running:
        with Askers(running) as askers:
            askers.wait_more()
            for turn in range(3):
                form = other(base_ms=5.0) if turn % 2 == 0 else {"fake": {"base_ms": 5.0}}
                rewrite(root, batching={"sizes": [1, 4]}, **form)
                ended = running.done("reload", "m")
                assert (ended["result"]["loaded"], ended["result"]["unloaded"]) == (["m/1"], [])
                askers.wait_more()
        seen = askers.assert_all_ok(CLASS_COUNT, OTHER_COUNT)
        assert all(seen.values()), seen
        assert running.predict(png(3)).top == digest(pixels(3), OTHER_COUNT)
        assert len(running.children("worker")) == 1


FAULTS = {
    "no contract": None,
    "refused": {"load": "refuse"},
    "crashes": {"load": "crash"},
    "out of memory": {"load": "no_memory"},
}


@pytest.mark.parametrize("overlap", ["auto", "never"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_reload_that_fails_leaves_the_old_one_serving(root, state, fault, overlap):
    write_model(root)
    with commanded(root, state, overlap=overlap) as running, Askers(running, 2) as askers:
        askers.wait_more()
        folder = rewrite(root, **other(**(FAULTS[fault] or {})))
        if FAULTS[fault] is None:
            (folder / "model.toml").write_text("half a fi")
        ended = running.done("reload", "m", state="failed")
        assert ended["error"]["code"] == "load_failed"
        assert len(ended["error"]["detail"]) > 10
        askers.wait_more()
        assert running.version()["state"] == "ready"
        # The next one, which is whole, goes through.
        rewrite(root, **other())
        running.done("reload", "m")
        wait_until(lambda: running.predict(png(3)).top == digest(pixels(3), OTHER_COUNT), "the new form answers")
    askers.assert_all_ok(CLASS_COUNT, OTHER_COUNT)


def write_graph(folder):
    """A real graph, that answers the means of the channels; two classes more than a fake model, so its own contract."""
    folder.mkdir(parents=True)
    graphs.save(graphs.means(), folder)
    (folder / "model.toml").write_text(
        '[input]\nwidth = 4\nheight = 4\n[output]\ntask = "raw"\n[batching]\nsizes = [1, 2]\n'
    )


def test_a_real_graph_that_is_broken_leaves_the_whole_one_serving(root, state):
    write_model(root, "a")
    write_graph(root / "g" / "1")
    with commanded(root, state) as running:
        before = running.predict(png(1), "g").document["outputs"]
        whole = (root / "g" / "1" / "model.onnx").read_bytes()
        (root / "g" / "1" / "model.onnx").write_bytes(whole[: len(whole) // 2])
        ended = running.done("reload", "g", state="failed")
        assert ended["error"]["code"] == "load_failed"
        assert running.predict(png(1), "g").document["outputs"] == before
        (root / "g" / "1" / "model.onnx").write_bytes(whole)
        running.done("reload", "g")
        assert running.predict(png(1), "g").document["outputs"] == before
        ended = running.done("unload", "g")
        # An engine takes memory that it never gives back by itself.
        assert ended["result"]["workers"][0]["before"]["memory_size"] > 30 << 20
        assert ended["result"]["given_back_share"] >= 0.99


def test_a_load_that_takes_too_long_is_given_up(root, state):
    write_model(root, "a")
    with commanded(root, state, child_start_timeout_s=3.0) as running:
        write_model(root, "b", fake={"load_ms": 60_000.0})
        ended = running.done("load", "b", state="failed")
        assert "b/1" in ended["error"]["detail"]
        assert "child_start_timeout_s" in ended["error"]["detail"]
        assert running.predict(png(1), "a").status == 200
        assert len(running.children("worker")) == 1
        assert running.tell("model", "b")["versions"][0]["state"] == "failed"


def test_progress_is_told(root, state):
    write_model(root, "a")
    with commanded(root, state) as running:
        write_model(root, "b", fake={"load_ms": 700.0})
        begun = running.tell("load", "b")
        assert begun["state"] in {"queued", "running"}
        wait_until(lambda: "versions" in running.tell("model", "b"), "its files were read")
        wait_until(lambda: running.version("b")["state"] == "loading", "it is being loaded")
        assert running.predict(png(1), "b").status in {404, 503}
        assert running.tell("wait", begun["id"])["share"] == 1.0
        assert running.version("b")["memory_size"] > 0


def test_a_worker_can_be_restarted_without_a_request_lost(root, state):
    write_model(root)
    with commanded(root, state) as running:
        (before,) = running.tell("workers")
        assert (before["seat"], before["device"], before["models"]) == (0, "cpu", ["m/1"])
        with Askers(running) as askers:
            askers.wait_more()
            running.done("restart", before["index"])
            askers.wait_more()
        askers.assert_all_ok(CLASS_COUNT)
        (after,) = running.tell("workers")
        assert after["index"] > before["index"]
        assert after["pid"] != before["pid"]
