"""Bugs that are planted into the core on purpose: how they are kept, and the hunt for one of them in the simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shm.arena import SlotArena, SlotState
from tests.support.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import pytest

    Plant = Callable[[pytest.MonkeyPatch], None]

SEEDS_MAX = 400


class Bugs:
    """By name: how to plant it, words of the violation that finds it ("" where it may show in several ways), whether it
    shows in calm worlds, and which classes of faults it needs, where most worlds do not have them together.
    """

    def __init__(self) -> None:
        self._bugs: dict[str, tuple[Plant, str, bool, Collection[str]]] = {}

    def __call__(self, words: str, *, calm: bool = False, faults: Collection[str] = ()) -> Callable[[Plant], Plant]:
        """A decorator that keeps one."""

        def keep(plant: Plant) -> Plant:
            self._bugs[plant.__name__] = plant, words, calm, faults
            return plant

        return keep

    @property
    def names(self) -> list[str]:
        return sorted(self._bugs)

    def hunt(self, name: str, patch: pytest.MonkeyPatch) -> None:
        """Plant it, and play worlds until it shows; raises when it does not."""
        plant, words, calm, faults = self._bugs[name]
        plant(patch)
        found = []
        for seed in range(SEEDS_MAX):
            try:
                World(seed, calm=calm, faults=faults).run()
            except Exception as error:  # noqa: BLE001 -- a planted bug may show as anything
                found.append(f"{type(error).__name__}: {error}")
                if words in found[-1]:
                    return
        raise AssertionError(f"not found in {SEEDS_MAX} seeds; other findings: {sorted(set(found))[:5]}")


def lenient_move(arena: SlotArena, slot: int, target: SlotState) -> None:
    """The arena's own assertion would find some bugs first; these are for the simulator."""
    if target is SlotState.FREE and arena._states[slot] is not SlotState.FREE:
        arena._free.append(slot)
    arena._states[slot] = target
