"""A seed is a world: the same one, effect by effect, whenever it is played."""

from __future__ import annotations

import pytest

from tests.support.world import World


@pytest.mark.parametrize("seed", [3, 10, 38, 181])
def test_two_runs_of_a_seed_are_equal(seed: int):
    first, second = World(seed).run(), World(seed).run()

    assert len(first.trace) > 20
    assert first.trace == second.trace
    assert first.now == second.now


def test_seeds_differ():
    assert World(1).run().trace != World(2).run().trace
