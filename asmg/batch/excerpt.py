"""Logs cut down to the table rows that they touch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from asmg.batch.period import PeriodData
from asmg.field_columns import FieldColumns
from asmg.kernels import renumber
from asmg.layout import COLD_ROW, NO_CATEGORY

__all__ = ["Excerpt", "excerpt"]


class Excerpt(NamedTuple):
    """Logs whose rows are renumbered within the few table rows that they touch."""

    periods: list[PeriodData]
    """The logs; their rows are places within `rows`."""
    rows: dict[str, Tensor]
    """Table name → int64 [n], the distinct rows of the whole table, cold row first."""


def excerpt(
    periods: Sequence[PeriodData],
    tables: Sequence[str],
    *,
    sizes: Mapping[str, int] | None = None,
    more: Mapping[str, Tensor] | None = None,
) -> Excerpt:
    """Renumber the rows that `periods` touch by first appearance.

    Gradients reach a table only through the rows that are looked up. Computing with these rows alone gives the same
    result, at a cost that grows with the traffic instead of the tables.

    Args:
        periods: oldest first; the last one has the categories of all items.
        tables: the model's tables. Without "category" the categories are left out, without "field" the fields.
        sizes: table name → rows of the model's table. Ids past its end read the cold row and get no row of their own,
            except items with categories. By default the sizes of the last period.
        more: table name → int64 [n], further rows to include.

    Raises:
        ValueError: `tables` has "category" and the last period has no categories.
    """
    newest = periods[-1]
    matrix = newest.item_categories if "category" in tables else None
    limits = dict(newest.sizes) | ({} if sizes is None else dict(sizes))
    if matrix is not None:
        limits["item"] = max(newest.items, limits["item"])
    rows: dict[str, Tensor] = {}
    numbers: dict[str, np.ndarray] = {}

    def number(table: str, ids: Sequence[Tensor]) -> list[Tensor]:
        limit = limits[table]
        extra = [] if more is None or table not in more else [more[table].int()]
        numbers[table] = np.zeros(max(1, limit), np.int32)
        found = np.zeros(1 + sum(len(i) for i in (*ids, *extra)), np.int32)
        count = renumber(np.zeros(1, np.int32), limit, numbers[table], found, 0)
        for part in (*ids, *extra):
            count = renumber(part.numpy(), limit, numbers[table], found, count)
        rows[table] = torch.from_numpy(found[:count]).long()
        return [
            torch.from_numpy(numbers[table][np.where(i < limit, i, COLD_ROW)] - 1) for i in (t.numpy() for t in ids)
        ]

    users = number("user", [p.user for p in periods])
    items = number("item", [t for p in periods for t in (p.item, p.history)])
    small, categories = None, 0
    if matrix is not None:
        known = matrix[torch.where(rows["item"] < len(matrix), rows["item"], COLD_ROW)]
        known = torch.where(known < limits["category"], known, COLD_ROW)
        present = known != NO_CATEGORY
        (numbered,) = number("category", [known[present]])
        small = torch.full_like(known, NO_CATEGORY).masked_scatter_(present, numbered)
        categories = len(rows["category"])
    elif "category" in tables:
        raise ValueError("item_categories: expected them for a model with categories; received none")
    columns: Sequence[FieldColumns | None] = [None] * len(periods)
    if "field" in tables:
        own = [(p.fields or FieldColumns.none(len(p))).within(limits["field"]) for p in periods]
        read = [values for f in own for values in (f.rows, f.neutral)]
        rowed = [values >= COLD_ROW for values in read]
        found = number("field", [values[at] for values, at in zip(read, rowed, strict=True)])
        placed = [values.masked_scatter(at, rows_) for values, at, rows_ in zip(read, rowed, found, strict=True)]
        columns = [
            replace(f, rows=r, neutral=n, size=len(rows["field"]))
            for f, r, n in zip(own, placed[::2], placed[1::2], strict=True)
        ]
    sizes_of: dict[str, Any] = {"users": len(rows["user"]), "items": len(rows["item"]), "categories": categories}
    parts = [
        replace(p, user=u, item=i, history=h, item_categories=small, fields=f, **sizes_of)
        for p, u, i, h, f in zip(periods, users, items[::2], items[1::2], columns, strict=True)
    ]
    return Excerpt(parts, rows)
