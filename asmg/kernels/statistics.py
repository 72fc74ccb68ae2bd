"""The statistics of an interaction, and how a period's interactions change what they are made of.

Meaning and formulas: `asmg.statistics`. The serving snapshot computes its inputs with the same functions as training.
"""

import numpy as np

from asmg import layout
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

USER, ITEM, PAIR = 4, 5, 9
"""Statistics of each kind, in this order."""

STATISTICS = USER + ITEM + PAIR

SUMS = 6
"""Numbers that those of a pair are made of: the candidate's share beside the newest click, its largest share, the
weighted sum of all shares, its clicks, its impressions; how often anything was clicked beside the user's clicks.
"""

FURTHEST = np.float32(layout.FURTHEST)
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
    """Of a user.

    recent [3]: its last interactions, the clicks among the last 10 of them, and among all; clicked: earlier clicks.
    """
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
    return np.float32(np.sqrt(ONE + degree))


@inlined
def add_click(
    place: int, weight: np.float32, together: np.float32, passed: np.float32, root: np.float32, sums: Floats
) -> None:
    """Add to a candidate's `sums` [SUMS], which begin with zeros, what it has with one of the user's newest clicks.

    place: of the click, 0 the newest, with its `click_weight`; together, passed: how often the candidate was clicked,
    and shown without a click, beside it; root: its `click_root`. A click of which both are 0 need not be added. The
    last sum is the same for all candidates, and left to the caller.
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
    """Of BLOCK pasts and as many candidates; out [PAIR, BLOCK], one pair a column.

    sums [SUMS, BLOCK]: of the newest clicks (`add_click`); degrees [BLOCK]: how often anything was clicked beside the
    candidate; places [BLOCK]: of the candidate itself among the user's clicks, 0 the newest, -1 none. Who has fewer
    fills up: of a rest the arithmetic would be another, and a pair's numbers would depend on its place.
    """
    for to, of in ((0, 0), (1, 1), (2, 2), (6, 4), (8, 5)):
        x, y = sums[of], out[to]
        for lane in range(BLOCK):
            y[lane] = log1p(x[lane])
    for to, of in ((3, 1), (4, 2)):
        x, y = sums[of], out[to]
        for lane in range(BLOCK):
            y[lane] = np.sqrt(x[lane] / click_root(degrees[lane]))
    clicks, shown, y = sums[3], sums[4], out[5]
    for lane in range(BLOCK):
        y[lane] = rate(clicks[lane], shown[lane], average)
    y = out[7]
    for lane in range(BLOCK):
        y[lane] = ZERO if places[lane] < 0 else ONE / np.float32(1 + places[lane])


@inlined
def standard(x: np.float32, mean: np.float32, by: np.float32) -> np.float32:
    """A statistic as a model reads it."""
    return min(max((x - mean) * by, -FURTHEST), FURTHEST)


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
    nothing, added = np.zeros(4, np.float32), np.empty(SUMS, np.float32)
    sums, numbers = np.zeros((SUMS, BLOCK), np.float32), np.empty((PAIR, BLOCK), np.float32)
    degree, place = np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.int32)
    for low in range(0, len(item), BLOCK):
        size = min(BLOCK, len(item) - low)
        for lane in range(size):
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
                if not 0 < h < known:
                    continue
                faded = np.float32(pair_decay ** (now - paired[h]))
                added[SUMS - 1] += degrees[h] * faded
                n = _place(neighbours, starts[h], starts[h + 1], i) if i > 0 else -1
                if n >= 0:
                    root = click_root(degrees[h] * faded)
                    add_click(q, click_weight(q), together[n] * faded, passed[n] * faded, root, added)
            for k in range(SUMS):
                sums[k, lane] = added[k]
        pair_statistics(sums, degree, place, average, numbers)
        for lane in range(size):
            for k in range(PAIR):
                out[low + lane, USER + ITEM + k] = numbers[k, lane]


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
