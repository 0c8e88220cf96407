"""How alike two models' answers to one image are. Pure; outcomes in, a word and a number out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gateway.calls import Classes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gateway.calls import Outputs

SAMPLED_COUNT = 4096
"""Elements of one output that are compared, evenly spaced: a segmentation map of 100 MB would stop the loop."""

SAME_SHARE = 1e-3
"""Outputs are the same while no element differs by more than this share of the largest one, or of 1. Two engines that
run one graph differ by 1e-5; float16 by some 1e-4.
"""


class Answered(NamedTuple):
    """A classified image's best classes, best first, by what they mean."""

    names: tuple[str, ...]
    probabilities: tuple[float, ...]


class Sampled(NamedTuple):
    """One output: its shape, and at most SAMPLED_COUNT of its elements."""

    shape: tuple[int, ...]
    values: NDArray[np.float64]


Remembered = Answered | dict[str, Sampled]
"""What is kept of an outcome until the other one is there: little, however large the outputs are."""


class Likeness(NamedTuple):
    """`difference` is None where there is nothing to subtract."""

    same: bool
    difference: float | None


def remember(outcome: Classes | Outputs, labels: Sequence[str]) -> Remembered:
    """What is compared of an outcome. Classes go by their label: a new version may number them anew."""
    if isinstance(outcome, Classes):
        names = tuple(labels[index] if labels else str(index) for index in outcome.indices)
        return Answered(names, tuple(outcome.probabilities))
    return {name: _sampled(array) for name, array in outcome.items()}


def compare(ours: Remembered, theirs: Remembered) -> Likeness:
    """Classes: same best class, and by how much its probability differs (one that the other does not rank has none).

    Outputs: the largest absolute difference of an element. Other names or shapes are different, by no number.
    """
    if isinstance(ours, Answered) and isinstance(theirs, Answered):
        best = ours.names[0]
        there = dict(zip(theirs.names, theirs.probabilities, strict=True)).get(best, 0.0)
        return Likeness(theirs.names[0] == best, abs(ours.probabilities[0] - there))
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return _compare_outputs(ours, theirs)
    return Likeness(same=False, difference=None)


def _sampled(array: NDArray[np.generic]) -> Sampled:
    step = -(-array.size // SAMPLED_COUNT) or 1
    return Sampled(array.shape, array.reshape(-1)[::step].astype(np.float64))


def _compare_outputs(ours: Mapping[str, Sampled], theirs: Mapping[str, Sampled]) -> Likeness:
    if {name: sampled.shape for name, sampled in ours.items()} != {name: s.shape for name, s in theirs.items()}:
        return Likeness(same=False, difference=None)
    largest, same = 0.0, True
    for name, sampled in ours.items():
        one, other = sampled.values, theirs[name].values
        # Equal infinities, and no number on both sides, are equal; subtracting them would say otherwise.
        unequal = (one != other) & ~(np.isnan(one) & np.isnan(other))
        if not unequal.any():
            continue
        one, other = one[unequal], other[unequal]
        with np.errstate(over="ignore"):
            difference = float(np.abs(one - other).max())
        if not np.isfinite(difference):
            return Likeness(same=False, difference=None)
        largest = max(largest, difference)
        same = same and difference <= SAME_SHARE * max(1.0, float(np.nanmax(np.abs(sampled.values))))
    return Likeness(same, largest)
