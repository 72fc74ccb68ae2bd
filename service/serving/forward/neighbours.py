"""What the statistics compare each candidate with: the user's clicks, and the items clicked beside those.

All candidates are put into one small hash table; then each neighbour of the newest clicks is looked up in it. So a
request costs the number of its candidates plus that of the neighbours of ten items, not their product.
"""

import numpy as np
from numpy.typing import NDArray

from asmg.kernels.common import ZERO, Floats, Indices, Rows, compiled, inlined
from asmg.kernels.statistics import LOOKED_AT, SUMS, add_click, click_root, click_weight
from service.serving.forward.items import PairCounts
from service.serving.forward.tables import Lists, Words
from service.serving.id_hashes import Hashes
from service.serving.id_index import Starts

__all__ = ["sum_over_neighbours"]

FREE = np.uint32(0)
"""Marks a free slot of the hash table. The cold row, whose identity this is, is never put into it."""

SLOTS_PER_CANDIDATE = 4
"""The least number of slots of the hash table for each candidate: few look-ups then take more than one step."""

SPREAD, HALF_A_WORD = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)

MARKS_PER_CANDIDATE = 64
MAX_MARKS = 32_768
"""A mark is one byte that says whether any candidate's identity has certain last bits. Nearly all neighbours are no
candidates, and their mark says so without a branch. At most so many bytes stay in the processor's first cache.
"""

MARKS_READ_TOGETHER = 8
"""Neighbours whose marks are read before one branch."""


@inlined
def _slot(keys: NDArray[np.uint32], identity: np.uint32) -> np.int64:
    """The slot of an item in the hash table, or the free one where it belongs."""
    # Identities are consecutive numbers. Whatever pattern those of the candidates have, the product spreads them.
    mask = len(keys) - 1
    slot = np.int64((np.uint64(identity) * SPREAD) >> HALF_A_WORD) & mask
    while keys[slot] != FREE and keys[slot] != identity:
        slot = (slot + 1) & mask
    return slot


@compiled
def sum_over_neighbours(
    hashes: Hashes,
    history: Hashes,
    counts: PairCounts,
    clicked: Indices,
    lists: Lists,
    same: Rows,
    places: Rows,
) -> Floats:
    """The sums of which `asmg.kernels.statistics.pair_statistics` computes the statistics of candidates and clicks.

    Args:
        hashes, history: of the N candidates and of the user's clicks, newest first.
        counts: of the candidates, followed by the clicked items.
        clicked: rows of the clicked items.
        lists: of the neighbours of each item.
        same: receives the position of the first candidate with the same identity, [N]. `places` and the result are
            filled for these alone.
        places: receives which of the clicks was on the candidate itself, [N]; 0 is the newest, -1 none.

    Returns:
        the sums, float32 [N, SUMS].
    """
    n, size, marked = len(hashes), 64, 1024
    while size < SLOTS_PER_CANDIDATE * n:
        size *= 2
    while marked < min(MARKS_PER_CANDIDATE * n, MAX_MARKS):
        marked *= 2
    keys, at, marks = np.zeros(size, np.uint32), np.empty(size, np.int32), np.zeros(marked, np.uint8)
    cold = False
    for i in range(n):
        identity, same[i], places[i] = counts.identities[i], i, -1
        if identity == FREE:
            cold = True
            continue
        slot = _slot(keys, identity)
        if keys[slot] == identity:
            same[i] = at[slot]
        else:
            keys[slot], at[slot], marks[identity & np.uint32(marked - 1)] = identity, i, 1
    for q in range(len(clicked)):
        identity = counts.identities[n + q]
        if identity != FREE:
            slot = _slot(keys, identity)
            if keys[slot] == identity and places[at[slot]] < 0:
                places[at[slot]] = q
        elif cold:  # an item that is too new for the snapshot can have been clicked all the same
            for i in range(n):
                if counts.identities[i] == FREE and places[i] < 0 and hashes[i] == history[q]:
                    places[i] = q
    return _sums(clicked[:LOOKED_AT], counts.degrees[n:], counts.faded[n:], lists, keys, at, marks, n)


@compiled
def _sums(
    clicked: Indices,
    degrees: Floats,
    faded: Floats,
    lists: Lists,
    keys: NDArray[np.uint32],
    at: Rows,
    marks: NDArray[np.uint8],
    n: int,
) -> Floats:
    """The sums of n candidates.

    Args:
        clicked: rows of the newest clicks.
        degrees, faded: of these items, see `PairCounts`.
        lists: of the neighbours of each item.
        keys, at: hash table from a candidate's identity to its position.
        marks: of the candidates' identities.
        n: candidates.
    """
    sums, evidence, ahead, size = np.zeros((n, SUMS), np.float32), ZERO, FREE, len(lists.firsts) - 1
    firsts, neighbours = lists.firsts, lists.rows
    for q in range(len(clicked)):
        # All cache lines are asked for before the first is needed: the processor waits once, not once for each.
        evidence += degrees[q]
        h = clicked[q]
        if h < size and firsts[h] < len(neighbours):
            ahead |= neighbours[firsts[h]]
    for i in range(n):
        sums[i, SUMS - 1] = evidence
    if ahead == FREE and not len(lists.newer_firsts):
        return sums
    for q in range(len(clicked)):
        h, root, weight = clicked[q], click_root(degrees[q]), click_weight(q)
        if h < size:
            _add_neighbours(firsts, neighbours, lists.weights, h, q, weight, root, faded[q], keys, at, marks, sums)
        else:
            _add_neighbours(
                lists.newer_firsts, lists.newer_rows, lists.newer_weights, h - size,
                q, weight, root, faded[q], keys, at, marks, sums,
            )  # fmt: skip
    return sums


@compiled
def _add_neighbours(
    firsts: Starts,
    neighbours: Words,
    counts: Floats,
    h: int,
    q: int,
    weight: np.float32,
    root: np.float32,
    faded: np.float32,
    keys: NDArray[np.uint32],
    at: Rows,
    marks: NDArray[np.uint8],
    sums: Floats,
) -> None:
    """Add what the neighbours of one clicked item say of the candidates.

    Args:
        firsts, neighbours, counts: of the lists.
        h, q: number of the item's list, and place of the click.
        weight, root: `click_weight` and `click_root`.
        faded: what is left of the counts.
        keys, at, marks: as of `_sums`.
        sums: changed in place.
    """
    mask, first, last = np.uint32(len(marks) - 1), np.int64(firsts[h]), np.int64(firsts[h + 1])
    for start in range(first, last, MARKS_READ_TOGETHER):
        whole, marked = last - start >= MARKS_READ_TOGETHER, np.uint8(0)
        if whole:
            for m in range(MARKS_READ_TOGETHER):
                marked |= marks[neighbours[start + m] & mask]
            if not marked:
                continue
        for m in range(start, start + MARKS_READ_TOGETHER if whole else last):
            identity = neighbours[m]
            if marks[identity & mask]:
                slot = _slot(keys, identity)
                if keys[slot] == identity:
                    add_click(q, weight, counts[m, 0] * faded, counts[m, 1] * faded, root, sums[at[slot]])
