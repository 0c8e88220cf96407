"""Scores of a whole batch to its best classes: activation and top-k. Pure NumPy, no state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDS_MAX = 128
"""Up to here k rounds of argmax are faster than a sort. Measured, 8 rows of 1000 scores: k = 5 takes 13 µs against
93 µs of argpartition with its ties put right and 153 µs of a stable sort; k = 100 takes 130 µs against 110 and 157."""

_LOWEST = np.finfo(np.float32).min

Activation = Literal["none", "softmax", "sigmoid"]


def rank(
    scores: NDArray[np.float32], activation: Activation, k: int
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.bool_]]:
    """Find the `k` best classes of each row of float32[n, classes], by descending score, equal ones by lower index.

    Returns index[n, k], probability[n, k], and valid[n]: False where a row has a NaN or an infinite best score; what
    stands in such a row means nothing. Activations keep the order of scores, so only the best k go through them.
    """
    # A copy to knock winners out of. -inf (a masked class) becomes the lowest number, so that a winner stays below it.
    work = np.maximum(scores, _LOWEST, dtype=np.float32)
    index, top = _by_rounds(work, k) if k <= ROUNDS_MAX else _by_sorting(work, k)
    best = top[:, :1]
    # False for NaN, which argmax prefers to every number.
    valid = (best > _LOWEST) & (best < np.inf)
    return index, _activate(top, scores, activation), valid[:, 0]


def _by_rounds(work: NDArray[np.float32], k: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Take the best k times; `work` is spent. argmax gives the first of equal ones, which is the tie rule."""
    rows = np.arange(len(work))
    index = np.empty((len(work), k), np.intp)
    top = np.empty((len(work), k), np.float32)
    for place in range(k):
        winner = work.argmax(axis=1)
        index[:, place] = winner
        top[:, place] = work[rows, winner]
        work[rows, winner] = -np.inf
    return index, top


def _by_sorting(work: NDArray[np.float32], k: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Sort all of it; stable, which is the tie rule."""
    index = np.argsort(-work, axis=1, kind="stable")[:, :k]
    # The same winner, but for rows with a NaN: a sort puts it last, and it has to be seen.
    index[:, 0] = work.argmax(axis=1)
    return index, np.take_along_axis(work, index, axis=1)


def _activate(top: NDArray[np.float32], scores: NDArray[np.float32], activation: Activation) -> NDArray[np.float32]:
    """Turn the best scores into probabilities."""
    if activation == "none":
        return top
    # exp() overflows to inf and underflows to 0, which are right here; rows that are not valid may do as they like.
    with np.errstate(all="ignore"):
        if activation == "sigmoid":
            probability: NDArray[np.float32] = np.float32(1) / (np.float32(1) + np.exp(-top))
            return probability
        best = top[:, :1]
        total = np.exp(scores - best).sum(axis=1, keepdims=True)
        share: NDArray[np.float32] = np.exp(top - best) / total
        return share
