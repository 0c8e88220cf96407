"""Engines that take long to build: a state that people see, with a clock of its own; nobody is kept waiting."""

from __future__ import annotations

import socket

import pytest

from tests.support.commanded import OTHER_COUNT, Askers, commanded, other, rewrite
from tests.support.gateways import (
    CLASS_COUNT,
    assert_problem,
    digest,
    gateway,
    pixels,
    png,
    runtime_folder,
    successor,
    wait_until,
    write_model,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


def version_of(running, name="m"):
    """The only version of a model, as the public front shows it."""
    (found,) = running.ask("GET", f"/models/{name}").document["versions"]
    return found


def building_of(running, name="m"):
    """The same, once its engine is being built."""
    return wait_until(
        lambda: found if (found := version_of(running, name))["state"] == "building" else None, "it is built"
    )


def test_a_start_may_take_longer_than_a_child_has_while_engines_are_built(root, tmp_path):
    write_model(root, fake={"build_ms": 7000.0})
    with runtime_folder() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify"))
        manager.settimeout(30)
        environ = {"NOTIFY_SOCKET": str(folder / "notify")}
        with gateway(root, ready=False, environ=environ, child_start_timeout_s=5.0) as running:
            shown = building_of(running)
            assert 0 <= shown["share"] < 1
            assert "engine" in shown["detail"]
            wait_until(lambda: version_of(running)["share"] > shown["share"], "it comes on")
            not_ready = running.ask("GET", "/readyz")
            assert not_ready.status == 503
            assert not_ready.document["models"][0]["state"] == "building"
            assert running.ask("GET", "/models").document["models"][0]["versions"][0]["state"] == "building"
            assert running.metric("penstock_child_state", "0", "worker", "building") == 1
            assert_problem(running.predict(png(1)), 503, "model_not_ready", retry=True)
            # The service manager is told that this start takes longer than others.
            assert manager.recv(100) == b"EXTEND_TIMEOUT_USEC=20000000"
            assert manager.recv(100) == b"READY=1"
            running.wait_ready()
            assert running.predict(png(1)).top == digest(pixels(1))
            assert not running.events("child_killed")
            shares = [event["share"] for event in running.events("engine_building", model="m")]
            assert shares[0] < 0.25
            assert shares == sorted(shares)
            assert len(shares) == 4


def test_an_old_version_answers_while_the_engine_of_a_new_one_is_built(root, state):
    write_model(root, "a")
    with commanded(root, state) as running:
        rewrite(root, "a", **other(build_ms=1500.0))
        with Askers(running, model="a") as askers:
            askers.wait_more()
            begun = running.tell("reload", "a")
            wait_until(lambda: running.version("a")["state"] == "building", "the operators see it")
            assert running.version("a")["reloading"]
            assert "building" in {worker["state"] for worker in running.tell("workers")}
            assert running.tell("operation", begun["id"])["stage"] == "building a/1"
            before = len(askers.answers)
            assert running.tell("wait", begun["id"])["state"] == "succeeded"
            askers.wait_more()
        assert len(askers.answers) > before
        askers.assert_all_ok(CLASS_COUNT, OTHER_COUNT)
        assert running.predict(png(1), "a").top == digest(pixels(1), OTHER_COUNT)


def test_an_engine_that_takes_too_long_is_given_up(root, state):
    write_model(root, "a")
    with commanded(root, state, engine_build_timeout_s=0.5) as running:
        write_model(root, "b", fake={"build_ms": 60_000.0})
        ended = running.done("load", "b", state="failed")
        assert "b/1" in ended["error"]["detail"]
        assert "engine_build_timeout_s" in ended["error"]["detail"]
        assert running.predict(png(1), "a").status == 200
        assert len(running.children("worker")) == 1


def test_a_successor_builds_while_its_predecessor_serves(root):
    write_model(root)
    with gateway(root) as before:
        rewrite(root, **other(build_ms=800.0))
        with successor(before, root, engine_build_timeout_s=600.0, child_start_timeout_s=30.0) as after:
            assert before.wait_event("handover_begun")["timeout_s"] == 30 + 15 + 600
            assert after.events("engine_building")
            assert after.predict(png(1)).top == digest(pixels(1), OTHER_COUNT)


def test_sizes_that_do_not_fit_when_they_are_warmed_are_given_up(root, state):
    write_model(root, "a", batching={"sizes": [1, 2, 4, 8]}, fake={"warmup_images": 2})
    with commanded(root, state) as running:
        (worker,) = version_of(running, "a")["workers"]
        assert [point["size"] for point in worker["profile"]] == [1, 2]
        assert worker["sizes_given_up"] == [4, 8]
        (given_up,) = running.events("sizes_given_up", logger="penstock.children")
        assert (given_up["model"], given_up["sizes"]) == ("a", [4, 8])
        with Askers(running, count=8, model="a") as askers:
            askers.wait_more()
            # The next worker there is told what was measured, and measures no more than that.
            running.done("restart", running.tell("workers")[0]["index"])
            askers.wait_more()
        askers.assert_all_ok(CLASS_COUNT)
        assert version_of(running, "a")["workers"][0]["sizes_given_up"] == [4, 8]


def test_a_model_of_which_not_even_the_smallest_size_fits_is_refused(root, state):
    write_model(root, "a")
    with commanded(root, state) as running:
        write_model(root, "b", batching={"sizes": [2, 4]}, fake={"warmup_images": 1})
        ended = running.done("load", "b", state="failed")
        assert "not enough memory" in ended["error"]["detail"]
        assert running.predict(png(1), "a").status == 200
