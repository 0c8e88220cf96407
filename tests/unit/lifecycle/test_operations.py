"""Operations: how they live, what is said of them, and how many are remembered."""

from __future__ import annotations

import asyncio
import re

import pytest

from gateway import errors
from gateway.lifecycle.operations import ENDED_COUNT_MAX, KINDS, LIVE_COUNT_MAX, Operations, State


def test_a_life_that_ends_well():
    operations = Operations()
    operation = operations.begin("load", "cats")
    assert operation.document() == {
        "id": operation.id,
        "kind": "load",
        "model": "cats",
        "state": "queued",
        "stage": "waiting",
        "share": 0.0,
        "created": operation.created,
        "started": None,
        "ended": None,
        "result": {},
        "error": None,
    }
    operation.start()
    operation.progress("warmup", 0.25)
    assert (operation.state, operation.stage, operation.share) == (State.RUNNING, "warmup", 0.25)
    assert not operation.is_ended
    operation.result["seconds"] = 1.5
    operation.succeed()
    document = operation.document()
    assert (document["state"], document["stage"], document["share"]) == ("succeeded", "done", 1.0)
    assert document["result"] == {"seconds": 1.5}
    for key in ("created", "started", "ended"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", document[key]), key
    assert operation.is_ended


def test_a_failure_says_its_code_and_its_words_and_keeps_its_share():
    operation = Operations().begin("load", "cats")
    operation.start()
    operation.progress("session", 0.5)
    operation.fail(errors.ModelNotReady("it is broken"))
    assert operation.error == {"code": "model_not_ready", "detail": "it is broken"}
    assert (operation.state, operation.share) == (State.FAILED, 0.5)


def test_a_share_never_falls_and_never_passes_one():
    operation = Operations().begin("load", "cats")
    operation.start()
    for share, seen in ((0.5, 0.5), (0.2, 0.5), (3.0, 1.0)):
        operation.progress("warmup", share)
        assert operation.share == seen


def test_one_too_many_is_refused_until_another_has_ended():
    operations = Operations()
    begun = [operations.begin("load", str(index)) for index in range(LIVE_COUNT_MAX)]
    assert operations.live_count == LIVE_COUNT_MAX
    with pytest.raises(errors.Overloaded) as caught:
        operations.begin("load", "one more")
    assert caught.value.retry_after_s
    begun[0].start()
    begun[0].succeed()
    operations.begin("load", "one more")


def test_ended_ones_are_forgotten_in_the_order_in_which_they_ended():
    operations = Operations()
    first, second = operations.begin("load"), operations.begin("load")
    for operation in (second, first):
        operation.start()
        operation.succeed()
    for _ in range(ENDED_COUNT_MAX - 1):
        operation = operations.begin("load")
        operation.start()
        operation.fail(errors.Refusal("no"))
    assert operations.get(second.id) is None
    assert operations.get(first.id) is first
    live = operations.begin("unload")
    assert operations.get(live.id) is live
    listed = list(operations)
    assert (listed[0], listed[-1], len(listed)) == (first, live, ENDED_COUNT_MAX + 1)
    assert operations.get("nothing") is None


def test_they_are_counted_by_kind_and_state():
    operations = Operations()
    for kind in ("load", "load", "unload"):
        operation = operations.begin(kind)
        operation.start()
    operation.succeed()
    assert operations.counts.keys() == {(kind, state.value) for kind in KINDS for state in State}
    assert {key: count for key, count in operations.counts.items() if count} == {
        ("load", "queued"): 2,
        ("load", "running"): 2,
        ("unload", "queued"): 1,
        ("unload", "running"): 1,
        ("unload", "succeeded"): 1,
    }


def test_whoever_waits_hears_of_the_end_or_that_there_was_none_in_time():
    async def wait():
        operations = Operations()
        operation = operations.begin("load")
        assert not await operation.wait_ended(0.0)
        operation.start()
        async with asyncio.TaskGroup() as group:
            waiters = [group.create_task(operation.wait_ended(None)), group.create_task(operation.wait_ended(60.0))]
            await asyncio.sleep(0)
            operation.succeed()
        assert [waiter.result() for waiter in waiters] == [True, True]
        assert await operation.wait_ended(0.0)

    asyncio.run(wait())


def test_no_two_have_one_id():
    operations = Operations()
    assert len({operations.begin("load").id for _ in range(LIVE_COUNT_MAX)}) == LIVE_COUNT_MAX
