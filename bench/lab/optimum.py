"""The most requests that one worker can answer in time, knowing the future: exact, for one common relative deadline.

Given arrivals a_1 <= ... <= a_n with deadlines d_1 <= ... <= d_n, and batches one after the other: a batch of b starts
when all of it is there, takes l(b) and counts if it is done by the earliest of its deadlines.

Why blocks are enough. (1) Some optimal schedule serves in order: if i < k, k is in an earlier batch A and i in a later
batch B, swap them. i fits in A (a_i <= a_k <= start of A; d_i >= end of B >= end of A), k fits in B (a_k <= start of A
<= start of B; d_k >= d_i >= end of B), and sizes, hence times, stay. Every swap removes an inversion. (2) In some such
schedule each batch is a block of consecutive requests: if a batch has i and j, and k between them is served by nobody,
put k in i's place (a_k <= a_j <= start, d_k >= d_i >= end). Every such step raises the sum of the indices served. (3)
Each batch starts as soon as the worker is free and its last member is there: to be done sooner harms nobody.

So with f_j(c) = the earliest time at which the worker is free and at least c of the first j were answered in time::

    f_j(c) = min( f_{j-1}(c),  min over b of  e = max(f_{j-b}(c - b), a_j) + l(b)  where e <= d_{j-b+1} )

and the optimum is the largest c with f_n(c) finite; by (1) to (3) no schedule is left out.

Why a narrow band of c is enough. Let C be the largest finite c at j. All of that schedule is done by d_j = a_j + D.
Leave out what ends after a_j: one batch that began before a_j, so at most Bmax requests, and others that fit into D
together, so at most Bmax again (b / l(b) grows with b). What is left answers at least C - 2 Bmax and is done by a_j;
whatever comes later starts at a_{j+1} >= a_j at the earliest, so that f_j(c) for c <= C - 2 Bmax may as well be
f_j(C - 2 Bmax). And C grows by at most one with j: take j out of a schedule and it is still one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bench.lab.law import Law

_NEVER = np.int64(1) << 62


def on_time_max(arrival_ns: NDArray[np.int64], law: Law) -> int:
    """How many of the requests one worker can answer within `law.deadline_ns` of their arrival. O(n Bmax**2)."""
    count, size_max = len(arrival_ns), law.size_max
    width = 2 * size_max + 1
    columns = np.arange(width)
    sizes = np.arange(1, size_max + 1)
    spent = law.alpha_ns * sizes + law.beta_ns
    # Row j holds f_j(c) for c = low[j] ... low[j] + width - 1; what is below c = 0 is as f_j(0).
    free = np.full((count + 1, width), _NEVER, np.int64)
    low = np.zeros(count + 1, np.int64)
    low[0] = 1 - width
    free[0] = 0
    for j in range(1, count + 1):
        arrival = arrival_ns[j - 1]
        # A block that starts at its last arrival must be done by its first deadline.
        first = arrival_ns[max(0, j - size_max) : j][::-1]
        fits = np.flatnonzero(arrival + spent[: len(first)] <= first + law.deadline_ns)
        rows = j - sizes[fits]
        row, lowest = np.append(free[j - 1], _NEVER), low[j - 1]
        places = (lowest + np.arange(width + 1))[None, :] - sizes[fits][:, None] - low[rows][:, None]
        before = np.where(places < width, free[rows[:, None], np.clip(places, 0, width - 1)], _NEVER)
        ends = np.maximum(before, arrival) + spent[fits][:, None]
        ends[ends > (first[fits] + law.deadline_ns)[:, None]] = _NEVER
        if len(fits):
            np.minimum(row, ends.min(axis=0), out=row)
        row = np.minimum.accumulate(row[::-1])[::-1]
        grown = int(row[-1] < _NEVER)
        low[j] = lowest + grown
        free[j] = row[columns + grown]
    return int(low[count]) + width - 1
