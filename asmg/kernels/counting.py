"""Counting a period's interactions, which changes what the statistics are made of (`asmg.statistics`)."""

import numpy as np

from asmg.kernels.common import ONE, ZERO, Floats, Indices, Rows, compiled

__all__ = ["count_items", "count_pairs"]

PAIRED = 5
"""Number of the user's newest clicks with which an interaction is counted as a pair."""


@compiled
def count_items(item: Rows, label: Floats, counts: Floats, counted: Rows, now: int, decay: float) -> None:
    """Add the interactions of period `now` to the counts [I, 4], which are those at period counted [I]; in place."""
    for b in range(len(item)):
        i = item[b]
        if i == 0:
            continue
        if counted[i] < now:
            faded = np.float32(decay ** (now - counted[i]))
            counts[i, 0] *= faded
            counts[i, 1] *= faded
            counted[i] = now
        counts[i, 0] += label[b]
        counts[i, 2] += label[b]
        counts[i, 1] += ONE
        counts[i, 3] += ONE


@compiled
def _pairs(item: Rows, history: Rows, offsets: Indices, label: Floats, rows: int) -> tuple[Indices, Floats]:
    """The pairs of a log as keys first · rows + second, and 1 for a clicked pair, else 0."""
    most = 0
    for b in range(len(item)):
        most += 2 * min(offsets[b + 1] - offsets[b], PAIRED)
    keys, clicks = np.empty(most, np.int64), np.empty(most, np.float32)
    found = 0
    for b in range(len(item)):
        i = np.int64(item[b])
        for q in range(min(offsets[b + 1] - offsets[b], PAIRED)):
            h = np.int64(history[offsets[b] + q])
            if h == i or h == 0 or i == 0:
                continue
            keys[found], clicks[found] = h * rows + i, label[b]
            found += 1
            if label[b] > ZERO:
                keys[found], clicks[found] = i * rows + h, ONE
                found += 1
    return keys[:found], clicks[:found]


@compiled
def count_pairs(
    item: Rows,
    history: Rows,
    offsets: Indices,
    label: Floats,
    starts: Indices,
    neighbours: Rows,
    together: Floats,
    passed: Floats,
    degrees: Floats,
    paired: Rows,
    most: int,
    now: int,
    decay: float,
) -> tuple[Indices, Rows, Floats, Floats]:
    """Add what the users of period `now` clicked, or did not click, beside their newest clicks.

    The lists of items with new pairs are merged and cut to `most` neighbours, all other lists are copied. `degrees` and
    `paired` are changed in place.

    Returns:
        the new `starts`, `neighbours`, `together` and `passed`.
    """
    rows = len(degrees)
    keys, clicks = _pairs(item, history, offsets, label, rows)
    order = np.argsort(keys, kind="mergesort")
    size = len(neighbours) + len(keys)
    ids, near, far = np.empty(size, np.int32), np.empty(size, np.float32), np.empty(size, np.float32)
    ends = np.empty(rows + 1, np.int64)
    ends[0] = at = top = 0
    for i in range(rows):
        old, end, first = starts[i], starts[i + 1], top
        if at == len(keys) or keys[order[at]] // rows != i:
            for n in range(old, end):
                ids[top], near[top], far[top] = neighbours[n], together[n], passed[n]
                top += 1
            ends[i + 1] = top
            continue
        faded, gained = np.float32(decay ** (now - paired[i])), ZERO
        while old < end or (at < len(keys) and keys[order[at]] // rows == i):
            j = rows
            if at < len(keys) and keys[order[at]] // rows == i:
                j = keys[order[at]] - i * rows
            known = old < end and neighbours[old] <= j
            if known:
                ids[top], near[top], far[top] = neighbours[old], together[old] * faded, passed[old] * faded
                old += 1
            else:
                ids[top], near[top], far[top] = j, ZERO, ZERO
            if ids[top] == j:
                clicked, key = ZERO, keys[order[at]]
                while at < len(keys) and keys[order[at]] == key:
                    if clicks[order[at]] > ZERO:
                        clicked += ONE
                    else:
                        far[top] += ONE
                    at += 1
                gained += clicked
                near[top] += clicked
                if not known and clicked == ZERO:  # only a clicked item becomes a neighbour
                    continue
            top += 1
        degrees[i] = degrees[i] * faded + gained
        paired[i] = now
        if top - first > most:
            # Of equals the higher row is kept: it is the newer item.
            ranked = top - 1 - np.argsort(-near[first:top][::-1], kind="mergesort")
            top = first
            for n in np.sort(ranked[:most]):
                ids[top], near[top], far[top] = ids[n], near[n], far[n]
                top += 1
        ends[i + 1] = top
    return ends, ids[:top], near[:top], far[:top]
