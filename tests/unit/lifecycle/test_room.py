"""Memory: who makes room, what is proved to be given back, and models that come and go by use. With played children."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway import errors
from gateway.lifecycle.desired import Want
from gateway.lifecycle.routes import Lazy
from gateway.scheduling.restarts import State
from gateway.scheduling.ticket import Role
from tests.support.plant import MIB, lazy, model

# -- memory --------------------------------------------------------------------------------------------------------


def test_memory_that_is_not_given_back_is_an_error_that_names_who_holds_it(root, go, monkeypatch):
    monkeypatch.setattr("gateway.lifecycle.departures.GIVEN_BACK_TIMEOUT_S", 0.1)
    model(root, "a")
    model(root, "b", fake={"memory_size": 50 * MIB})

    async def story(plant):
        pid = plant.worker().pid
        plant.leaking.add(pid)
        failed = await plant.done(plant.changes.unload("b"), "failed")
        assert failed.error["code"] == "memory_not_given_back"
        assert f"actor (pid {pid}" in failed.error["detail"]
        assert failed.result["given_back_share"] == 0.0
        assert plant.serves("a"), "the change was made"
        assert not plant.serves("b")
        assert plant.changes._store.load().models["b"] == Want(versions=())
        samples = {name: value for name, _, value in plant.changes._views.samples()}
        assert samples["penstock_unload_given_back_ratio"] == 0.0
        assert samples["penstock_worker_memory_bytes"] == 10 * MIB

    go(story)


@pytest.mark.slow
def test_a_worker_that_hangs_in_the_kernel_is_told_and_its_slots_stay(root, go, monkeypatch):
    monkeypatch.setattr("gateway.lifecycle.departures.GIVEN_BACK_TIMEOUT_S", 0.1)
    monkeypatch.setattr("gateway.scheduling.watch.STUCK_NS", 50_000_000)
    model(root, "a")
    model(root, "b", fake={"memory_size": 50 * MIB})

    async def story(plant):
        old = plant.changes._turnover.seats[0]
        plant.stuck = True
        failed = await plant.done(plant.changes.unload("b"), "failed")
        assert failed.error["code"] == "memory_not_given_back"
        assert plant.core.worker(old).state is State.STUCK
        assert plant.serves("a")
        assert len(plant.core.lines) == 2, "somebody may still write to b's slots"
        plant.stuck = False
        plant.children[Role.WORKER, old].kill()
        await plant.wait(lambda: len(plant.core.workers) == 1)
        await plant.done(plant.changes.evaluate())
        model(root, "c")
        await plant.done(plant.changes.load("c"))
        assert [line.name for line in plant.core.lines] == ["a", "c"]

    go(story)


def test_the_need_of_a_model_is_known_once_it_was_loaded(root, go):
    model(root, "a", fake={"memory_size": 60 * MIB})
    model(root, "b", **lazy(60 * MIB))

    async def story(plant):
        await plant.changes.wait_loaded("b", 1, time.monotonic_ns() + 10**10)
        assert plant.changes.model("b")["versions"][0]["memory_size"] == 60 * MIB
        await plant.wait(lambda: plant.changes.operations.counts["evict", "succeeded"] == 0)
        await plant.done(plant.changes.unload("b"))
        started = len(plant.spawned)
        failed = await plant.done(plant.changes.load("b", (1,)), "failed")
        assert failed.error["code"] == "insufficient_memory"
        assert len(plant.spawned) == started
        with pytest.raises(errors.ModelNotReady):
            await plant.changes.wait_loaded("b", 1, time.monotonic_ns() + 10**10)
        assert plant.serves("a")

    go(story, device_memory_size_max=100 * MIB)


@pytest.mark.parametrize(("free", "beside"), [(None, True), (200 * MIB, True), (50 * MIB, False)])
def test_workers_overlap_where_both_fit(root, go, free, beside):
    model(root, "a", fake={"memory_size": 60 * MIB})

    async def story(plant):
        plant.free = free
        alive = []
        real = plant.spawn

        def spawn(role, *arguments, **more):
            alive.append(sum(child.role is Role.WORKER for child in plant.children.values()))
            return real(role, *arguments, **more)

        plant.spawn = spawn
        await plant.done(plant.changes.reload("a"))
        await plant.done(plant.changes.restart(plant.changes._turnover.seats[0]))
        assert alive == [1 if beside else 0] * 2
        assert plant.serves("a")

    go(story)


# -- lazy ----------------------------------------------------------------------------------------------------------


def test_who_waits_for_a_lazy_model_longer_than_it_may_is_told(root, go):
    model(root, "z", **lazy())

    async def story(plant):
        plant.never = True
        with pytest.raises(errors.ModelNotReady) as caught:
            await plant.changes.wait_loaded("z", 1, time.monotonic_ns() + 10_000_000)
        assert caught.value.retry_after_s

    go(story)


def test_one_that_could_not_be_loaded_is_tried_again_after_a_while(root, go, monkeypatch):
    model(root, "z", **lazy())
    until_ns = time.monotonic_ns() + 10**11

    async def story(plant):
        plant.refusing.add("z")
        for _ in range(3):
            with pytest.raises(errors.ModelNotReady) as caught:
                await plant.changes.wait_loaded("z", 1, until_ns)
            assert caught.value.retry_after_s
        assert plant.changes.operations.counts["wake", "failed"] == 1
        monkeypatch.setattr("gateway.lifecycle.changes.AGAIN_S", 0.0)
        plant.refusing.clear()
        await plant.changes.wait_loaded("z", 1, until_ns)
        assert plant.serves("z")

    go(story)


@pytest.mark.slow
def test_idle_models_leave(root, go, monkeypatch):
    monkeypatch.setattr("gateway.lifecycle.routine.USE_LOOK_S", 0.01)
    model(root, "z", **lazy(idle_s=0.05))

    async def story(plant):
        await plant.changes.wait_loaded("z", 1, time.monotonic_ns() + 10**10)
        await plant.wait(lambda: plant.changes.operations.counts["unload_idle", "succeeded"] == 1)
        assert plant.routes.entries["z", ""] == Lazy(1)
        await plant.wait(lambda: not plant.core.lines)

    go(story)


def test_the_least_recently_used_make_room(root, go, monkeypatch):
    monkeypatch.setattr("gateway.lifecycle.routine.USE_LOOK_S", 0.01)
    for name in "xyz":
        model(root, name, **lazy(60 * MIB))
    model(root, "pinned")

    async def story(plant):
        def up():
            return [name for name in ("pinned", "x", "y", "z") if plant.serves(name)]

        async def wake(name):
            await plant.changes.wait_loaded(name, 1, time.monotonic_ns() + 10**10)

        await wake("x")
        await wake("y")
        # Nobody knows what z needs before it was loaded; then it turns out to be too much.
        await wake("z")
        await plant.wait(lambda: up() == ["pinned", "y", "z"])
        await plant.wait(lambda: plant.changes.operations.counts["evict", "succeeded"] == 1)
        # Of x it is known, so that somebody goes first.
        await wake("x")
        assert up() == ["pinned", "x", "z"]
        assert plant.changes.operations.counts["evict", "queued"] == 1

    go(story, device_memory_size_max=150 * MIB)


def test_while_one_worker_follows_another_who_asks_waits_as_long_as_they_may(root, go):
    model(root, "a")

    async def story(plant):
        plant.mute = True
        asked = plant.changes.reload("a")
        await plant.wait(lambda: plant.routes.entries["a", ""] == Lazy(1))
        with pytest.raises(errors.ModelNotReady) as caught:
            await plant.changes.wait_loaded("a", 1, time.monotonic_ns() + 10_000_000)
        assert caught.value.retry_after_s
        waiting = asyncio.create_task(plant.changes.wait_loaded("a", 1, time.monotonic_ns() + 10**10))
        await asyncio.sleep(0)
        assert not waiting.done()
        await plant.wait(lambda: len(plant.spawned) == 2)
        plant.mute = False
        plant.worker_on(0).kill()
        await waiting
        assert plant.serves("a")
        await plant.done(asked)

    go(story, overlap="never")
