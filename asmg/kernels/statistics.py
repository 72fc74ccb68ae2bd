"""The statistics of an interaction as machine code (meaning and formulas: `asmg.statistics`).

The serving snapshot computes its inputs with the same functions as training.
"""

import numpy as np

from asmg import layout
from asmg.kernels.common import ONE, ZERO, Floats, Indices, Rows, compiled, inlined, log1p

__all__ = [
    "BLOCK",
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
    "fading",
    "fadings",
    "interaction_statistics",
    "item_statistics",
    "pair_statistics",
    "standard",
    "user_statistics",
]

USER, ITEM, PAIR = 4, 5, 9
"""Number of statistics of the user, the item and the pair, in this order."""

STATISTICS = USER + ITEM + PAIR
"""Number of all statistics."""

SUMS = 6
"""Number of sums from which the pair statistics are computed: the candidate's share beside the newest click, its
largest share, the weighted sum of its shares, its clicks, its impressions; the clicks on any item beside the user's
clicks.
"""

FURTHEST = np.float32(layout.FURTHEST)
"""Limit of a standardised number, as float32."""

BLOCK = 64
"""Interactions whose pair statistics are computed together, as lanes."""

LOOKED_AT = 10
"""Number of the user's newest clicks with which a candidate is compared."""

PRIOR = np.float32(2.0)
"""Number of interactions at the average click rate that are added to every rate."""

FADE = np.float32(0.7)
"""Weight of a click relative to the next newer one."""


@inlined
def rate(clicks: np.float32, shown: np.float32, average: np.float32) -> np.float32:
    """The click rate, close to the average if there are few impressions."""
    return (clicks + PRIOR * average) / (shown + PRIOR)


@compiled
def user_statistics(recent: Rows, clicked: int, average: np.float32, out: Floats) -> None:
    """Compute the statistics of a user, out [USER].

    Args:
        recent: [3], number of its last interactions, of clicks among the last 10, and of clicks among all of them.
        clicked: length of its history.
        average: the average click rate.
        out: the result.
    """
    n = np.float32(recent[0])
    out[0] = log1p(n)
    out[1] = rate(np.float32(recent[1]), min(n, np.float32(10.0)), average)
    out[2] = rate(np.float32(recent[2]), n, average)
    out[3] = log1p(np.float32(clicked))


@inlined
def fading(decay: float, missed: int) -> np.float32:
    """Weight of counts that have not changed for `missed` periods, each of which leaves them the share `decay`."""
    return np.float32(decay**missed)


@compiled
def fadings(decay: float, periods: int) -> Floats:
    """`fading` for 0, 1, … up to `periods` missed ones: a table for code that needs it for many items.

    The last number also holds for more periods: the table ends early where nothing changes any more.
    """
    size = 1
    while size <= periods and decay < 1 and fading(decay, size - 1) > ZERO:
        size += 1
    found = np.empty(size, np.float32)
    for missed in range(size):
        found[missed] = fading(decay, missed)
    return found


@compiled
def item_statistics(counts: Floats, faded: Floats, average: np.float32, out: Floats) -> None:
    """Compute the statistics of BLOCK items, out [ITEM, BLOCK], one item per column.

    Callers with fewer items fill up the block, as for `pair_statistics`.

    Args:
        counts: [4, BLOCK], fading clicks and impressions, and all clicks and impressions.
        faded: [BLOCK], the weight of the fading counts now (`fading`).
        average: the average click rate.
        out: the result.
    """
    clicks, shown = counts[0], counts[1]
    late, late_rate = out[0], out[1]
    for lane in range(BLOCK):
        late[lane] = log1p(clicks[lane] * faded[lane])
        late_rate[lane] = rate(clicks[lane] * faded[lane], shown[lane] * faded[lane], average)
    clicks, shown = counts[2], counts[3]
    all_clicks, all_shown, all_rate = out[2], out[3], out[4]
    for lane in range(BLOCK):
        all_clicks[lane] = log1p(clicks[lane])
        all_shown[lane] = log1p(shown[lane])
        all_rate[lane] = rate(clicks[lane], shown[lane], average)


@inlined
def click_weight(place: int) -> np.float32:
    """Weight of the user's click at a place (0 is the newest) in the weighted sum of shares."""
    return np.float32(FADE**place)


@inlined
def click_root(degree: np.float32) -> np.float32:
    """√(1 + n) of an item beside which n clicks were made."""
    return np.float32(np.sqrt(ONE + degree))


@inlined
def add_click(
    place: int, weight: np.float32, together: np.float32, passed: np.float32, root: np.float32, sums: Floats
) -> None:
    """Add the counts of a candidate beside one of the user's newest clicks to its `sums` [SUMS], which start at zero.

    Clicks for which `together` and `passed` are 0 may be skipped. The last sum, which is the same for all candidates,
    is left to the caller.

    Args:
        place, weight: of the click (0 is the newest), and its `click_weight`.
        together, passed: how often the candidate was clicked, and shown without a click, beside it.
        root: the `click_root` of the clicked item.
        sums: changed in place.
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
    """Compute the pair statistics of BLOCK candidates, out [PAIR, BLOCK], one pair per column.

    Callers with fewer candidates fill up the block: with a shorter loop the rounding, and so a pair's statistics, could
    depend on its place.

    Args:
        sums: [SUMS, BLOCK], see `add_click`.
        degrees: [BLOCK], clicks on any item beside the candidate.
        places: [BLOCK], place of the candidate among the user's clicks, 0 for the newest, -1 for none.
        average: the average click rate.
        out: the result.
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
    """A statistic standardised and limited, as a model reads it."""
    return min(max((x - mean) * by, -FURTHEST), FURTHEST)


@inlined
def _place(ids: Rows, first: int, last: int, wanted: int) -> int:
    """The place of an item among the ascending ids[first:last]; -1 if it is missing."""
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
    """Compute the statistics out [N, S] of a log's interactions; rows past the end of the state have zero counts.

    Args:
        item, history, offsets, recent: the log.
        counts, counted, starts, neighbours, together, passed, degrees, paired: the state, see
            `asmg.statistics.Statistics`.
        now: number of closed periods.
        decay, pair_decay: weights that the counts of items and of pairs keep per period.
        average: the average click rate.
        out: the result.
    """
    known = len(counts)
    added, sums = np.empty(SUMS, np.float32), np.zeros((SUMS, BLOCK), np.float32)
    of_item, numbers = np.zeros((4, BLOCK), np.float32), np.empty((ITEM + PAIR, BLOCK), np.float32)
    weight, degree = np.zeros(BLOCK, np.float32), np.zeros(BLOCK, np.float32)
    place = np.zeros(BLOCK, np.int32)
    for low in range(0, len(item), BLOCK):
        size = min(BLOCK, len(item) - low)
        for lane in range(size):
            b = low + lane
            i, first = item[b], offsets[b]
            length = offsets[b + 1] - first
            user_statistics(recent[b], length, average, out[b, :USER])
            degree[lane], place[lane], of_item[:, lane] = ZERO, -1, ZERO
            if 0 < i < known:
                of_item[:, lane], weight[lane] = counts[i], fading(decay, now - counted[i])
                degree[lane] = degrees[i] * fading(pair_decay, now - paired[i])
            for q in range(length):
                if history[first + q] == i and i > 0:
                    place[lane] = q
                    break
            added[:] = ZERO
            for q in range(min(length, LOOKED_AT)):
                h = history[first + q]
                if not 0 < h < known:
                    continue
                faded = fading(pair_decay, now - paired[h])
                added[SUMS - 1] += degrees[h] * faded
                n = _place(neighbours, starts[h], starts[h + 1], i) if i > 0 else -1
                if n >= 0:
                    root = click_root(degrees[h] * faded)
                    add_click(q, click_weight(q), together[n] * faded, passed[n] * faded, root, added)
            for k in range(SUMS):
                sums[k, lane] = added[k]
        item_statistics(of_item, weight, average, numbers[:ITEM])
        pair_statistics(sums, degree, place, average, numbers[ITEM:])
        for lane in range(size):
            for k in range(ITEM + PAIR):
                out[low + lane, USER + k] = numbers[k, lane]
