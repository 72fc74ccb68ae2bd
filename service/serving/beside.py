"""What the forward pass compares each candidate with: the clicks of the user's past, and what is clicked beside them.

All candidates are put into one small table; then each neighbour of the newest clicks is looked up in it. So a request
costs what its candidates and the neighbours of ten items are, not their product.
"""

import numpy as np
from numpy.typing import NDArray

from asmg.kernels.common import ZERO, Floats, Indices, Rows, compiled
from asmg.kernels.statistics import LOOKED_AT, SUMS, add_click, click_root, click_weight

__all__ = ["find_beside"]

FREE = np.uint32(0)
"""Of the table: row 0 is in none, for it is nobody's."""

SPARSE = 4
"""Places of the table for each candidate at least: few look-ups take more than one step."""


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
        same: receives the position of the first candidate with the same row, [N].
        places: receives which of the clicks is of the candidate itself, 0 the newest, -1 none, [N].

    Returns:
        [N, SUMS], right for the first candidate of each row.
    """
    n, size = len(candidates), 64
    while size < SPARSE * n:
        size *= 2
    mask = np.int64(size - 1)
    keys, at = np.zeros(size, np.uint32), np.empty(size, np.int32)
    cold = 0
    for i in range(n):
        row, same[i], places[i] = np.uint32(candidates[i]), i, -1
        if row == FREE:
            cold += 1
            continue
        # Rows are in the order of hashes, so their last bits are spread evenly already.
        slot = np.int64(row) & mask
        while keys[slot] != FREE and keys[slot] != row:
            slot = (slot + 1) & mask
        if keys[slot] == row:
            same[i] = at[slot]
        else:
            keys[slot], at[slot] = row, i
    for q in range(len(clicked)):
        row = np.uint32(clicked[q])
        if row != FREE:
            slot = np.int64(row) & mask
            while keys[slot] != FREE and keys[slot] != row:
                slot = (slot + 1) & mask
            if keys[slot] == row and places[at[slot]] < 0:
                places[at[slot]] = q
        elif cold:  # an item that is too new for the snapshot can be clicked, and come again, all the same
            for i in range(n):
                if candidates[i] == 0 and places[i] < 0 and asked[i] == history[q]:
                    places[i] = q
    for i in range(n):
        places[i] = places[same[i]]
    sums, looked_at = np.zeros((n, SUMS), np.float32), min(len(clicked), LOOKED_AT)
    evidence, ahead = ZERO, np.uint32(0)
    for q in range(looked_at):
        # All cache lines are asked for before the first is needed: the processor waits once, not once for each.
        evidence += degrees[clicked[q]]
        if firsts[clicked[q]] < len(neighbours):
            ahead |= neighbours[firsts[clicked[q]]]
    for i in range(n):
        sums[i, SUMS - 1] = evidence
    if ahead == FREE:
        return sums
    for q in range(looked_at):
        h = clicked[q]
        root, weight = click_root(degrees[h]), click_weight(q)
        for m in range(firsts[h], firsts[h + 1]):
            row = neighbours[m]
            slot = np.int64(row) & mask
            while keys[slot] != FREE and keys[slot] != row:
                slot = (slot + 1) & mask
            if keys[slot] == row:
                add_click(q, weight, pairs[m, 0], pairs[m, 1], root, sums[at[slot]])
    return sums
