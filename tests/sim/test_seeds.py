"""A thousand worlds and more; a failing one names its seed. PENSTOCK_SIM_SEEDS=N plays N of them."""

from __future__ import annotations

import os

import pytest

from tests.support.world import World

CHUNKS = 12
SEED_COUNT = int(os.environ.get("PENSTOCK_SIM_SEEDS", "1200"))


def played(seed: int, *, calm: bool = False) -> World:
    world = World(seed, calm=calm)
    try:
        return world.run()
    except BaseException as error:
        words = f"seed {seed}, faults {sorted(world.plan.faults)}; reproduce: World({seed}, calm={calm}).run()"
        error.add_note(words)
        raise


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_seeds(chunk: int):
    happened: dict[str, int] = {}
    for seed in range(chunk, SEED_COUNT, CHUNKS):
        for what, count in played(seed).counts.items():
            happened[what] = happened.get(what, 0) + count

    # The worlds are worth something only while everything happens in them.
    answers = ("ok", "deadline_exceeded", "undecodable_image", "inference_failed", "poisoned")
    faults = ("cancel_running", "interrupt", "kill_hung", "kill_lost its device", "stuck_worker", "stuck_decoder")
    changes = ("kill_retired", "line_removed", "resolved_again", "change_superseded", "change_failed")
    seals = ("seal_full", "seal_window", "seal_idle", "seal_deadline", "seal_suspect")
    all_of_it = (*answers, *faults, *changes, *seals, "overlapped")
    assert SEED_COUNT < 1000 or all(happened.get(what) for what in all_of_it), happened


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_without_faults_every_promise_is_kept(chunk: int):
    answered = sum(played(seed, calm=True).counts.get("ok", 0) for seed in range(chunk, SEED_COUNT // 2, CHUNKS))

    assert answered > SEED_COUNT


def test_a_violation_names_its_seed(monkeypatch):
    monkeypatch.setattr("tests.support.world.EVENTS_MAX", 10)

    with pytest.raises(AssertionError) as failure:
        played(7)

    assert failure.value.__notes__[0].startswith("seed 7, faults [")
