"""A prepared log cut into equal periods, with histories, as table rows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asmg.batch import COLD_ROW, NO_CATEGORY, PeriodData, build_histories, build_recent
from asmg.datasets.log_fields import LogFields, field_columns
from asmg.datasets.prepared import PreparedLog
from asmg.numbers import NumberMoments
from asmg.statistics import Statistics, StatisticsConfig

__all__ = ["Known", "Periods", "cut_periods", "with_numbers", "with_statistics"]

Known = Literal["all", "so_far"]
"""Which ids have table rows in a period, see `cut_periods`."""


class Periods(NamedTuple):
    """The periods of a log, and the table sizes after each of them."""

    data: list[PeriodData]
    """D_1 … D_n, oldest first."""
    users: list[int]
    """Rows of the user table after each period, the cold row included. Rows are numbered by first appearance, so a row
    at or past `users[t - 1]` is a user that the periods up to t have not seen."""
    items: list[int]
    """Rows of the item table after each period; a negative counts as an appearance."""
    fields: LogFields | None = None
    """The fields of the interactions of all periods, concatenated; None if no fields are read."""

    def cold(self, step: int) -> tuple[Tensor, Tensor]:
        """Which interactions of period step + 1 have a new user, and which a new item: bool [N] each.

        A user is new without a row in an earlier period. An item is new without a click in an earlier period; rows
        alone do not count, because sampled negatives are drawn from all items of the log.
        """
        data = self.data[step]
        clicked = torch.zeros(self.items[step], dtype=torch.bool)
        for earlier in self.data[:step]:
            clicked[earlier.item[earlier.label == 1].long()] = True
        return data.user >= self.users[step - 1], ~clicked[data.item.long()]

    def repeats(self, step: int) -> Tensor:
        """Which interactions of period step + 1 have an item that is among the user's last 30 clicks: bool [N]."""
        data = self.data[step]
        owner = torch.repeat_interleave(torch.arange(len(data)), data.offsets.diff())
        found = torch.zeros(len(data), dtype=torch.bool)
        found[owner[data.history == data.item[owner]]] = True
        return found


def cut_periods(log: PreparedLog, count: int, *, known: Known, categories: bool, fields: bool = False) -> Periods:
    """Cut a log into `count` periods of ⌊rows / count⌋ rows each; the remaining rows at the end are left out.

    (methods.md, section 0.) A history has the user's last 30 positives of the whole log with a strictly smaller
    timestamp; `recent` counts its earlier interactions without sampled negatives. Table row = number of the id + 1.

    Args:
        log: in time order, its ids numbered by first appearance.
        count: number of periods.
        known: table sizes of each period: `so_far`, rows of the ids that have appeared by its end, as in a live
            service; `all`, rows of all ids of all periods, as in the authors' code.
        categories: whether items get their categories.
        fields: whether interactions get their fields.

    Raises:
        ValueError: there are fewer rows than periods, or the log lacks wanted categories or fields.
    """
    rows = len(log.user) // count if count > 0 else 0
    if rows < 1:
        raise ValueError(f"periods: expected from 1 to {len(log.user)}, the rows of the log; received {count}")
    if categories and log.item_categories is None:
        raise ValueError(f"categories: expected a log whose items have them; {log.card.dataset} has none")
    if fields and log.schema is None:
        raise ValueError(f"fields: expected a log that has them; {log.card.dataset} has none")
    used = rows * count
    user, item = (ids[:used].astype(np.int32) + 1 for ids in (log.user, log.item))
    label = log.label[:used]
    history, offsets = build_histories(user, item, label, log.timestamps_ms[:used])
    # If negatives were sampled, all of them were: nobody saw them.
    drawn = label == 0 if log.card.negatives_per_positive else None
    recent = build_recent(user, label, log.timestamps_ms[:used], sampled=drawn)
    ends = [rows * (t + 1) for t in range(count)]
    users, items = (_known_after(ids, ends) for ids in (user, item))
    matrix = _category_rows(log.item_categories) if categories and log.item_categories is not None else None
    columns = field_columns(log).take(used) if fields else None
    values = [0] * count if columns is None else columns.rows_after(ends)
    sizes = [users, items, values] if known == "so_far" else [[s[-1]] * count for s in (users, items, values)]
    data = []
    for end, size_u, size_i, size_f in zip(ends, *sizes, strict=True):
        start = end - rows
        low, high = offsets[start], offsets[end]
        features = None if matrix is None else torch.from_numpy(matrix[:size_i])
        data.append(
            PeriodData(
                user=torch.from_numpy(user[start:end]),
                item=torch.from_numpy(item[start:end]),
                history=torch.from_numpy(history[low:high]),
                offsets=torch.from_numpy(offsets[start : end + 1] - low),
                label=torch.from_numpy(label[start:end].astype(np.float32)),
                users=size_u,
                items=size_i,
                categories=0 if features is None else 1 + max(COLD_ROW, int(features.max())),
                item_categories=features,
                recent=torch.from_numpy(recent[start:end]),
                fields=None if columns is None else columns.part(start, end).columns(size_f),
            )
        )
    return Periods(data, users, items, columns)


def with_statistics(periods: Periods, dropped: Sequence[int] = ()) -> Periods:
    """The periods with statistics as numeric inputs, as known before each period.

    Args:
        periods: from the first one on.
        dropped: columns of the statistics that are set to zero.
    """
    statistics, data = Statistics.initial(StatisticsConfig()), []
    for period in periods.data:
        prepared = statistics.prepare(period)
        assert prepared.numeric is not None and prepared.nobody is not None
        for numbers in (prepared.numeric, prepared.nobody):
            numbers[:, list(dropped)] = 0  # the mean, for everybody
        data.append(prepared)
        statistics = statistics.learned(period)
    return periods._replace(data=data)


def with_numbers(periods: Periods) -> Periods:
    """The periods with scaled numeric fields, by the moments of the periods before each."""
    moments, data, decay = NumberMoments.initial(), [], StatisticsConfig().moments_decay
    for period in periods.data:
        data.append(period if period.fields is None else replace(period, fields=moments.prepare(period.fields)))
        moments = moments.learned(period.fields, decay)
    return periods._replace(data=data)


def _known_after(rows: npt.NDArray[np.int32], ends: Sequence[int]) -> list[int]:
    """Rows of a table after each of the interactions `ends`, for ids numbered by first appearance."""
    newest = np.maximum.accumulate(rows)
    return [int(newest[end - 1]) + 1 for end in ends]


def _category_rows(numbers: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The category rows of each item row [items + 1, C], from category numbers by item number [items, C].

    Categories are renumbered by their first item, so those of the first items are the first rows of the category table.
    """
    matrix = np.full((len(numbers) + 1, max(1, numbers.shape[1])), NO_CATEGORY, np.int32)
    matrix[1:, : numbers.shape[1]] = numbers
    present = matrix != NO_CATEGORY
    _, first, inverse = np.unique(matrix[present], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(1, len(first) + 1, dtype=np.int32)
    matrix[present] = rank[inverse]
    return matrix
