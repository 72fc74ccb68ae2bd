"""The statistics of an interaction, and how a period's interactions change what they are made of.

Meaning and formulas: `asmg.statistics`. The serving snapshot computes its inputs with the same functions as training.
"""

import numpy as np

from asmg.kernels.common import ONE, ZERO, Floats, Indices, Rows, compiled, inlined, log1p

__all__ = [
    "FURTHEST",
    "ITEM",
    "LOOKED_AT",
    "PAIR",
    "STATISTICS",
    "SUMS",
    "USER",
    "add_click",
    "click_root",
    "click_weight",
    "count_items",
    "count_pairs",
    "interaction_statistics",
    "item_statistics",
    "pair_statistics",
    "standard",
    "user_statistics",
]

USER, ITEM, PAIR = 4, 5, 8
"""Statistics of each kind, in this order."""

SUMS = 5
"""Numbers that those of a pair are made of: its share beside the newest click, the largest and the weighted sum of all
shares, the clicks and the impressions.
"""

STATISTICS = USER + ITEM + PAIR

FURTHEST = np.float32(5.0)
"""Standard deviations that a standardised number is from the mean at most."""

BLOCK = 64
"""Interactions whose pairs go through the arithmetic together."""

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
    out[0] = log1p(n)
    out[1] = rate(np.float32(recent[1]), min(n, np.float32(10.0)), average)
    out[2] = rate(np.float32(recent[2]), n, average)
    out[3] = log1p(np.float32(clicked))


@compiled
def item_statistics(counts: Floats, missed: int, decay: float, average: np.float32, out: Floats) -> None:
    """Of an item; counts [4]: clicks and impressions that fade, and all of them, `missed` periods ago."""
    faded = np.float32(decay**missed)
    clicks, shown = counts[0] * faded, counts[1] * faded
    out[0] = log1p(clicks)
    out[1] = rate(clicks, shown, average)
    out[2] = log1p(counts[2])
    out[3] = log1p(counts[3])
    out[4] = rate(counts[2], counts[3], average)


@inlined
def click_weight(place: int) -> np.float32:
    """What the user's click at this place counts in `pair_total`; 0 is the newest."""
    return np.float32(FADE**place)


@inlined
def click_root(degree: np.float32) -> np.float32:
    """√(1 + n) of an item beside which anything was clicked n times."""
    return np.sqrt(ONE + degree)


@inlined
def add_click(
    place: int, weight: np.float32, together: np.float32, passed: np.float32, root: np.float32, sums: Floats
) -> None:
    """Add one of the user's newest clicks to a candidate's `sums` [SUMS], which begin with zeros.

    place: of the click, 0 the newest, with its `click_weight`; together, passed: how often the candidate was clicked,
    and shown without a click, beside it; root: its `click_root`. A click of which both are 0 need not be added.
    """
    share = together / root
    if place == 0:
        sums[0] = share
    sums[1] = max(sums[1], share)
    sums[2] += weight * share
    sums[3] += together
    sums[4] += together + passed


@compiled
def pair_statistics(sums: Floats, degrees: Floats, places: Rows, average: np.float32, out: Floats) -> None:
    """Of the pasts of some users and as many candidates; out [PAIR, ≥ N], one pair a column.

    sums [SUMS, ≥ N]: of the newest clicks (`add_click`); degrees [N]: how often anything was clicked beside the
    candidate; places [N]: of the candidate itself among the user's clicks, 0 the newest, -1 none.
    """
    n = len(places)
    for to, of in ((0, 0), (1, 1), (2, 2), (6, 4)):
        x, y = sums[of, :n], out[to, :n]
        for lane in range(n):
            y[lane] = log1p(x[lane])
    for to, of in ((3, 1), (4, 2)):
        x, y = sums[of, :n], out[to, :n]
        for lane in range(n):
            y[lane] = np.sqrt(x[lane] / click_root(degrees[lane]))
    clicks, shown, y = sums[3, :n], sums[4, :n], out[5, :n]
    for lane in range(n):
        y[lane] = rate(clicks[lane], shown[lane], average)
    y = out[7, :n]
    for lane in range(n):
        y[lane] = ZERO if places[lane] < 0 else ONE / np.float32(1 + places[lane])


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
    nothing, added = np.zeros(4, np.float32), np.empty(SUMS, np.float32)
    sums, numbers = np.empty((SUMS, BLOCK), np.float32), np.empty((PAIR, BLOCK), np.float32)
    degree, place = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
    for low in range(0, len(item), BLOCK):
        m = min(BLOCK, len(item) - low)
        for lane in range(m):
            b = low + lane
            i, first = item[b], offsets[b]
            length = offsets[b + 1] - first
            user_statistics(recent[b], length, average, out[b, :USER])
            degree[lane], place[lane] = ZERO, -1
            if 0 < i < known:
                item_statistics(counts[i], now - counted[i], decay, average, out[b, USER : USER + ITEM])
                degree[lane] = degrees[i] * np.float32(pair_decay ** (now - paired[i]))
            else:
                item_statistics(nothing, 0, decay, average, out[b, USER : USER + ITEM])
            for q in range(length):
                if history[first + q] == i and i > 0:
                    place[lane] = q
                    break
            added[:] = ZERO
            for q in range(min(length, LOOKED_AT)):
                h = history[first + q]
                if not (0 < h < known and i > 0):
                    continue
                for n in range(neighbours.shape[1]):
                    if neighbours[h, n] == i:
                        faded = np.float32(pair_decay ** (now - paired[h]))
                        root = click_root(degrees[h] * faded)
                        add_click(q, click_weight(q), together[h, n] * faded, passed[h, n] * faded, root, added)
                        break
            for k in range(SUMS):
                sums[k, lane] = added[k]
        pair_statistics(sums, degree, place[:m], average, numbers)
        for lane in range(m):
            for k in range(PAIR):
                out[low + lane, USER + ITEM + k] = numbers[k, lane]


@inlined
def standard(x: np.float32, mean: np.float32, by: np.float32) -> np.float32:
    """A statistic as a model reads it."""
    return min(max((x - mean) * by, -FURTHEST), FURTHEST)


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
