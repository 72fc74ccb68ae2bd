"""A log that `sort_log` has sorted on disk: read period by period, in the order of time."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from asmg.datasets.generic import distinct_categories
from asmg.log_format import CutBy

__all__ = ["FeatureChange", "LoggedInteraction", "SortedLog"]


class LoggedInteraction(NamedTuple):
    """An interaction of the log."""

    place: int
    """Position in the order of the log, from 0."""
    user_id: str
    item_id: str
    label: int
    time_ms: int
    """Milliseconds since 1970."""
    context: str | None = None
    """JSON object with the fields of the context; None for none."""


class FeatureChange(NamedTuple):
    """New features of a user or an item."""

    id: str
    time_ms: int
    """Milliseconds since 1970: time of the row that has them."""
    features: str
    """JSON object."""


@dataclass(frozen=True)
class SortedLog:
    """The interactions of a log, sampled negatives among them, in the order of time."""

    database: sqlite3.Connection
    """Holds the tables `log`, `user_versions` and `item_versions`; their places count from 1."""
    item_ids: Sequence[str]
    """Number of an item in the database → its id."""
    categories: Mapping[int, str]
    """Number of an item → its categories, separated by |; only of items that have any."""
    count: int
    """Interactions."""
    without_negative: int
    """Positives that got no negative, because their user has interacted with every item."""
    dropped: Mapping[str, int]
    """Reason → rows of the file that were left out."""

    def __len__(self) -> int:
        return self.count

    def cut(self, by: CutBy, size: int) -> list[range]:
        """Cut the log into periods, as `asmg.datasets.cut` cuts a log in memory.

        Args:
            by: that of `sort_log`.
            size: of a period, or the number of periods, as `by` implies.

        Returns:
            the places of each period, counted from 0.
        """
        if by == "count":
            return [range(start, min(start + size, self.count)) for start in range(0, self.count, size)]
        if by == "periods":
            periods = min(size, self.count)
            each, more = divmod(self.count, periods)
            starts = [period * each + min(period, more) for period in range(periods + 1)]
        else:
            counts = self.database.execute(
                "SELECT count(*) FROM log GROUP BY (grp - (SELECT min(grp) FROM log)) / ? ORDER BY min(place)", (size,)
            )
            starts = [0, *np.cumsum([count for (count,) in counts]).tolist()]
        return [range(start, end) for start, end in pairwise(starts)]

    def interactions(self, places: range) -> Iterator[LoggedInteraction]:
        """The interactions at some places, in order."""
        rows = self.database.execute(
            "SELECT place, user, item, label, time, context FROM log WHERE place BETWEEN ? AND ? ORDER BY place",
            (places.start + 1, places.stop),
        )
        for place, user, item, label, time, context in rows:
            yield LoggedInteraction(place - 1, user, self.item_ids[item], label, time, context)

    def feature_changes(self, of: Literal["user", "item"], places: range) -> Iterator[FeatureChange]:
        """The features of users or items in the rows at some places that differ from the ones before, in order."""
        rows = self.database.execute(
            f"SELECT id, time, features FROM {of}_versions WHERE place BETWEEN ? AND ? ORDER BY place",
            (places.start + 1, places.stop),
        )
        for id_, time, features in rows:
            yield FeatureChange(id_ if of == "user" else self.item_ids[id_], time, features)

    def new_categories(self, pieces: list[range]) -> Iterator[dict[str, tuple[str, ...]]]:
        """For each piece the categories of the items that appear for the first time, in order of appearance."""
        first_places = self.database.execute("SELECT min(place) - 1, item FROM log GROUP BY item ORDER BY 1")
        remaining = iter([pair for pair in first_places if pair[1] in self.categories])
        waiting = next(remaining, None)
        for places in pieces:
            new = {}
            while waiting is not None and waiting[0] < places.stop:
                new[self.item_ids[waiting[1]]] = distinct_categories(self.categories[waiting[1]])
                waiting = next(remaining, None)
            yield new
