"""Sampling of negatives for logs that have only positives."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from asmg.datasets.field_columns import FieldColumn
from asmg.datasets.log import IdArray, IndexArray, InteractionLog

SamplingMode = Literal["whole_log", "so_far"]
"""Which interactions of the user exclude an item, see `sample_negatives`."""

# Rounds of drawing for all rows together. Rows that are then still without a negative, those of users who know nearly
# every item, are drawn one by one. A user who knows half of the items is left over once in 2**32 rows.
_ROUNDS = 32


class SampledLog(NamedTuple):
    """A log with sampled negatives."""

    log: InteractionLog
    """Every positive followed by its negatives, which have its user, timestamp and period and another item."""
    without_negative: int
    """Number of positives without negatives, because their user has interacted with every item."""


def sample_negatives(
    log: InteractionLog,
    *,
    rng: np.random.Generator,
    per_positive: int = 1,
    mode: SamplingMode = "whole_log",
) -> SampledLog:
    """Add `per_positive` negatives after each positive of a log of positives.

    A negative is drawn uniformly and independently from the items of the log that its user

    - `whole_log`: has no interaction with anywhere in the log;
    - `so_far`: has no interaction with up to and including the positive, in time order (rows of one millisecond: in the
      order of the log). An item chosen later may be drawn, as in a live service, which cannot look ahead.

    A positive without such an item gets no negative and is counted. Equal seeds give equal logs. A million positives
    take about a second.

    Raises:
        ValueError: the log has a negative, or an argument is invalid.
    """
    if per_positive < 1:
        raise ValueError(f"per_positive: expected at least 1; received {per_positive}")
    if mode not in ("whole_log", "so_far"):
        raise ValueError(f"mode: expected 'whole_log' or 'so_far'; received {mode!r}")
    if not log.labels.all():
        raise ValueError(f"log: expected positives only; received {int((log.labels == 0).sum())} negatives")
    n = len(log)
    if not n:
        return SampledLog(log, 0)
    users, _ = _number(log.user_ids)
    items, item_ids = _number(log.item_ids)
    time = np.empty(n, np.int64)
    time[log.time_order()] = np.arange(n)
    has_negative, drawn = draw_negatives(
        users, items, time, len(item_ids), per_positive=per_positive, whole_log=mode == "whole_log", rng=rng
    )

    copies = np.where(has_negative, 1 + per_positive, 1)
    source = np.repeat(np.arange(n), copies)
    is_negative = np.ones(len(source), np.bool_)
    is_negative[np.cumsum(copies) - copies] = False
    sampled_items = log.item_ids[source]
    sampled_items[is_negative] = item_ids[drawn]
    told = rows_that_tell(items, time, drawn, time[source[is_negative]])
    return SampledLog(
        InteractionLog(
            user_ids=log.user_ids[source],
            item_ids=sampled_items,
            labels=(~is_negative).astype(np.uint8),
            timestamps_ms=log.timestamps_ms[source],
            categories=log.categories,
            period=None if log.period is None else log.period[source],
            fields=fields_with_negatives(log.fields, source, is_negative, told),
        ),
        int(n - has_negative.sum()),
    )


def draw_negatives(
    users: IndexArray,
    items: IndexArray,
    time: IndexArray,
    item_count: int,
    *,
    per_positive: int,
    whole_log: bool,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.bool_], IndexArray]:
    """Draw negatives for n ≥ 1 positives given as numbers, see `sample_negatives`.

    Args:
        users, items: int64 [n], numbers from 0.
        time: int64 [n], from 0 to n - 1. A user knows an item from its time on; rows with equal times know each other's
            items.
        item_count: number of items; negatives are drawn from 0 … item_count - 1.
        per_positive: number of negatives per positive.
        whole_log: whether a user knows its items at all times.
        rng: for the draws.

    Returns:
        bool [n], whether a positive can have a negative; and int64 [m], the drawn items, `per_positive` for each of
        these positives, in their order.
    """
    known = _KnownPairs(users, items, time, item_count, whole_log=whole_log)
    has_negative = known.count(users, time) < item_count
    positives = np.repeat(np.flatnonzero(has_negative), per_positive)
    return has_negative, _draw(known, users[positives], time[positives], rng)


def rows_that_tell(items: IndexArray, time: IndexArray, drawn: IndexArray, moments: IndexArray) -> IndexArray:
    """For each drawn item the interaction from which its fields are taken: its last one up to a time, else its first.

    Args:
        items, time: int64 [n], item and time of each interaction; of equal times the later row is the last.
        drawn, moments: int64 [m], items among `items`, and the time for each.

    Returns:
        int64 [m], indices of interactions.
    """
    order = np.lexsort((time, items))
    items, time = items[order], time[order]
    times = np.unique(time)
    width = len(times) + 1
    keys = items * width + np.searchsorted(times, time)
    wanted = drawn * width + np.searchsorted(times, moments, side="right")
    last = np.searchsorted(keys, wanted) - 1  # the last smaller key: of this item or of one before it
    first = np.searchsorted(items, drawn)
    return order[np.maximum(last, first)]


def fields_with_negatives(
    fields: Mapping[str, FieldColumn], source: IndexArray, is_negative: npt.NDArray[np.bool_], told: IndexArray
) -> dict[str, FieldColumn]:
    """The fields of a log with negatives. A negative has the user and context fields of its positive.

    Args:
        fields: of the log without negatives; those by user or item are returned unchanged.
        source: int64 [m], the row of that log for each positive, and for each negative the row of its positive.
        is_negative: bool [m].
        told: for each negative the row with the fields of its item, see `rows_that_tell`.
    """
    of_item = source.copy()
    of_item[is_negative] = told
    return {
        name: column if column.by != "row" else column.take(of_item if column.field.of == "item" else source)
        for name, column in fields.items()
    }


class _KnownPairs:
    """The distinct (user, item) pairs, sorted, with the time from which the user knows the item."""

    def __init__(
        self, users: IndexArray, items: IndexArray, time: IndexArray, item_count: int, *, whole_log: bool
    ) -> None:
        """`time` [n] is the place of each row in time order; with `whole_log` every pair is known from the start."""
        self.item_count = item_count
        keys = users * item_count + items
        by_key_and_time = np.lexsort((time, keys))
        keys = keys[by_key_and_time]
        is_first = np.ones(len(keys), np.bool_)
        is_first[1:] = keys[1:] != keys[:-1]
        self.keys = keys[is_first]
        self.since = np.full(len(self.keys), -1) if whole_log else time[by_key_and_time][is_first]
        self.starts = np.searchsorted(self.keys, np.arange(int(users.max()) + 2) * item_count)
        # For count(): the same pairs by user and time, as one sorted array.
        self._clock = len(time) + 1
        pair_users = self.keys // item_count
        self._user_and_since = np.sort(pair_users * self._clock + self.since + 1)

    def count(self, users: IndexArray, time: IndexArray) -> IndexArray:
        """Number of items that each user knows at each time."""
        until = np.searchsorted(self._user_and_since, users * self._clock + time + 1, side="right")
        return until - self.starts[users]

    def contains(self, users: IndexArray, items: IndexArray, time: IndexArray) -> npt.NDArray[np.bool_]:
        """Whether each user knows each item at each time."""
        keys = users * self.item_count + items
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known: npt.NDArray[np.bool_] = (self.keys[at] == keys) & (self.since[at] <= time)
        return known

    def unknown(self, user: int, time: int) -> IndexArray:
        """The items that a user does not know at a time."""
        pairs = slice(self.starts[user], self.starts[user + 1])
        unknown = np.ones(self.item_count, np.bool_)
        unknown[self.keys[pairs][self.since[pairs] <= time] % self.item_count] = False
        return np.flatnonzero(unknown)


def _draw(known: _KnownPairs, users: IndexArray, time: IndexArray, rng: np.random.Generator) -> IndexArray:
    """One item per row, uniform over those that its user does not know at its time, of which there is at least one."""
    drawn = rng.integers(known.item_count, size=len(users))
    wrong = np.flatnonzero(known.contains(users, drawn, time))
    for _ in range(_ROUNDS):
        drawn[wrong] = rng.integers(known.item_count, size=len(wrong))
        wrong = wrong[known.contains(users[wrong], drawn[wrong], time[wrong])]
    for row in wrong:
        drawn[row] = rng.choice(known.unknown(users[row], time[row]))
    return drawn


def _number(ids: IdArray) -> tuple[IndexArray, IdArray]:
    """Number ids from 0 in the order of first appearance: the number of each id, and the id of each number."""
    numbers: dict[str, int] = {}
    rows = np.fromiter((numbers.setdefault(id_, len(numbers)) for id_ in ids), np.int64, len(ids))
    return rows, np.array(list(numbers), np.object_)
