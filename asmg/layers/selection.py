"""The table rows that some logs touch, and logs renumbered to them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmg.batch import COLD_ROW, NO_CATEGORY, TABLES, PeriodData
from asmg.checkpoint import Checkpoint
from asmg.field_columns import FieldColumns

__all__ = ["PartExcerpt", "Rows", "Selection"]

Rows = NDArray[np.int64]

DENSE = 16
"""Rows of a table for each one named up to which a mark for each row of the table is quicker than sorting."""


class PartExcerpt(NamedTuple):
    """A part of a training state with the selected rows alone."""

    checkpoint: Checkpoint
    """The part, as the update method would have stored it."""
    sizes: Mapping[str, int] = {}
    """Table name → rows of the whole table."""
    universe: Rows | None = None
    """For statistics: the item of each row of the excerpt. The selected items come first."""


@dataclass(frozen=True)
class Selection:
    """Some rows of each table. Row n of a table in an excerpt is row `rows[table][n]` of the whole table."""

    rows: Mapping[str, Rows]
    """Table name → distinct rows, ascending; the first is the cold row."""
    item_categories: Tensor
    """int32 [rows of items, C]: the categories of each selected item as rows of the excerpt, or NO_CATEGORY."""
    sizes: Mapping[str, int]
    """Table name → rows of the whole table after the newest log."""

    @classmethod
    def of(cls, logs: Sequence[PeriodData], more: Mapping[str, Tensor] | None = None) -> "Selection":
        """The rows that these logs touch.

        Args:
            logs: oldest first, in rows of whole tables. An item's categories are those that the newest
                log with the item has.
            more: table name → int64 [n], further rows.
        """
        touched: dict[str, list[Tensor]] = {name: [torch.tensor([COLD_ROW])] for name in TABLES}
        for log in logs:
            touched["user"].append(log.user)
            touched["item"] += [log.item, log.history]
            if log.category_items is not None:
                touched["item"].append(log.category_items)
            if log.item_categories is not None:
                touched["category"].append(log.item_categories.flatten())
            if log.fields is not None:
                touched["field"] += [log.fields.rows.flatten(), log.fields.neutral, log.fields.numbers]
        for name, further in (more or {}).items():
            touched[name].append(further)
        rows = {name: _distinct(parts) for name, parts in touched.items()}
        sizes = {name: max(1, *(log.sizes.get(name, 1) for log in logs), 1) for name in TABLES}
        return cls(rows, _categories(logs, rows), sizes)

    @classmethod
    def everything(cls, logs: Sequence[PeriodData], sizes: Mapping[str, int]) -> "Selection":
        """All rows of all tables.

        Args:
            logs: see `of`; may be empty where no item has categories.
            sizes: table name → rows that the tables have, or are to have.
        """
        most = {name: max(sizes.get(name, 1), *(log.sizes.get(name, 1) for log in logs), 1) for name in TABLES}
        return cls.of(logs, {name: torch.arange(size) for name, size in most.items()})

    def localised(self, log: PeriodData) -> PeriodData:
        """A log whose rows are all selected, in rows of the excerpt."""

        def local(table: str, values: Tensor) -> Tensor:
            return torch.from_numpy(np.searchsorted(self.rows[table], values.numpy()).astype(np.int32))

        categories = log.item_categories is not None
        return replace(
            log,
            user=local("user", log.user),
            item=local("item", log.item),
            history=local("item", log.history),
            users=len(self.rows["user"]),
            items=len(self.rows["item"]),
            categories=len(self.rows["category"]) if categories else 0,
            item_categories=self.item_categories if categories else None,
            category_items=None,
            fields=None if log.fields is None else _renumbered(log.fields, local, len(self.rows["field"])),
        )

    def restored(self, log: PeriodData) -> PeriodData:
        """The inverse of `localised`. The categories are those of the items that the log has."""

        def whole(table: str, values: Tensor) -> Tensor:
            return torch.from_numpy(self.rows[table][values.numpy()].astype(np.int32))

        items, matrix = None, None
        if log.item_categories is not None:
            own = torch.unique(torch.cat([log.item, log.history])).long()
            matrix = log.item_categories[own]
            matrix = torch.where(matrix == NO_CATEGORY, matrix, whole("category", matrix.clamp(min=0)))
            items = torch.from_numpy(self.rows["item"])[own]
        return replace(
            log,
            user=whole("user", log.user),
            item=whole("item", log.item),
            history=whole("item", log.history),
            users=self.sizes["user"],
            items=self.sizes["item"],
            categories=self.sizes["category"] if matrix is not None else 0,
            item_categories=matrix,
            category_items=items,
            fields=None if log.fields is None else _renumbered(log.fields, whole, self.sizes["field"]),
        )

    def places(self, table: str, rows: Tensor) -> Tensor:
        """Where those of the rows (int64 [n]) that are selected are in the excerpt, ascending."""
        known = torch.from_numpy(self.rows[table])
        return torch.nonzero(torch.isin(known, rows)).flatten()


def _renumbered(columns: FieldColumns, number: Callable[[str, Tensor], Tensor], size: int) -> FieldColumns:
    """The fields with other rows; `number` gives the new row of each old one."""
    moved = {}
    for name in ("rows", "neutral", "numbers"):
        old: Tensor = getattr(columns, name)
        moved[name] = torch.where(old < COLD_ROW, old, number("field", old.clamp(min=COLD_ROW)))
    return replace(columns, **moved, size=size)


def _distinct(parts: Sequence[Tensor]) -> Rows:
    values = np.concatenate([part.numpy().astype(np.int64, copy=False).ravel() for part in parts])
    if DENSE * len(values) < values.max():
        values.sort()  # np.unique hashes whole numbers, and millions of them are sorted sooner
        new = np.append(True, values[1:] != values[:-1])
        return values[new & (values >= COLD_ROW)]
    touched = np.zeros(values.max() + 1, bool)  # quicker than sorting where many rows are touched
    touched[values[values >= COLD_ROW]] = True
    return np.flatnonzero(touched)


def _categories(logs: Sequence[PeriodData], rows: Mapping[str, Rows]) -> Tensor:
    """The categories of each selected item, in rows of the excerpt."""
    width = max((log.item_categories.shape[1] for log in logs if log.item_categories is not None), default=1)
    matrix = np.full((len(rows["item"]), width), NO_CATEGORY, np.int32)
    for log in logs:  # the newest last
        if log.item_categories is None:
            continue
        known = log.item_categories.numpy()
        items = np.arange(len(known)) if log.category_items is None else log.category_items.numpy()
        place = np.searchsorted(rows["item"], items)
        inside = (place < len(rows["item"])) & (rows["item"][np.minimum(place, len(rows["item"]) - 1)] == items)
        local = np.where(known == NO_CATEGORY, NO_CATEGORY, np.searchsorted(rows["category"], known))
        matrix[place[inside]] = NO_CATEGORY
        matrix[place[inside], : known.shape[1]] = local[inside]
    return torch.from_numpy(matrix)
