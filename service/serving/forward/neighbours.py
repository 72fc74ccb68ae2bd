"""What the statistics compare each candidate with: the user's clicks, and the items clicked beside those.

All candidates are put into one small hash table; then each neighbour of the newest clicks is looked up in it. So a
request costs the number of its candidates plus that of the neighbours of ten items, not their product.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from asmg.kernels.common import ZERO, Floats, Indices, Rows, compiled, inlined
from asmg.kernels.statistics import LOOKED_AT, SUMS, add_click, click_root, click_weight
from service.serving.id_hashes import Hashes

__all__ = ["NeighbourTable", "sum_over_neighbours"]

FREE = np.uint32(0)
"""Marks a free slot of the hash table. Row 0, the cold row, is never put into it."""

SLOTS_PER_CANDIDATE = 4
"""The least number of slots of the hash table for each candidate: few look-ups then take more than one step."""

MARKS_PER_CANDIDATE = 64
MAX_MARKS = 32_768
"""A mark is one byte that says whether any candidate's row has certain last bits. Nearly all neighbours are no
candidates, and their mark says so without a branch. At most so many bytes stay in the processor's first cache.
"""

MARKS_READ_TOGETHER = 8
"""Neighbours whose marks are read before one branch."""


class NeighbourTable(NamedTuple):
    """Which items were clicked beside each item, and how often; empty for a model without statistics."""

    firsts: NDArray[np.uint32]
    """Where the neighbours of each item begin, [I + 1]."""
    rows: NDArray[np.uint32]
    """Rows of the neighbours, those of all items one after the other, [M]."""
    counts: Floats
    """How often each neighbour was clicked beside the item, and shown there without a click, [M, 2]."""


@inlined
def _slot(keys: NDArray[np.uint32], row: np.uint32) -> np.int64:
    """The slot of a row in the hash table, or the free one where it belongs."""
    # Rows are in the order of hashes, so their last bits are spread evenly already.
    mask = len(keys) - 1
    slot = np.int64(row) & mask
    while keys[slot] != FREE and keys[slot] != row:
        slot = (slot + 1) & mask
    return slot


@compiled
def sum_over_neighbours(
    hashes: Hashes,
    history: Hashes,
    candidates: Indices,
    clicked: Indices,
    degrees: Floats,
    table: NeighbourTable,
    same: Rows,
    places: Rows,
) -> Floats:
    """The sums of which `asmg.kernels.statistics.pair_statistics` computes the statistics of candidates and clicks.

    Args:
        hashes, history: of the N candidates and of the user's clicks, newest first.
        candidates, clicked: their rows, 0 for an unknown item.
        degrees: of each item, how often anything was clicked beside it, [I].
        table: of the neighbours.
        same: receives the position of the first candidate with the same row, [N]. `places` and the result are filled
            for these alone.
        places: receives which of the clicks was on the candidate itself, [N]; 0 is the newest, -1 none.

    Returns:
        the sums, float32 [N, SUMS].
    """
    n, size, marked = len(candidates), 64, 1024
    while size < SLOTS_PER_CANDIDATE * n:
        size *= 2
    while marked < min(MARKS_PER_CANDIDATE * n, MAX_MARKS):
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
        elif cold:  # an item that is too new for the snapshot can have been clicked all the same
            for i in range(n):
                if candidates[i] == 0 and places[i] < 0 and hashes[i] == history[q]:
                    places[i] = q
    return _sums(clicked[:LOOKED_AT], degrees, table, keys, at, marks, n)


@compiled
def _sums(
    clicked: Indices,
    degrees: Floats,
    table: NeighbourTable,
    keys: NDArray[np.uint32],
    at: Rows,
    marks: NDArray[np.uint8],
    n: int,
) -> Floats:
    """The sums of n candidates.

    Args:
        clicked: rows of the newest clicks.
        degrees: of each item.
        table: of the neighbours.
        keys, at: hash table from a candidate's row to its position.
        marks: of the candidates' rows.
        n: candidates.
    """
    firsts, neighbours, counts = table.firsts, table.rows, table.counts
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
        for start in range(first, last, MARKS_READ_TOGETHER):
            whole, marked = last - start >= MARKS_READ_TOGETHER, np.uint8(0)
            if whole:
                for m in range(MARKS_READ_TOGETHER):
                    marked |= marks[neighbours[start + m] & mask]
                if not marked:
                    continue
            for m in range(start, start + MARKS_READ_TOGETHER if whole else last):
                row = neighbours[m]
                if marks[row & mask]:
                    slot = _slot(keys, row)
                    if keys[slot] == row:
                        add_click(q, weight, counts[m, 0], counts[m, 1], root, sums[at[slot]])
    return sums
