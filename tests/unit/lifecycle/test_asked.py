"""What can be asked of `Changes`, and in which words it is refused. Over the real core with played children."""

from __future__ import annotations

import asyncio

import pytest

from gateway import errors
from gateway.errors import InvalidModel
from gateway.lifecycle.changes import Changes
from gateway.lifecycle.desired import Shadow, Want
from gateway.lifecycle.routes import Lazy
from gateway.models.repository import read_version
from tests.support.plant import MIB, Plant, model


def versions(plant, name="m"):
    return {found["version"]: found["state"] for found in plant.changes.model(name)["versions"]}


def test_versions_come_and_go(root, go):
    model(root, version=1)
    model(root, version=2)

    async def story(plant):
        assert versions(plant) == {1: "unloaded", 2: "ready"}
        await plant.done(plant.changes.load("m", (1,)))
        assert versions(plant) == {1: "ready", 2: "ready"}
        model(root, version=3)
        await plant.done(plant.changes.load("m", (3,), default=2))
        assert versions(plant) == {1: "ready", 2: "ready", 3: "ready"}
        assert plant.routes.defaults == {"m": 2}
        await plant.done(plant.changes.unload("m", 2))
        assert versions(plant) == {1: "ready", 2: "unloaded", 3: "ready"}
        assert plant.routes.defaults == {"m": 3}
        await plant.done(plant.changes.unload("m"))
        await plant.done(plant.changes.load("m"))
        assert versions(plant) == {1: "unloaded", 2: "unloaded", 3: "ready"}, "as the settings say"
        assert plant.changes._store.load().models["m"] == Want()

    go(story)


def test_a_want_is_made_so_as_a_whole(root, go):
    model(root, version=1)
    model(root, version=2)
    want = Want(versions=(1, 2), default=1, aliases={"next": 2}, shadow=Shadow(2, 0.5))

    async def story(plant):
        await plant.done(plant.changes.configure("m", want))
        assert plant.routes.defaults == {"m": 1}
        assert plant.routes.entries["m", "next"] is plant.routes.entries["m", "2"]
        assert plant.routes.shadows["m", 1].version == 2
        assert plant.changes.model("m")["want"]["shadow"] == {"version": 2, "share": 0.5}
        spawned = len(plant.spawned)
        await plant.done(plant.changes.configure("m", Want(versions=(1, 2), aliases={"next": 1})))
        assert len(plant.spawned) == spawned, "who is asked is no business of workers"
        await plant.done(plant.changes.configure("m", Want(versions=())))
        assert versions(plant) == {1: "unloaded", 2: "unloaded"}

    go(story)


@pytest.mark.parametrize(
    ("ask", "refusal", "words"),
    [
        pytest.param(lambda c: c.load("nobody"), errors.UnknownModel, "no such model", id="no model"),
        pytest.param(lambda c: c.load("../m"), errors.UnknownModel, "no such model", id="no name"),
        pytest.param(lambda c: c.load("m", (1, 9)), errors.UnknownModel, "no version 9", id="no version"),
        pytest.param(lambda c: c.unload("m", 9), errors.UnknownModel, "no version 9", id="no version to unload"),
        pytest.param(lambda c: c.reload("nobody"), errors.UnknownModel, "no such model", id="no model to reload"),
        pytest.param(
            lambda c: c.configure("nobody", Want()), errors.UnknownModel, "no such model", id="no model to set"
        ),
        pytest.param(
            lambda c: c.configure("m", Want(versions=(1,), default=2)), errors.BadRequest, "default", id="no sense"
        ),
        pytest.param(lambda c: c.model("nobody"), errors.UnknownModel, "no such model", id="no model to see"),
        pytest.param(lambda c: c.restart(9), errors.NotFound, "no such worker", id="no worker"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(root, go, ask, refusal, words):
    model(root)

    async def story(plant):
        with pytest.raises(refusal, match=words):
            ask(plant.changes)
        assert plant.changes.operations.live_count == 0

    go(story)


def test_what_is_there_and_cannot_be_read_fails_with_the_reason(root, go):
    model(root)
    (root / "empty").mkdir()

    async def story(plant):
        (model(root, version=2) / "model.toml").write_text("half a fi")
        for asked in (
            plant.changes.load("m"),
            plant.changes.load("m", (2,)),
            plant.changes.configure("m", Want(versions=(2,))),
        ):
            failed = await plant.done(asked, "failed")
            assert failed.error["code"] == "load_failed"
            assert "model.toml" in failed.error["detail"]
        failed = await plant.done(plant.changes.load("empty"), "failed")
        assert failed.error["code"] == "unknown_model"
        (root / "m" / "1" / "model.toml").write_text("half a fi")
        failed = await plant.done(plant.changes.reload("m"), "failed")
        assert "model.toml" in failed.error["detail"]
        assert plant.serves("m")
        assert versions(plant) == {1: "ready", 2: "failed"}

    go(story)


def test_a_version_that_went_while_its_operation_waited_is_unknown(root, go):
    model(root)
    gone = model(root, version=2)

    async def story(plant):
        asked = plant.changes.load("m", (1, 2))
        gone.rename(root / ".gone")
        assert (await plant.done(asked, "failed")).error["code"] == "unknown_model"
        assert plant.serves("m")

    go(story)


def test_a_lazy_version_that_is_asleep_stays_so_when_it_is_reloaded(root, go):
    model(root, "z", residency={"lazy": True})

    async def story(plant):
        await plant.done(plant.changes.reload("z"))
        assert plant.routes.entries["z", ""] == Lazy(1)
        assert not plant.spawned
        await plant.done(plant.changes.load("z", (1,)))
        assert plant.serves("z")
        assert plant.changes.models()[0]["versions"][0]["lazy"]

    go(story)


def test_a_model_that_no_device_is_to_have(root, go):
    model(root, "a")

    async def story(plant):
        model(root, "b", residency={"devices": ["cuda:3"]})
        failed = await plant.done(plant.changes.load("b"), "failed")
        assert "b/1 is for cuda:3, and this gateway has cpu" in failed.error["detail"]
        assert plant.changes.model("b")["versions"][0]["state"] == "failed"

    go(story)


def test_at_the_start_it_is_no_start(root, monkeypatch):
    model(root, "b", residency={"devices": ["cuda:3"]})

    async def run():
        plant = Plant(root, root.parent / "state", monkeypatch)
        with pytest.raises(InvalidModel, match="this gateway has cpu"):
            plant.changes.begin(plant.tables.append)
        plant.driver.memory.close()

    asyncio.run(run())


def test_models_that_were_given_are_served_whatever_the_repository_holds(root, go):
    model(root, "a")
    given = model(root.parent / "elsewhere", "g")

    async def story(plant):
        changes = Changes(plant.driver, plant.settings, models=[read_version(given)])
        tables = []
        changes.begin(tables.append)
        assert ("g", "") in tables[-1].entries
        assert ("a", "") not in tables[-1].entries
        with pytest.raises(errors.UnknownModel):
            changes.load("a")

    go(story)


def test_device_memory_is_counted_to_the_models_that_are_new(root, go):
    model(root, "a", fake={"memory_size": 30 * MIB})

    async def story(plant):
        plant.on_device = True
        await plant.done(plant.changes.reload("a"))
        model(root, "b", fake={"memory_size": 50 * MIB})
        await plant.done(plant.changes.load("b"))
        needs = [found["versions"][0]["memory_size"] for found in plant.changes.models()]
        assert needs == [40 * MIB, 50 * MIB], "the first one brought the engine along"

    go(story, devices=("cuda:0",))
