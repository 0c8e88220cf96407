"""Changes over the real core with played children: in order, whole or not at all, and what is told about them."""

from __future__ import annotations

import errno
import shutil
import signal
import time

import pytest

from gateway import errors
from gateway.lifecycle.operations import LIVE_COUNT_MAX
from gateway.lifecycle.routes import Absent, Lazy
from gateway.supervisor import Obituary
from shm import failpoints
from tests.support.plant import lazy, model

# -- from the start ------------------------------------------------------------------------------------------------


def test_what_the_repository_has_is_served_from_the_start(root, go):
    model(root, "a")
    model(root, "z", **lazy())

    async def story(plant):
        assert plant.serves("a")
        assert plant.routes.entries["z", ""] == Lazy(1)
        assert plant.spawned == [(0, ("a",))]

    go(story)


def test_a_model_that_kills_its_worker_twice_is_left_out(root, go):
    model(root, "bad", fake={"load": "crash"})
    model(root, "good")

    async def story(plant):
        await plant.wait(lambda: plant.serves("good") and plant.routes.entries["bad", ""] is not None)
        await plant.wait(lambda: plant.changes.model("bad")["versions"][0]["state"] == "failed")
        assert "died twice" in plant.changes.model("bad")["versions"][0]["error"]
        assert plant.spawned == [(0, ("bad", "good"))] * 2 + [(0, ("good",))]
        assert not plant.core.is_ready

    go(story, ready=False)


def test_a_model_that_failed_at_the_start_costs_its_neighbours_no_restart(root, go):
    model(root, "bad", fake={"load": "refuse"})
    model(root, "good")

    async def story(plant):
        await plant.wait(lambda: plant.changes.operations.counts["evaluate", "succeeded"] == 1)
        assert plant.spawned == [(0, ("bad", "good"))]
        model(root, "more")
        await plant.done(plant.changes.load("more"))
        assert plant.spawned[1:] == [(0, ("good", "more"))]
        assert plant.changes.model("bad")["versions"][0]["state"] == "failed"
        assert plant.routes.entries["bad", ""] is not None

    go(story, ready=False)


@pytest.mark.slow
def test_a_device_whose_only_model_kills_workers_is_left_empty(root, go):
    model(root, "bad", fake={"load": "crash"})

    async def story(plant):
        await plant.wait(lambda: plant.changes.model("bad")["versions"][0]["state"] == "failed")
        await plant.wait(lambda: not plant.core.workers)
        assert len(plant.spawned) <= 3
        shutil.rmtree(root / "bad")
        model(root, "bad")
        await plant.done(plant.changes.load("bad"))
        assert plant.serves("bad")

    go(story, ready=False)


def test_a_version_that_fails_at_the_start_gives_way_to_the_one_before(root, go):
    model(root, version=1)
    model(root, version=2, fake={"load": "refuse"})

    async def story(plant):
        await plant.wait(lambda: plant.serves("m"))
        assert plant.routes.defaults["m"] == 1
        await plant.wait(lambda: len(plant.core.lines) == 1)
        assert plant.core.is_ready

    go(story, ready=False)


@pytest.mark.slow
def test_workers_that_never_come_up_do_not_keep_operators_waiting(root, go):
    model(root)

    async def story(plant):
        plant.mute = True
        await plant.wait(lambda: plant.core.workers[0].restarts.total >= 2)
        plant.mute = False
        plant.start_timeout(20.0)
        shutil.rmtree(root / "m")
        model(root)
        await plant.done(plant.changes.reload("m"))
        assert plant.serves("m")

    go(story, ready=False, child_start_timeout_s=0.05)


# -- one after the other -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_changes_are_made_in_the_order_in_which_they_were_asked_for(root, go):
    model(root, "a")
    model(root, "b")

    async def story(plant):
        asked = [plant.changes.unload("b"), plant.changes.load("b"), plant.changes.unload("a")]
        assert [operation.state for operation in asked] == ["queued"] * 3
        for operation in asked:
            await plant.done(operation)
        assert (plant.serves("a"), plant.serves("b")) == (False, True)
        assert plant.spawned == [(0, ("a", "b")), (0, ("a",)), (0, ("a", "b")), (0, ("b",))]
        assert plant.changes.operations.counts["unload", "succeeded"] == 2

    go(story)


def test_too_many_are_refused(root, go):
    model(root, "a")

    async def story(plant):
        plant.never = True
        for _ in range(LIVE_COUNT_MAX):
            plant.changes.evaluate()
        with pytest.raises(errors.Overloaded):
            plant.changes.evaluate()

    go(story)


def test_a_gateway_that_goes_down_changes_nothing_any_more_but_for_requests(root, go):
    model(root, "a")
    model(root, "z", **lazy())

    async def story(plant):
        plant.changes.draining = True
        with pytest.raises(errors.Draining):
            plant.changes.unload("a")
        await plant.changes.wait_loaded("z", 1, time.monotonic_ns() + 10**10)
        assert plant.serves("z")

    go(story)


def test_a_fault_of_ours_ends_one_operation_and_no_other(root, go, monkeypatch):
    model(root, "a")

    async def story(plant):
        with monkeypatch.context() as patch:
            patch.setattr(plant.changes._turnover, "perform", None)
            failed = await plant.done(plant.changes.unload("a"), "failed")
            assert failed.error["code"] == "internal"
        await plant.done(plant.changes.unload("a"))

    go(story)


# -- whole or not at all -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("overlap", ["auto", "never"])
@pytest.mark.parametrize("fault", ["refusing", "crashing", "never"])
def test_a_change_that_fails_leaves_everything_as_it_was(root, go, overlap, fault):
    model(root, "a")
    model(root, "b")

    async def story(plant):
        before = plant.core.lines[:]
        model(root, "c")
        if fault == "never":
            shutil.rmtree(root / "c")
            model(root, "c", fake={"load_ms": 1.0})
            plant.start_timeout(0.3)
        else:
            getattr(plant, fault).add("c")
        failed = await plant.done(plant.changes.load("c"), "failed")
        plant.start_timeout(20.0)
        assert failed.error["code"] == "load_failed"
        assert "c" in failed.error["detail"]
        await plant.wait(lambda: plant.serves("a") and plant.serves("b"))
        assert plant.core.lines == before
        assert len(plant.core.workers) == 1
        assert plant.routes.entries["c", ""] is Absent.FAILED
        assert not plant.changes._store.path.exists()

    go(story, overlap=overlap)


@pytest.mark.parametrize("overlap", ["auto", "never"])
def test_a_reload_that_fails_leaves_the_old_line_open(root, go, overlap):
    model(root, "a")

    async def story(plant):
        (line,) = plant.core.lines
        shutil.rmtree(root / "a")
        model(root, "a", fake={"load": "refuse"})
        await plant.done(plant.changes.reload("a"), "failed")
        await plant.wait(lambda: plant.serves("a"))
        assert plant.routes.entries["a", ""] is line
        plant.core.precheck(line, time.monotonic_ns() + 10**10, time.monotonic_ns())
        # These files are not tried again by themselves, and others are.
        started = len(plant.spawned)
        await plant.done(plant.changes.evaluate())
        assert len(plant.spawned) == started
        shutil.rmtree(root / "a")
        model(root, "a", fake={"class_count": 7})
        await plant.done(plant.changes.evaluate())
        assert plant.routes.entries["a", ""] is not line

    go(story, overlap=overlap)


def test_the_gateway_is_as_ready_as_what_it_serves(root, go):
    model(root, "a")

    async def story(plant):
        await plant.done(plant.changes.reload("a"))
        model(root, "b")
        await plant.done(plant.changes.load("b"))
        assert plant.core.is_ready
        plant.never = True
        plant.worker().kill()
        await plant.wait(lambda: not plant.core.is_ready)
        plant.never = False

    go(story)


def test_a_model_that_served_and_cannot_be_loaded_again_is_not_taken_for_the_new_ones_fault(root, go):
    model(root, "a")

    async def story(plant):
        model(root, "b")
        plant.refusing.add("a")
        failed = await plant.done(plant.changes.load("b"), "failed")
        assert failed.error["detail"] == "a is refused"
        assert plant.serves("a")
        plant.refusing.clear()
        await plant.done(plant.changes.load("b"))
        assert plant.serves("b")

    go(story)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", ["auto", "never"])
@pytest.mark.parametrize("point", ["before_successors", "before_gap", "before_switch", "after_switch", "before_save"])
def test_a_fault_of_ours_at_any_step_leaves_what_was_or_what_is_to_be(root, go, point, overlap):
    model(root, "a")
    model(root, "b")

    async def story(plant):
        failpoints.arm(f"gateway.{point}=error@1")
        try:
            operation = plant.changes.unload("b")
            await operation.wait_ended(20)
        finally:
            failpoints.arm("")
        hit = overlap == "never" or point != "before_gap"
        made = point in {"after_switch", "before_save"} or not hit
        assert operation.state == ("failed" if hit else "succeeded")
        assert plant.serves("a")
        assert plant.serves("b") is not made
        await plant.done(plant.changes.load("b"))
        model(root, "c")
        await plant.done(plant.changes.load("c"))
        assert [plant.serves(name) for name in "abc"] == [True] * 3
        assert len(plant.core.lines) == 3
        assert len(plant.core.workers) == 1

    go(story, overlap=overlap)


def test_without_memory_for_slots_nothing_is_started(root, go, monkeypatch):
    model(root, "a")

    async def story(plant):
        model(root, "b")
        real = plant.driver.add_model

        def full(version):
            if version.name == "b":
                raise OSError(errno.ENOMEM, "Cannot allocate memory")
            return real(version)

        monkeypatch.setattr(plant.driver, "add_model", full)
        started = len(plant.spawned)
        model(root, "aa")
        failed = await plant.done(plant.changes.evaluate(), "failed")
        assert failed.error["code"] == "insufficient_memory"
        assert "Cannot allocate memory" in failed.error["detail"]
        assert len(plant.spawned) == started
        assert len(plant.core.lines) == 1

    go(story)


def test_an_evaluation_leaves_out_what_fails_and_does_the_rest(root, go):
    model(root, "a")

    async def story(plant):
        for name in ("b", "c", "d"):
            model(root, name)
        plant.refusing.add("b")
        plant.crashing.add("d")
        failed = await plant.done(plant.changes.evaluate(), "failed")
        assert "b is refused" in failed.error["detail"]
        assert "d/1" in failed.error["detail"]
        assert [plant.serves(name) for name in "abcd"] == [True, False, True, False]

    go(story)


# -- following -----------------------------------------------------------------------------------------------------


def test_a_repository_that_cannot_be_read_changes_nothing_and_is_told_once(root, go, caplog):
    model(root, "a")

    async def story(plant):
        root.rename(root.parent / "away")
        await plant.wait(lambda: "repository_unreadable" in caplog.text)
        (root.parent / "away").rename(root)
        model(root, "b")
        await plant.wait(lambda: plant.serves("b"))
        assert plant.serves("a")
        assert caplog.text.count("repository_unreadable") == 1

    go(story, watch=True, watch_interval_s=0.05)


def test_workers_as_plain_data(root, go):
    model(root, "a", residency={"devices": ["cuda:0"]})

    async def story(plant):
        (worker,) = plant.changes.workers()
        assert worker == {
            "index": 0,
            "seat": 1,
            "device": "cuda:0",
            "runs_on": "cpu",
            "pid": plant.worker(1).pid,
            "state": "ready",
            "retiring": False,
            "incarnation": 1,
            "models": ["a/1"],
            "memory_size": worker["memory_size"],
            "restarts": 0,
            "obituary": None,
        }
        plant.worker(1)._die(Obituary(-signal.SIGSEGV, 0))
        await plant.wait(lambda: plant.core.is_ready)
        assert plant.changes.workers()[0]["obituary"] == "SIGSEGV"
        with pytest.raises(errors.NotFound):
            plant.changes.restart(7)

    go(story, devices=("cpu", "cuda:0"))
