"""The statistics of an interaction, and how a period's interactions change what they are made of.

Meaning and formulas: `asmg.statistics`. The serving snapshot computes its inputs with the same functions as training.
"""

import numpy as np

from asmg.kernels.common import ONE, ZERO, Floats, Indices, Rows, compiled, inlined

__all__ = [
    "ITEM",
    "LOOKED_AT",
    "PAIR",
    "USER",
    "count_items",
    "count_pairs",
    "interaction_statistics",
    "item_statistics",
    "pair_statistics",
    "user_statistics",
]

USER, ITEM, PAIR = 4, 5, 9
"""Statistics of each kind, in this order."""

LOOKED_AT = 10
"""Newest clicks of a user that a candidate is compared with."""

PAIRED = 5
"""Newest clicks of a user that an interaction is counted as a pair with."""

PRIOR = np.float32(2.0)
"""Interactions at the average click rate that every rate begins with."""

FADE = np.float32(0.7)
"""Weight of a click among those looked at, against the one after it."""


@inlined
def rate(clicks: np.float32, shown: np.float32, average: np.float32) -> np.float32:
    """The click rate, drawn towards the average where little is known."""
    return (clicks + PRIOR * average) / (shown + PRIOR)


@compiled
def user_statistics(recent: Rows, clicked: int, average: np.float32, out: Floats) -> None:
    """Of a user.

    recent [3]: its last interactions, the clicks among the last 10 of them, and among all; clicked: earlier clicks.
    """
    n = np.float32(recent[0])
    out[0] = np.log1p(n)
    out[1] = rate(np.float32(recent[1]), min(n, np.float32(10.0)), average)
    out[2] = rate(np.float32(recent[2]), n, average)
    out[3] = np.log1p(np.float32(clicked))


@compiled
def item_statistics(counts: Floats, missed: int, decay: float, average: np.float32, out: Floats) -> None:
    """Of an item; counts [4]: clicks and impressions that fade, and all of them, `missed` periods ago."""
    faded = np.float32(decay**missed)
    clicks, shown = counts[0] * faded, counts[1] * faded
    out[0] = np.log1p(clicks)
    out[1] = rate(clicks, shown, average)
    out[2] = np.log1p(counts[2])
    out[3] = np.log1p(counts[3])
    out[4] = rate(counts[2], counts[3], average)


@compiled
def pair_statistics(
    together: Floats, passed: Floats, degrees: Floats, looked_at: int, degree: np.float32, place: int,
    average: np.float32, out: Floats,
) -> None:  # fmt: skip
    """Of a user's past and a candidate.

    together, passed: of each of the `looked_at` newest clicks, the newest first, how often the candidate was clicked,
    and shown without a click, beside it; degrees: how often anything was clicked beside it; degree: beside the
    candidate. place: of the candidate itself among the user's clicks, 0 the newest, -1 none.
    """
    last, most, likeness, weight, clicks, shown = ZERO, ZERO, ZERO, ONE, ZERO, ZERO
    total, evidence = ZERO, ZERO
    for q in range(looked_at):
        share = together[q] / np.sqrt(ONE + degrees[q])
        if q == 0:
            last = share
        most = max(most, share)
        total += weight * share
        likeness = max(likeness, share)
        weight *= FADE
        clicks += together[q]
        shown += together[q] + passed[q]
        evidence += degrees[q]
    root = np.sqrt(ONE + degree)
    out[0] = np.log1p(last)
    out[1] = np.log1p(most)
    out[2] = np.log1p(total)
    out[3] = np.sqrt(likeness / root)
    out[4] = np.sqrt(total / root)
    out[5] = rate(clicks, shown, average)
    out[6] = np.log1p(shown)
    out[8] = np.log1p(evidence)
    out[7] = ZERO if place < 0 else ONE / np.float32(1 + place)


@inlined
def _place(ids: Rows, first: int, last: int, wanted: int) -> int:
    """Where an item is among the ascending ids[first:last]; -1 where it is not."""
    end = last
    while first < last:
        middle = (first + last) // 2
        if ids[middle] < wanted:
            first = middle + 1
        else:
            last = middle
    return first if first < end and ids[first] == wanted else -1


@compiled
def interaction_statistics(
    item: Rows,
    history: Rows,
    offsets: Indices,
    recent: Rows,
    counts: Floats,
    counted: Rows,
    starts: Indices,
    neighbours: Rows,
    together: Floats,
    passed: Floats,
    degrees: Floats,
    paired: Rows,
    now: int,
    decay: float,
    pair_decay: float,
    average: np.float32,
    out: Floats,
) -> None:
    """Out [N, S] of a log's interactions; a row past the end of the state is one of nobody.

    item [N], history, offsets, recent [N, 3]: the log. The rest is the state, see `asmg.statistics.Statistics`, after
    `now` closed periods.
    """
    known = len(counts)
    nothing = np.zeros(4, np.float32)
    near, far = np.empty(LOOKED_AT, np.float32), np.empty(LOOKED_AT, np.float32)
    around = np.empty(LOOKED_AT, np.float32)
    for b in range(len(item)):
        i, first = item[b], offsets[b]
        length = offsets[b + 1] - first
        user_statistics(recent[b], length, average, out[b, :USER])
        if 0 < i < known:
            item_statistics(counts[i], now - counted[i], decay, average, out[b, USER : USER + ITEM])
        else:
            item_statistics(nothing, 0, decay, average, out[b, USER : USER + ITEM])
        looked_at, place = min(length, LOOKED_AT), -1
        for q in range(length):
            if history[first + q] == i and i > 0:
                place = q
                break
        for q in range(looked_at):
            h = history[first + q]
            near[q] = far[q] = around[q] = ZERO
            if 0 < h < known:
                faded = np.float32(pair_decay ** (now - paired[h]))
                around[q] = degrees[h] * faded
                n = _place(neighbours, starts[h], starts[h + 1], i) if i > 0 else -1
                if n >= 0:
                    near[q], far[q] = together[n] * faded, passed[n] * faded
        degree = ZERO
        if 0 < i < known:
            degree = degrees[i] * np.float32(pair_decay ** (now - paired[i]))
        pair_statistics(near, far, around, looked_at, degree, place, average, out[b, USER + ITEM :])


@compiled
def count_items(item: Rows, label: Floats, counts: Floats, counted: Rows, now: int, decay: float) -> None:
    """Add a period's interactions to the counts [I, 4], which are as of period counted [I]; now: of this period."""
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
    """Each pair that a log counts, as the first one's row · rows + the other's, and whether it was clicked."""
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
    """Add what a period's users clicked, and passed, beside their newest clicks.

    `degrees` and `paired` are changed in place; returned are `starts`, `neighbours`, `together` and `passed` anew, with
    at most `most` neighbours of those items that the period brought a pair. Their lists are merged with what is new;
    all others are copied as they are.
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
                if not known and clicked == ZERO:  # only what was clicked beside an item becomes its neighbour
                    continue
            top += 1
        degrees[i] = degrees[i] * faded + gained
        paired[i] = now
        if top - first > most:
            # Of equals those with the higher row, who are newer: rows are numbered as items appear.
            ranked = top - 1 - np.argsort(-near[first:top][::-1], kind="mergesort")
            top = first
            for n in np.sort(ranked[:most]):
                ids[top], near[top], far[top] = ids[n], near[n], far[n]
                top += 1
        ends[i + 1] = top
    return ends, ids[:top], near[:top], far[:top]
