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

USER, ITEM, PAIR = 4, 5, 8
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
    """Of a user; recent [3]: interactions, clicks among the last 10, clicks among all of these; clicked: earlier clicks."""
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
    total = ZERO
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
    root = np.sqrt(ONE + degree)
    out[0] = np.log1p(last)
    out[1] = np.log1p(most)
    out[2] = np.log1p(total)
    out[3] = np.sqrt(likeness / root)
    out[4] = np.sqrt(total / root)
    out[5] = rate(clicks, shown, average)
    out[6] = np.log1p(shown)
    out[7] = ZERO if place < 0 else ONE / np.float32(1 + place)


@compiled
def interaction_statistics(
    item: Rows,
    history: Rows,
    offsets: Indices,
    recent: Rows,
    counts: Floats,
    counted: Rows,
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

    item [N], history, offsets, recent [N, 3]: the log. counts [I, 4] as of period counted [I]; neighbours, together,
    passed [I, K] and degrees [I] as of period paired [I]. now: periods closed.
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
                if i > 0:
                    for n in range(neighbours.shape[1]):
                        if neighbours[h, n] == i:
                            near[q], far[q] = together[h, n] * faded, passed[h, n] * faded
                            break
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
def count_pairs(
    item: Rows,
    history: Rows,
    offsets: Indices,
    label: Floats,
    neighbours: Rows,
    together: Floats,
    passed: Floats,
    degrees: Floats,
    paired: Rows,
    now: int,
    decay: float,
) -> None:
    """Add what a period's users clicked, and passed, beside their newest clicks; of each item the K best remain.

    neighbours [I, K] (0 is none), together, passed [I, K] and degrees [I] are as of period paired [I].
    """
    rows, k = len(degrees), neighbours.shape[1]
    found = 0
    for b in range(len(item)):
        found += 2 * min(offsets[b + 1] - offsets[b], PAIRED)
    keys, clicks = np.empty(found, np.int64), np.empty(found, np.float32)
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
    order = np.argsort(keys[:found], kind="mergesort")
    ids, near, far = np.empty(k + found, np.int32), np.empty(k + found, np.float32), np.empty(k + found, np.float32)
    at = 0
    while at < found:
        i = keys[order[at]] // rows
        faded = np.float32(decay ** (now - paired[i]))
        size = 0
        for n in range(k):
            if neighbours[i, n] > 0:
                ids[size], near[size], far[size] = neighbours[i, n], together[i, n] * faded, passed[i, n] * faded
                size += 1
        known, gained = size, ZERO
        while at < found and keys[order[at]] // rows == i:
            key, clicked, passes = keys[order[at]], ZERO, ZERO
            while at < found and keys[order[at]] == key:
                if clicks[order[at]] > ZERO:
                    clicked += ONE
                else:
                    passes += ONE
                at += 1
            gained += clicked
            j, place = np.int32(key - i * rows), size
            for n in range(known):
                if ids[n] == j:
                    place = n
                    break
            if place == size:
                if clicked == ZERO:  # only what was clicked beside an item becomes its neighbour
                    continue
                ids[size], near[size], far[size] = j, ZERO, ZERO
                size += 1
            near[place] += clicked
            far[place] += passes
        degrees[i] = degrees[i] * faded + gained
        paired[i] = now
        # The most counted come first; of equals those that are new, for the others fade.
        best = np.arange(size)[::-1]
        if size > k:
            best = best[np.argsort(-near[:size][::-1], kind="mergesort")]
        kept = min(size, k)
        for n in range(k):
            if n < kept:
                neighbours[i, n], together[i, n], passed[i, n] = ids[best[n]], near[best[n]], far[best[n]]
            else:
                neighbours[i, n], together[i, n], passed[i, n] = 0, ZERO, ZERO
