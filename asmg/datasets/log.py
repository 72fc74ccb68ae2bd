"""An interaction log in memory, and how it is cut into periods."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from asmg.datasets.field_columns import FieldColumn
from asmg.log_format import CutBy

IdArray = npt.NDArray[np.object_]
"""Ids as strings."""

IndexArray = npt.NDArray[np.int64]
"""Indices or numbers."""

_WINDOW_MS = {"hour": 3_600_000, "day": 86_400_000, "week": 7 * 86_400_000}
# 1 January 1970 was a Thursday; weeks start on Monday.
_WINDOW_START_MS = {"hour": 0, "day": 0, "week": 4 * 86_400_000}


@dataclass(frozen=True, kw_only=True, eq=False)
class InteractionLog:
    """n interactions as columns, in any order: user, item, time and label.

    Raises:
        ValueError: the columns differ in length, or a label is neither 0 nor 1.
    """

    user_ids: IdArray
    """[n], strings."""
    item_ids: IdArray
    """[n], strings."""
    labels: npt.NDArray[np.uint8]
    """[n], 1 if clicked (or liked, bought), else 0."""
    timestamps_ms: npt.NDArray[np.int64]
    """[n], milliseconds since 1970-01-01T00:00Z."""
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Item id → its categories; items without any may be missing."""
    period: npt.NDArray[np.int64] | None = None
    """[n], the period of each interaction, increasing with time; None if the source has none."""
    positives_only: bool = False
    """Whether the source has only positives, so that negatives must be sampled."""
    fields: Mapping[str, FieldColumn] = field(default_factory=dict)
    """Name of a field → its values, one per interaction, at the time of the interaction."""

    def __post_init__(self) -> None:
        n = len(self.user_ids)
        columns: dict[str, npt.NDArray[Any]] = {
            "item_ids": self.item_ids,
            "labels": self.labels,
            "timestamps_ms": self.timestamps_ms,
        }
        if self.period is not None:
            columns["period"] = self.period
        columns |= {f"fields[{name!r}]": column.values for name, column in self.fields.items()}
        for name, column in columns.items():
            if column.shape != (n,):
                raise ValueError(f"{name}: expected shape ({n},) like user_ids; received {column.shape}")
        if n and self.labels.max() > 1:
            raise ValueError(f"labels: expected 0 or 1; received {self.labels.max()}")
        if self.positives_only and not self.labels.all():
            raise ValueError("labels: expected 1 everywhere in a log of positives only; received 0")

    def __len__(self) -> int:
        """The number of interactions n."""
        return len(self.user_ids)

    def take(self, rows: IndexArray) -> "InteractionLog":
        """The log of these rows, in this order, with all categories."""
        return InteractionLog(
            user_ids=self.user_ids[rows],
            item_ids=self.item_ids[rows],
            labels=self.labels[rows],
            timestamps_ms=self.timestamps_ms[rows],
            categories=self.categories,
            period=None if self.period is None else self.period[rows],
            positives_only=self.positives_only,
            fields={name: column.take(rows) for name, column in self.fields.items()},
        )

    def time_order(self) -> IndexArray:
        """The rows [n] in time order; rows of one millisecond keep their order."""
        return np.argsort(self.timestamps_ms, kind="stable")


def windows_of(timestamps_ms: npt.NDArray[np.int64], by: Literal["hour", "day", "week"]) -> npt.NDArray[np.int64]:
    """The number of the hour, day or week (from Monday, UTC) of each time [n]."""
    return (timestamps_ms - _WINDOW_START_MS[by]) // _WINDOW_MS[by]


def cut(log: InteractionLog, by: CutBy, size: int = 1) -> list[IndexArray]:
    """Cut a log into consecutive, non-empty periods.

    - `count`: `size` interactions each; the last period has the rest.
    - `periods`: `size` periods of equal length (±1 interaction); one per interaction for a shorter log.
    - `hour`, `day`, `week`: windows of `size` hours, days or weeks (from Monday, UTC); the first starts with the hour,
      day or week of the first interaction. An empty window is no period.
    - `column`: by `log.period`, ascending; `size` must be 1.

    Returns:
        the rows of each period in time order; rows of one millisecond keep the order of the log.

    Raises:
        ValueError: `size` is less than 1, or the log has no periods for `column`.
    """
    if by not in get_args(CutBy):
        raise ValueError(f"by: expected one of {', '.join(get_args(CutBy))}; received {by!r}")
    if size < 1 or (by == "column" and size != 1):
        raise ValueError(f"size: expected {'1' if by == 'column' else 'at least 1'}; received {size}")
    order = log.time_order()
    if not len(order):
        return []
    if by == "count":
        return [order[start : start + size] for start in range(0, len(order), size)]
    if by == "periods":
        return np.array_split(order, min(size, len(order)))
    if by == "column":
        if log.period is None:
            raise ValueError("by: expected a log with a period column for 'column'; received one without")
        numbers = log.period[order]
        within = np.argsort(numbers, kind="stable")
        order, numbers = order[within], numbers[within]
    else:
        windows = windows_of(log.timestamps_ms[order], by)
        numbers = (windows - windows[0]) // size
    return np.split(order, np.flatnonzero(np.diff(numbers)) + 1)
