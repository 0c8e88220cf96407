"""Arenas as state machines, against models that are too simple to be wrong."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from shm.arena import TRANSITIONS, BodyArena, Region, SlotArena, SlotState
from shm.layout import BODY_ALIGN, align


class Slots(RuleBasedStateMachine):
    """Every legal move is possible, every other one an assertion failure, and nobody is granted what is held."""

    @initialize(count=st.integers(1, 6))
    def start(self, count: int) -> None:
        self.arena = SlotArena(count)
        self.states = dict.fromkeys(range(count), SlotState.FREE)

    @rule()
    def admit(self) -> None:
        slot = self.arena.admit_nowait()
        if slot is None:
            assert SlotState.FREE not in self.states.values()
        else:
            assert self.states[slot] is SlotState.FREE
            self.states[slot] = SlotState.FILLING

    @rule(which=st.integers(0, 5), to=st.sampled_from(SlotState))
    def move(self, which: int, to: SlotState) -> None:
        slot = which % self.arena.count
        # FREE to FILLING is legal, and only ever done by admission.
        if self.states[slot] is SlotState.FREE and to is SlotState.FILLING:
            return
        if (self.states[slot], to) in TRANSITIONS:
            self.arena.move(slot, to)
            self.states[slot] = to
        else:
            with pytest.raises(AssertionError, match=f"slot {slot}"):
                self.arena.move(slot, to)

    @invariant()
    def books_agree(self) -> None:
        assert [self.arena.state(slot) for slot in self.states] == list(self.states.values())
        free = [slot for slot, state in self.states.items() if state is SlotState.FREE]
        assert sorted(self.arena._free) == free
        assert self.arena.free_count == len(free)
        counts = self.arena.statistics()
        assert sum(counts.values()) == self.arena.count
        assert counts["free"] == len(free)


class Bodies(RuleBasedStateMachine):
    """Regions never overlap, free ranges never touch, and the books add up."""

    regions = Bundle("regions")

    @initialize(size=st.integers(BODY_ALIGN, 3000))
    def start(self, size: int) -> None:
        self.arena = BodyArena(size)
        self.held: dict[int, int] = {}

    @rule(target=regions, size=st.integers(0, 1200))
    def allocate(self, size: int) -> Region | None:
        region = self.arena.allocate_nowait(size)
        taken = align(max(size, 1), BODY_ALIGN)
        fits = [start for start, end in self.gaps() if end - start >= taken]
        if region is None:
            assert not fits
        else:
            assert region == Region(min(fits), size)
            self.held[region.offset] = taken
        return region

    @rule(region=consumes(regions))
    def free(self, region: Region | None) -> None:
        if region is not None:
            self.arena.free(region)
            del self.held[region.offset]
            with pytest.raises(AssertionError, match="freed twice"):
                self.arena.free(region)

    @rule(target=regions, region=consumes(regions), share=st.floats(0, 1))
    def shrink(self, region: Region | None, share: float) -> Region | None:
        if region is None or region.size == 0:
            return region
        kept = self.arena.shrink(region, max(1, int(region.size * share)))
        assert kept.offset == region.offset
        self.held[kept.offset] = align(kept.size, BODY_ALIGN)
        return kept

    @precondition(lambda self: not self.held)
    @rule()
    def all_is_one_again(self) -> None:
        assert self.arena.allocate_nowait(self.arena.size) == Region(0, self.arena.size)
        self.arena.free(Region(0, self.arena.size))

    def gaps(self) -> list[tuple[int, int]]:
        """The free ranges, as the held ones leave them."""
        edges = [0]
        for start, size in sorted(self.held.items()):
            edges += [start, start + size]
        edges.append(self.arena.size)
        return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]

    @invariant()
    def books_agree(self) -> None:
        assert list(zip(self.arena._starts, self.arena._ends, strict=True)) == self.gaps()
        assert self.arena.held_size == sum(self.held.values()) <= self.arena.size
        assert all(start % BODY_ALIGN == 0 for start in self.held)


Slots.TestCase.settings = Bodies.TestCase.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, derandomize=True
)
TestSlots = pytest.mark.slow(Slots.TestCase)
TestBodies = pytest.mark.slow(Bodies.TestCase)


def test_an_arena_s_size_is_whole_pages_of_alignment():
    assert BodyArena(100).size == 64


def test_last_freed_is_first_granted():
    arena = SlotArena(4)
    granted = [arena.admit_nowait() for _ in range(4)]
    assert granted == [0, 1, 2, 3]
    assert arena.admit_nowait() is None

    arena.move(1, SlotState.FREE)
    arena.move(3, SlotState.FREE)

    assert arena.admit_nowait() == 3


@pytest.mark.parametrize("size", [0, 301])
def test_shrinking_to_nothing_or_beyond_is_a_bug(size):
    arena = BodyArena(1024)
    region = arena.allocate_nowait(300)
    with pytest.raises(AssertionError):
        arena.shrink(region, size)
