"""What becomes of models without anybody's word: at the start, by an earlier word, by the repository, by use."""

from __future__ import annotations

import shutil

import pytest

from tests.support.commanded import OTHER_COUNT, Askers, commanded, other, rewrite
from tests.support.gateways import CLASS_COUNT, assert_problem, digest, pixels, png, wait_until, write_model

pytestmark = pytest.mark.slow


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


# -- the first start -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", ["refuse", "crash"])
def test_a_model_that_cannot_be_loaded_at_the_start_leaves_the_others_serving(root, state, load):
    write_model(root, "good")
    write_model(root, "bad", fake={"load": load})
    with commanded(root, state, ready=False) as running:
        wait_until(lambda: running.predict(png(1), "good").status == 200, "good serves")
        wait_until(lambda: running.version("bad")["state"] == "failed", "bad is known to have failed")
        assert running.ask("GET", "/readyz").status == 503
        assert_problem(running.predict(png(1), "bad"), 503, "model_not_ready")
        rewrite(root, "bad")
        running.done("load", "bad")
        assert running.predict(png(1), "bad").status == 200
        running.wait_ready()


def test_where_the_latest_version_cannot_be_loaded_the_one_before_serves(root, state):
    write_model(root, version=1)
    write_model(root, version=2, fake={"load": "refuse"})
    with commanded(root, state) as running:
        assert running.predict(png(1)).document["version"] == 1
        assert running.version(version=2)["state"] == "failed"


def test_a_version_that_was_copied_half_way_is_no_reason_not_to_start_again(root, state):
    write_model(root, version=1)
    (write_model(root, version=2) / "model.toml").write_text("half a fi")
    with commanded(root, state) as running:
        assert running.predict(png(1)).document["version"] == 1
        assert running.events("version_unreadable", model="m/2")
        assert "model.toml" in running.version(version=2)["error"]


def test_models_are_where_their_contracts_say(root, state):
    write_model(root, "here", residency={"devices": ["cpu"]})
    write_model(root, "there", residency={"devices": ["cuda:0"]})
    write_model(root, "both")
    with commanded(root, state, devices="cpu,cuda:0") as running:  # a fake model runs anywhere
        placed = {worker["device"]: worker["models"] for worker in running.tell("workers")}
        assert placed == {"cpu": ["both/1", "here/1"], "cuda:0": ["both/1", "there/1"]}
        running.done("unload", "there")
        placed = {worker["device"]: worker["models"] for worker in running.tell("workers")}
        assert placed == {"cpu": ["both/1", "here/1"], "cuda:0": ["both/1"]}
        write_model(root, "nowhere", residency={"devices": ["cuda:7"]})
        ended = running.done("load", "nowhere", state="failed")
        assert "cuda:7" in ended["error"]["detail"]


# -- desired state -------------------------------------------------------------------------------------------------


def test_an_operators_word_outlives_the_gateway(root, state):
    for name in ("a", "b"):
        write_model(root, name, 1)
        write_model(root, name, 2)
    with commanded(root, state) as running:
        running.done("unload", "b")
        running.done("configure", "a", {"versions": [1], "aliases": {"stable": 1}})
        running.done("reload", "a")
    with commanded(root, state) as running:
        assert running.predict(png(1), "a").document["version"] == 1
        assert running.predict(png(1), "a/stable").document["version"] == 1
        assert_problem(running.predict(png(1), "b"), 404, "unknown_model")
        running.done("load", "b")
        assert running.predict(png(1), "b").document["version"] == 2
    with commanded(root, state) as running:
        assert running.predict(png(1), "b").document["version"] == 2


def test_what_failed_is_not_kept(root, state):
    write_model(root, version=1)
    with commanded(root, state) as running:
        write_model(root, version=2, fake={"load": "refuse"})
        running.done("load", "m", [2], state="failed")
        assert running.tell("model", "m")["want"]["versions"] is None
        assert not list(state.glob("*")) if state.exists() else True


def test_a_state_that_cannot_be_kept_is_told_and_no_reason_not_to_serve(root, state):
    write_model(root)
    with commanded(root, state) as running:
        state.write_text("a file where a folder should be")
        ended = running.done("configure", "m", {"aliases": {"stable": 1}})
        assert "lost when the gateway restarts" in ended["result"]["not_kept"]
        assert running.predict(png(1), "m/stable").status == 200


def test_a_state_that_nobody_can_read_is_no_start(root, state):
    write_model(root)
    state.write_text("a file where a folder should be")
    with pytest.raises(AssertionError, match="set state_dir"), commanded(root, state):
        pass


# -- the watcher ---------------------------------------------------------------------------------------------------


def test_the_watcher_follows_the_repository(root, state):
    write_model(root, "a", 1)
    with commanded(root, state, watch=True, watch_interval_s=0.05) as running, Askers(running, 2, "a") as askers:
        # A new version, by rename.
        write_model(root.parent / "aside", "a", 2, **other())
        (root.parent / "aside" / "a" / "2").rename(root / "a" / "2")
        wait_until(lambda: running.predict(png(1), "a").document["version"] == 2, "the new version is the default")
        # A new model, copied slowly and in place: nothing is seen until it is whole.
        folder = root / "b" / "1"
        folder.mkdir(parents=True)
        whole = (root / "a" / "1" / "model.toml").read_text()
        (folder / "model.toml").write_text(whole[: len(whole) // 2])
        wait_until(lambda: running.events("version_unreadable"), "somebody looked at half a file")
        assert_problem(running.predict(png(1), "b"), 404, "unknown_model")
        (folder / "model.toml").write_text(whole)
        wait_until(lambda: running.predict(png(1), "b").status == 200, "b is there")
        # Changed in place.
        rewrite(root, "b", **other())
        wait_until(lambda: running.predict(png(1), "b").top == digest(pixels(1), OTHER_COUNT), "b has another form")
        # A broken one, and one whose only version vanishes, change nothing.
        write_model(root, "a", 3, fake={"load": "refuse"})
        running.wait_event("model_failed", model="a/3")
        assert running.predict(png(1), "a").document["version"] == 2
        # Gone.
        shutil.rmtree(root / "b")
        wait_until(lambda: running.predict(png(1), "b").status == 404, "b is gone")
    askers.assert_all_ok(CLASS_COUNT, OTHER_COUNT)


def test_who_watches_starts_with_an_empty_or_a_broken_repository(root, state):
    (root / "a" / "1").mkdir(parents=True)
    with commanded(root, state, watch=True, watch_interval_s=0.05) as running:
        assert_problem(running.predict(png(1), "a"), 404, "unknown_model")
        rewrite(root, "a")
        wait_until(lambda: running.predict(png(1), "a").status == 200, "a is there")


def test_without_a_watcher_an_operator_asks_for_the_look(root, state):
    write_model(root, "a")
    with commanded(root, state) as running:
        write_model(root, "b")
        write_model(root, "c", fake={"load": "crash"})
        shutil.rmtree(root / "a")
        ended = running.done("evaluate", state="failed")
        assert "c/1" in ended["error"]["detail"]
        assert running.predict(png(1), "b").status == 200, "what can be done is done"
        assert running.predict(png(1), "a").status == 404
        assert running.predict(png(1), "c").status == 503
        running.done("evaluate")


# -- lazy, idle, memory --------------------------------------------------------------------------------------------

MIB = 1 << 20


def lazy(size=0, idle_s=0.0):
    return {"residency": {"lazy": True, "idle_s": idle_s}, "fake": {"memory_size": size}}


def test_a_lazy_model_is_loaded_by_its_first_request_and_leaves_when_idle(root, state):
    write_model(root, "a")
    write_model(root, "z", **lazy(idle_s=0.5))
    with commanded(root, state) as running:
        assert running.version("z")["state"] == "unloaded"
        begun = [running.begin(png(seed), "z") for seed in range(4)]
        for seed, connection in enumerate(begun):
            with connection:
                assert connection.read_answer().top == digest(pixels(seed))
        assert len(running.events("operation_begun", kind="wake")) == 1, "one load for all of them"
        wait_until(lambda: running.version("z")["state"] == "unloaded", "it is idle, and goes")
        assert running.predict(png(5), "z").top == digest(pixels(5))


def test_a_lazy_model_that_cannot_be_loaded_is_refused_and_not_tried_for_each_request(root, state):
    write_model(root, "a")
    write_model(root, "z", residency={"lazy": True}, fake={"load": "refuse"})
    with commanded(root, state) as running:
        for _ in range(5):
            assert_problem(running.predict(png(1), "z"), 503, "model_not_ready", retry=True)
        assert len(running.events("operation_begun", kind="wake")) == 1
        assert running.predict(png(1), "a").status == 200


def test_a_deadline_bounds_the_wait_for_a_lazy_model(root, state):
    write_model(root, "a")
    write_model(root, "z", residency={"lazy": True}, fake={"load_ms": 2000.0})
    with commanded(root, state) as running:
        assert_problem(running.predict(png(1), "z", "?deadline_ms=200"), 503, "model_not_ready", retry=True)
        assert running.predict(png(1), "z").top == digest(pixels(1))


def test_over_the_budget_the_least_recently_used_make_room(root, state):
    write_model(root, "pinned", fake={"memory_size": 20 * MIB})
    for name in ("x", "y", "z"):
        write_model(root, name, **lazy(60 * MIB))

    def up():
        return [name for name in ("pinned", "x", "y", "z") if running.version(name)["state"] == "ready"]

    with commanded(root, state, overlap="never", device_memory_size_max=200 * MIB) as running:
        for name in ("x", "y"):
            assert running.predict(png(1), name).status == 200
        assert up() == ["pinned", "x", "y"]
        # Nobody knows what z needs before it was loaded; then it turns out to be too much.
        assert running.predict(png(1), "z").status == 200
        running.wait_event("operation_ended", kind="evict")
        assert up() == ["pinned", "y", "z"], "x was used longest ago"
        assert 60 * MIB <= running.version("z")["memory_size"] <= 70 * MIB
        # Of x it is known, so that somebody goes first.
        assert running.predict(png(2), "x").top == digest(pixels(2))
        wait_until(lambda: up() == ["pinned", "x", "z"], "y was used longer ago than z")
        assert running.events("model_evicted", model="y/1")
        assert running.metric("penstock_worker_memory_bytes", "0") <= 200 * MIB


def test_a_model_whose_need_is_known_not_to_fit_is_refused_before_anything_is_started(root, state):
    write_model(root, "a", fake={"memory_size": 80 * MIB})
    write_model(root, "b", fake={"memory_size": 80 * MIB})
    with commanded(root, state, device_memory_size_max=150 * MIB, overlap="never") as running:
        # Both were loaded at the start, when nobody knew: a budget is kept from then on.
        running.done("unload", "b")
        started = len(running.events("child_started", role="worker"))
        ended = running.done("load", "b", state="failed")
        assert ended["error"]["code"] == "insufficient_memory"
        assert "device_memory_size_max" in ended["error"]["detail"]
        assert len(running.events("child_started", role="worker")) == started
        assert running.predict(png(1), "a").status == 200


def test_without_room_for_two_the_successor_comes_after_the_old_worker(root, state):
    write_model(root, "a", fake={"memory_size": 80 * MIB})
    with commanded(root, state, device_memory_size_max=150 * MIB) as running, Askers(running, 2, "a") as askers:
        askers.wait_more()
        running.done("reload", "a")
        askers.wait_more()
        lives = [(event["event"], event["pid"]) for event in running.events() if event.get("role") == "worker"]
        (first, second) = dict.fromkeys(pid for _, pid in lives)
        assert lives.index(("child_ended", first)) < lives.index(("child_started", second))
    askers.assert_all_ok(CLASS_COUNT)
