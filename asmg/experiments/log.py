"""A prepared log as the paper's protocol has it: equal periods, histories, table rows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from asmg.batch import COLD_ROW, NO_CATEGORY, PeriodData, build_histories, build_recent
from asmg.datasets.prepared import PreparedLog
from asmg.experiments.fields import LogFields, field_columns
from asmg.numbers import NumberMoments
from asmg.statistics import Statistics, StatisticsConfig

__all__ = ["Known", "Periods", "cut_periods", "with_numbers", "with_statistics"]

Known = Literal["all", "so_far"]


class Periods(NamedTuple):
    """The periods of a log, and which ids each of them was the first to bring."""

    data: list[PeriodData]
    """D_1 … D_n, oldest first."""
    users: list[int]
    """Rows of the user table, the cold row included, that are known after each period; rows are numbered by first
    appearance, so a row at or past `users[t - 1]` is that of a user whom the periods up to t have not seen."""
    items: list[int]
    """The same of the item table, for which a negative counts as an appearance."""
    fields: LogFields | None = None
    """What the interactions of all periods, one after the other, read of fields; None where none are read."""

    def cold(self, step: int) -> tuple[Tensor, Tensor]:
        """Of period step + 1: bool [N], [N], whose user and whose item is new to a model that has learned `step`.

        A user is new who is in no row of an earlier period. An item is new that nobody has clicked in an earlier
        period: sampled negatives are drawn from all items of a log, so most items were among them at once.
        """
        data = self.data[step]
        clicked = torch.zeros(self.items[step], dtype=torch.bool)
        for earlier in self.data[:step]:
            clicked[earlier.item[earlier.label == 1].long()] = True
        return data.user >= self.users[step - 1], ~clicked[data.item.long()]

    def repeats(self, step: int) -> Tensor:
        """Of period step + 1: bool [N], whose item is among the user's last 30 clicks."""
        data = self.data[step]
        owner = torch.repeat_interleave(torch.arange(len(data)), data.offsets.diff())
        found = torch.zeros(len(data), dtype=torch.bool)
        found[owner[data.history == data.item[owner]]] = True
        return found


def cut_periods(log: PreparedLog, count: int, *, known: Known, categories: bool, fields: bool = False) -> Periods:
    """Cut a log into `count` periods of ⌊rows / count⌋ rows each; what is left over at the end is left out.

    (methods.md, section 0.) Histories are the user's earlier positives of the whole log, at most 30, with a strictly
    smaller timestamp; `recent` is of its earlier interactions, drawn negatives left out. Table row = number + 1.

    Args:
        log: in time order, its ids numbered by first appearance.
        count: number of periods.
        known: the sizes of the tables. `so_far`: rows of the ids that have appeared by the end of a period, as in a
            live service; `all`: rows of all ids of these periods in each of them, as the authors'
            code has it.
        categories: whether items have their categories.
        fields: whether interactions have their fields.

    Raises:
        ValueError: there are fewer rows than periods, or no categories or fields where they are wanted.
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
    # Where negatives were drawn the source has none of its own: all of them are nobody's interactions.
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
    """The periods with statistics as numeric inputs, those of each as they were known before it.

    Args:
        periods: one after the other, from the first.
        dropped: columns of the statistics that become zeros.
    """
    statistics, data = Statistics.initial(StatisticsConfig()), []
    for period in periods.data:
        prepared = statistics.prepare(period)
        assert prepared.numeric is not None and prepared.nobody is not None
        for numbers in (prepared.numeric, prepared.nobody):
            numbers[:, list(dropped)] = 0  # the mean; and so it is of everybody
        data.append(prepared)
        statistics = statistics.learned(period)
    return periods._replace(data=data)


def with_numbers(periods: Periods) -> Periods:
    """The periods with scaled numbers in their fields, each by the moments of those before it."""
    moments, data, decay = NumberMoments.initial(), [], StatisticsConfig().moments_decay
    for period in periods.data:
        data.append(period if period.fields is None else replace(period, fields=moments.prepare(period.fields)))
        moments = moments.learned(period.fields, decay)
    return periods._replace(data=data)


def _known_after(rows: npt.NDArray[np.int32], ends: Sequence[int]) -> list[int]:
    """Rows of a table after each period, of ids numbered by first appearance."""
    newest = np.maximum.accumulate(rows)
    return [int(newest[end - 1]) + 1 for end in ends]


def _category_rows(numbers: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Item row × category rows [items + 1, C] of category numbers by item number, numbered anew by first item.

    So the categories of the items so far are the first rows of the category table.
    """
    matrix = np.full((len(numbers) + 1, max(1, numbers.shape[1])), NO_CATEGORY, np.int32)
    matrix[1:, : numbers.shape[1]] = numbers
    present = matrix != NO_CATEGORY
    _, first, inverse = np.unique(matrix[present], return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(1, len(first) + 1, dtype=np.int32)
    matrix[present] = rank[inverse]
    return matrix
