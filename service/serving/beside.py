"""What the forward pass compares each candidate with: the clicks of the user's past, and what was clicked beside them.

All candidates are put into one small table; then each neighbour of the newest clicks is looked up in it. So a request
costs what its candidates and the neighbours of ten items are, not their product.
"""

import numpy as np
from numpy.typing import NDArray

from asmg.kernels.common import ZERO, Floats, Indices, Rows, compiled, inlined
from asmg.kernels.statistics import LOOKED_AT, SUMS, add_click, click_root, click_weight

__all__ = ["find_beside"]

FREE = np.uint32(0)
"""Of the table: row 0 is in none, for it is nobody's."""

SPARSE = 4
"""Places of the table for each candidate at least: few look-ups take more than one step."""

MARKS_OF_ONE = 64
MOST_MARKS = 32_768
"""Marks for each candidate, at least, and in all: they stay in the processor's nearest cache. Nearly all neighbours are
no candidates, and their place among the marks says so without a branch.
"""

TOGETHER = 8
"""Neighbours whose marks are read before one branch."""


@inlined
def _slot(keys: NDArray[np.uint32], row: np.uint32) -> np.int64:
    """The place of a row in the table, or the free one where it belongs."""
    # Rows are in the order of hashes, so that their last bits are spread evenly already.
    mask = len(keys) - 1
    slot = np.int64(row) & mask
    while keys[slot] != FREE and keys[slot] != row:
        slot = (slot + 1) & mask
    return slot


@compiled
def find_beside(
    asked: NDArray[np.uint64],
    history: NDArray[np.uint64],
    candidates: Indices,
    clicked: Indices,
    degrees: Floats,
    firsts: NDArray[np.uint32],
    neighbours: NDArray[np.uint32],
    pairs: Floats,
    same: Rows,
    places: Rows,
) -> Floats:
    """What `asmg.kernels.statistics.pair_statistics` makes its numbers of.

    Args:
        asked, history: hashes of the N candidates and of the user's clicks, newest first.
        candidates, clicked: their rows, 0 for one that the snapshot does not know.
        degrees: of each item, how often anything was clicked beside it, [I].
        firsts: where the neighbours of each item begin, [I + 1].
        neighbours: their rows, those of all items one after the other, [M].
        pairs: how often each was clicked, and shown without a click, beside the item, [M, 2].
        same: receives the position of the first candidate with the same row, [N]. What follows is of these alone.
        places: receives which of the clicks is of the candidate itself, 0 the newest, -1 none, [N].

    Returns:
        the sums [N, SUMS].
    """
    n, size, marked = len(candidates), 64, 1024
    while size < SPARSE * n:
        size *= 2
    while marked < min(MARKS_OF_ONE * n, MOST_MARKS):
        marked *= 2
    keys, at, marks = np.zeros(size, np.uint32), np.empty(size, np.int32), np.zeros(marked, np.uint8)
    cold = False
    for i in range(n):
        row, same[i], places[i] = np.uint32(candidates[i]), i, -1
        if row == FREE:
            cold = True
            continue
        slot = _slot(keys, row)
        if keys[slot] == row:
            same[i] = at[slot]
        else:
            keys[slot], at[slot], marks[row & np.uint32(marked - 1)] = row, i, 1
    for q in range(len(clicked)):
        row = np.uint32(clicked[q])
        if row != FREE:
            slot = _slot(keys, row)
            if keys[slot] == row and places[at[slot]] < 0:
                places[at[slot]] = q
        elif cold:  # an item that is too new for the snapshot can be clicked, and come again, all the same
            for i in range(n):
                if candidates[i] == 0 and places[i] < 0 and asked[i] == history[q]:
                    places[i] = q
    return _sums(clicked[:LOOKED_AT], degrees, firsts, neighbours, pairs, keys, at, marks, n)


@compiled
def _sums(
    clicked: Indices,
    degrees: Floats,
    firsts: NDArray[np.uint32],
    neighbours: NDArray[np.uint32],
    pairs: Floats,
    keys: NDArray[np.uint32],
    at: Rows,
    marks: NDArray[np.uint8],
    n: int,
) -> Floats:
    """Of n candidates that are in the table."""
    sums, evidence, ahead = np.zeros((n, SUMS), np.float32), ZERO, FREE
    for h in clicked:
        # All cache lines are asked for before the first is needed: the processor waits once, not once for each.
        evidence += degrees[h]
        if firsts[h] < len(neighbours):
            ahead |= neighbours[firsts[h]]
    for i in range(n):
        sums[i, SUMS - 1] = evidence
    if ahead == FREE:
        return sums
    mask = np.uint32(len(marks) - 1)
    for q in range(len(clicked)):
        h = clicked[q]
        root, weight = click_root(degrees[h]), click_weight(q)
        first, last = np.int64(firsts[h]), np.int64(firsts[h + 1])
        for start in range(first, last, TOGETHER):
            whole, marked = last - start >= TOGETHER, np.uint8(0)
            if whole:
                for m in range(TOGETHER):
                    marked |= marks[neighbours[start + m] & mask]
                if not marked:
                    continue
            for m in range(start, start + TOGETHER if whole else last):
                row = neighbours[m]
                if marks[row & mask]:
                    slot = _slot(keys, row)
                    if keys[slot] == row:
                        add_click(q, weight, pairs[m, 0], pairs[m, 1], root, sums[at[slot]])
    return sums
