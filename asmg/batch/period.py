"""One period's log as table rows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from asmg.batch.interactions import InteractionBatch, ItemFeatures
from asmg.field_columns import FieldColumns, range_of
from asmg.layout import COLD_ROW, NO_CATEGORY

__all__ = ["PeriodData", "concatenate"]


@dataclass(frozen=True, kw_only=True)
class PeriodData:
    """The N interactions of one period in time order, as table rows.

    `users`, `items` and `categories` are the sizes of the tables (row 0 included) after this period has been learned.
    A model with smaller tables has never seen the ids past its end and reads its cold row for them.

    Raises:
        ValueError: the tensors do not fit together, or a value is out of range; the message names the field.
    """

    user: Tensor
    """int32 [N], rows of the user table."""
    item: Tensor
    """int32 [N], rows of the item table (the candidates)."""
    history: Tensor
    """int32 [M], rows of the item table: all histories, concatenated."""
    offsets: Tensor
    """int64 [N + 1]: the history of interaction n is history[offsets[n]:offsets[n + 1]], most recent first."""
    label: Tensor
    """float32 [N], 1 for a click, else 0."""
    users: int
    """Rows of the user table after this period."""
    items: int
    """Rows of the item table after this period."""
    categories: int = 0
    """Rows of the category table after this period; 0 when items have no categories."""
    item_categories: Tensor | None = None
    """int32 [items, C]: rows of the categories of each item, padded with NO_CATEGORY; the cold row has none."""
    category_items: Tensor | None = None
    """int64 [n], ascending: the items that `item_categories` [n, C] is about, in a log as it is stored; None where it
    is about all. Models read logs without it (`asmg.layers.Selection.localised`)."""
    numeric: Tensor | None = None
    """float32 [N, S], S ≥ 1: numeric inputs, standardised (mean about 0, deviation about 1), computed from what was
    known before each interaction; None without any."""
    nobody: Tensor | None = None
    """float32 [2, S]: first row, 1 for each numeric input that depends on the user, 0 for one of the item alone; second
    row, the inputs of a user without a past. None when unknown."""
    recent: Tensor | None = None
    """int32 [N, 3], about the user's last `RECENT` interactions before each one: their number, the clicks among the
    newest `RECENT_SHORT`, and the clicks among all; None when not counted."""
    fields: FieldColumns | None = None
    """Context, user features and item features at the time of each interaction; None without fields."""
    weight: Tensor | None = None
    """float32 [N] > 0, weight of each interaction in the loss; None for equal weights."""

    def __post_init__(self) -> None:
        n = len(self.user)
        for name, expected in (("item", n), ("label", n), ("offsets", n + 1)):
            if len(getattr(self, name)) != expected:
                raise ValueError(f"{name}: expected length {expected}; received {len(getattr(self, name))}")
        if self.recent is not None and self.recent.shape != (n, 3):
            raise ValueError(f"recent: expected shape ({n}, 3); received {tuple(self.recent.shape)}")
        if self.fields is not None and len(self.fields) != n:
            raise ValueError(f"fields: expected length {n}; received {len(self.fields)}")
        if self.weight is not None and self.weight.shape != (n,):
            raise ValueError(f"weight: expected shape ({n},); received {tuple(self.weight.shape)}")
        if self.weight is not None and not bool(((self.weight > 0) & torch.isfinite(self.weight)).all()):
            raise ValueError("weight: expected positive numbers; received another")
        if n == 0:
            raise ValueError("period: expected at least one interaction; received none")
        if int(self.offsets[0]) != 0 or int(self.offsets[-1]) != len(self.history):
            raise ValueError(
                f"offsets: expected to run from 0 to {len(self.history)}; "
                f"received {int(self.offsets[0])} to {int(self.offsets[-1])}"
            )
        if bool((self.offsets[1:] < self.offsets[:-1]).any()):
            raise ValueError("offsets: expected values that never decrease; received a decrease")
        for name, size in (("user", self.users), ("item", self.items), ("history", self.items)):
            rows = getattr(self, name)
            low, top = range_of(rows) if len(rows) else (0, 0)
            if low < 0 or top >= size:
                raise ValueError(f"{name}: expected rows in [0, {size}); received {low}..{top}")
        if bool((self.label != self.label.bool()).any()):
            raise ValueError("label: expected 0 or 1; received another value")
        if (self.item_categories is None) != (self.categories == 0):
            raise ValueError("item_categories: expected exactly when categories > 0; received the opposite")
        if self.item_categories is not None:
            expected = self.items if self.category_items is None else len(self.category_items)
            if self.item_categories.shape[0] != expected:
                raise ValueError(f"item_categories: expected {expected} rows; received {self.item_categories.shape[0]}")
            values = self.item_categories
            low, top = range_of(values) if values.numel() else (NO_CATEGORY, NO_CATEGORY)
            if low < NO_CATEGORY or top >= self.categories:
                raise ValueError(
                    f"item_categories: expected rows under {self.categories} or {NO_CATEGORY}; received {low}..{top}"
                )
        if self.numeric is not None:
            shape, dtype = tuple(self.numeric.shape), self.numeric.dtype
            if len(shape) != 2 or shape[0] != n or shape[1] == 0 or dtype != torch.float32:
                raise ValueError(f"numeric: expected float32 [{n}, S] with S ≥ 1; received {dtype} {list(shape)}")
            if not all(math.isfinite(float(end)) for end in self.numeric.aminmax()):
                raise ValueError("numeric: expected finite numbers; received NaN or infinity")
            if self.nobody is not None and self.nobody.shape != (2, shape[1]):
                raise ValueError(f"nobody: expected shape (2, {shape[1]}); received {tuple(self.nobody.shape)}")
            if self.nobody is not None and not bool(torch.isfinite(self.nobody).all()):
                raise ValueError("nobody: expected finite numbers; received NaN or infinity")

    def __len__(self) -> int:
        return len(self.user)

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each embedding table after this period, by table name."""
        sizes = {"user": self.users, "item": self.items}
        sizes |= {"category": self.categories} if self.categories else {}
        return sizes | ({} if self.fields is None else {"field": self.fields.size})

    @property
    def features(self) -> "ItemFeatures | None":
        """The categories of all items, for a forward pass on whole tables."""
        if self.item_categories is None:
            return None
        return ItemFeatures(torch.arange(self.items), self.item_categories.long())

    @property
    def inputs(self) -> Tensor:
        """`numeric` as float32 [N, S], with S = 0 when there are none."""
        return self.numeric.contiguous() if self.numeric is not None else torch.empty(len(self), 0)

    @property
    def importance(self) -> Tensor:
        """`weight` as float32 [N], all 1 when there are none."""
        return torch.ones(len(self)) if self.weight is None else self.weight

    def without_history(self) -> "PeriodData":
        """The same interactions with empty histories, for a model that reads none."""
        return replace(self, history=self.history[:0], offsets=torch.zeros_like(self.offsets))

    def forgotten(self, rows: Mapping[str, Tensor]) -> "PeriodData":
        """The log with these users, items and field values replaced by the cold row.

        Args:
            rows: "user", "item" and optionally "field" → int64 [n] table rows; rows past a table's end are ignored.
        """

        def cold(values: Tensor, table: str, size: int) -> Tensor:
            gone = torch.zeros(size, dtype=torch.bool)
            gone[rows[table][rows[table] < size]] = True
            here = gone[values.long()]
            return values.masked_fill(here, COLD_ROW) if bool(here.any()) else values

        return replace(
            self,
            user=cold(self.user, "user", self.users),
            item=cold(self.item, "item", self.items),
            history=cold(self.history, "item", self.items),
            fields=self.fields if self.fields is None or "field" not in rows else self.fields.forgotten(rows["field"]),
        )

    def without_past(self, where: Tensor, strangers: Tensor) -> "PeriodData":
        """The log with the user's past removed from some interactions, as in a prediction without histories.

        Args:
            where: bool [N], the interactions that lose history and user-dependent numeric inputs.
            strangers: bool [N]; among those, the ones whose user becomes the cold row too.

        Raises:
            ValueError: the numeric inputs of a user without a past (`nobody`) are unknown.
        """
        if self.numeric is None or self.nobody is None:
            raise ValueError("nobody: expected the numeric inputs of a user without a past; received none")
        lengths = self.offsets.diff()
        kept = ~torch.repeat_interleave(where, lengths)
        offsets = torch.zeros_like(self.offsets)
        torch.cumsum(lengths.masked_fill(where, 0), 0, out=offsets[1:])
        theirs = torch.where(self.nobody[0] > 0, self.nobody[1], self.numeric[where])
        return replace(
            self,
            user=self.user.masked_fill(where & strangers, COLD_ROW),
            history=self.history[kept],
            offsets=offsets,
            numeric=self.numeric.index_put((where,), theirs),
        )

    def batch(self, index: Tensor) -> InteractionBatch:
        """The interactions at `index` (int64 [B]) as a batch."""
        starts = self.offsets[index]
        lengths = self.offsets[index + 1] - starts
        offsets = torch.zeros(len(index) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        source = torch.repeat_interleave(starts - offsets[:-1], lengths) + torch.arange(int(offsets[-1]))
        return InteractionBatch(
            user=self.user[index].long(),
            item=self.item[index].long(),
            history=self.history[source].long(),
            offsets=offsets,
            label=self.label[index],
            numeric=None if self.numeric is None else self.numeric[index],
            fields=None if self.fields is None else self.fields.batch(index),
            weight=None if self.weight is None else self.weight[index],
        )

    def select(self, index: Tensor) -> "PeriodData":
        """The interactions at `index` (int64 [n], n ≥ 1), in that order, as a period of their own (same table
        sizes).
        """
        rows = self.batch(index)
        read = {name: getattr(rows, name).int() for name in ("user", "item", "history")}
        return replace(
            self,
            **read,
            offsets=rows.offsets,
            label=rows.label,
            numeric=rows.numeric,
            recent=None if self.recent is None else self.recent[index],
            fields=None if self.fields is None else self.fields.at(index),
            weight=rows.weight,
        )

    def slice(self, start: int, stop: int) -> "PeriodData":
        """Interactions start to stop - 1 as a period of their own (same table sizes)."""
        low, high = int(self.offsets[start]), int(self.offsets[stop])
        return replace(
            self,
            user=self.user[start:stop],
            item=self.item[start:stop],
            history=self.history[low:high],
            offsets=self.offsets[start : stop + 1] - low,
            label=self.label[start:stop],
            numeric=None if self.numeric is None else self.numeric[start:stop],
            recent=None if self.recent is None else self.recent[start:stop],
            fields=None if self.fields is None else self.fields.cut(start, stop),
            weight=None if self.weight is None else self.weight[start:stop],
        )


def concatenate(periods: Sequence[PeriodData]) -> PeriodData:
    """Several periods as one, with the table sizes and categories of the last.

    The result has `recent` only if every period has it; periods stored by older releases do not.

    Args:
        periods: at least one, oldest first.

    Raises:
        ValueError: the periods differ in their number of numeric inputs.
    """
    numeric = [p.numeric for p in periods if p.numeric is not None]
    widths = {0 if p.numeric is None else p.numeric.shape[1] for p in periods}
    if len(widths) > 1:
        raise ValueError(f"numeric: expected as many inputs in every period; received {sorted(widths)}")
    recent = [p.recent for p in periods if p.recent is not None]
    fields = None
    if any(p.fields is not None for p in periods):
        fields = FieldColumns.concatenate([p.fields or FieldColumns.none(len(p)) for p in periods])
    lengths = [0, *(len(p.history) for p in periods[:-1])]
    starts = np.cumsum(lengths).tolist()
    return replace(
        periods[-1],
        user=torch.cat([p.user for p in periods]),
        item=torch.cat([p.item for p in periods]),
        history=torch.cat([p.history for p in periods]),
        label=torch.cat([p.label for p in periods]),
        numeric=torch.cat(numeric) if numeric else None,
        recent=torch.cat(recent) if len(recent) == len(periods) else None,
        fields=fields,
        weight=torch.cat([p.importance for p in periods]) if any(p.weight is not None for p in periods) else None,
        offsets=torch.cat([periods[0].offsets[:1], *(p.offsets[1:] + s for p, s in zip(periods, starts, strict=True))]),
    )
