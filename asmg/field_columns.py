"""The fields of interactions as a model reads them: rows of the field table and their weights, in columns.

All fields of context, users and items share one embedding table with a row for each value of each field. A model reads
three weighted *sums* of its rows: the context's, the user's and the item's. So adding or removing a field changes no
shape of the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from asmg.layout import COLD_ROW, FURTHEST, NO_VALUE, OWN_VALUE

__all__ = ["SUMS", "BatchFields", "FieldColumns", "range_of", "unscaled"]

SUMS = ("context", "user", "item")
"""The sums in their order; each field belongs to one of them."""


class BatchFields(NamedTuple):
    """The fields of a batch of B interactions, standardised; see `FieldColumns`."""

    rows: Tensor
    """int64 [B, C], rows of the field table, NO_VALUE for none."""
    weights: Tensor
    """float32 [B, C], the weight of each row in its sum."""
    sums: Tensor
    """int64 [C], the sum of each column, an index of `SUMS`."""


@dataclass(frozen=True, kw_only=True)
class FieldColumns:
    """The fields of N interactions in C columns. A multi-valued field has several columns, any other one.

    Raises:
        ValueError: a tensor has another shape, or a value is out of range; the message names it.
    """

    rows: Tensor
    """int32 [N, C], rows of the field table; NO_VALUE for no (further) value."""
    weights: Tensor
    """float32 [N, C], the weight of each row in its sum: 1, or, in a column of numbers, the number before scaling."""
    sums: Tensor
    """int32 [C], the sum of each column, an index of `SUMS`: 0 context, 1 user, 2 item."""
    size: int
    """Rows of the field table after this period, the cold row included."""
    neutral: Tensor
    """int32 [C]: for a training-only column the row that it reads in predictions (that of the missing value, or
    NO_VALUE); OWN_VALUE for all other columns."""
    numbers: Tensor
    """int32 [C]: for a column of numbers the row that the numbers weight (a missing number reads another row); NO_VALUE
    for all other columns."""
    scale: Tensor
    """float32 [2, C]: for each number, what is subtracted and the factor applied afterwards (`asmg.numbers`); 0 and 1
    in all other columns, and before they are known."""

    def __post_init__(self) -> None:
        n, c = self.rows.shape if self.rows.dim() == 2 else (-1, -1)
        if c < 0 or self.rows.dtype != torch.int32:
            raise ValueError(f"fields.rows: expected int32 [N, C]; received {self.rows.dtype} {list(self.rows.shape)}")
        if self.weights.shape != (n, c) or self.weights.dtype != torch.float32:
            received = f"{self.weights.dtype} {list(self.weights.shape)}"
            raise ValueError(f"fields.weights: expected float32 [{n}, {c}]; received {received}")
        for name in ("sums", "neutral", "numbers"):
            if getattr(self, name).shape != (c,):
                raise ValueError(f"fields.{name}: expected {c} columns; received {list(getattr(self, name).shape)}")
        low, top = range_of(self.sums) if c else (0, 0)
        if low < 0 or top >= len(SUMS):
            raise ValueError(f"fields.sums: expected numbers from 0 to {len(SUMS) - 1}; received {low}..{top}")
        if self.size < 1:
            raise ValueError(f"fields.size: expected at least 1 row; received {self.size}")
        if self.scale.shape != (2, c):
            raise ValueError(f"fields.scale: expected shape (2, {c}); received {tuple(self.scale.shape)}")
        for name, least in (("rows", NO_VALUE), ("neutral", OWN_VALUE), ("numbers", NO_VALUE)):
            rows = getattr(self, name)
            low, top = range_of(rows) if rows.numel() else (0, 0)
            if low < least or top >= self.size:
                raise ValueError(f"fields.{name}: expected rows from {least} to {self.size - 1}; received {low}..{top}")
        for name in ("weights", "scale"):
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise ValueError(f"fields.{name}: expected finite numbers; received NaN or infinity")

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: Tensor) -> "BatchFields":
        """The fields of the interactions at `index` (int64 [B]), standardised, for a forward pass."""
        read = self.at(index).standardised()
        return BatchFields(read.rows.long(), read.weights, read.sums.long())

    def at(self, index: Tensor) -> "FieldColumns":
        """The fields of the interactions at `index` (int64, or a bool mask [N])."""
        return replace(self, rows=self.rows[index], weights=self.weights[index])

    def cut(self, start: int, stop: int) -> "FieldColumns":
        """The fields of the interactions start to stop - 1."""
        return replace(self, rows=self.rows[start:stop], weights=self.weights[start:stop])

    @classmethod
    def none(cls, n: int) -> "FieldColumns":
        """No columns, for `n` interactions without fields."""
        nothing = torch.empty(0, dtype=torch.int32)
        rows = torch.empty(n, 0, dtype=torch.int32)
        return cls(
            rows=rows,
            weights=torch.empty(n, 0),
            size=1,
            sums=nothing,
            neutral=nothing,
            numbers=nothing,
            scale=torch.empty(2, 0),
        )

    def within(self, size: int) -> "FieldColumns":
        """The fields, standardised, as a model with a field table of `size` rows reads them.

        Rows past the table's end become the cold row. A number whose row is past it gets the weight 0: a model that
        does not know the field ignores it.
        """
        read = self.standardised()
        rows, neutral = (torch.where(values < size, values, COLD_ROW) for values in (self.rows, self.neutral))
        unknown = (self.rows == self.numbers) & (self.rows >= size)
        weights = read.weights.masked_fill(unknown, 0.0)
        return replace(read, rows=rows, weights=weights, neutral=neutral, size=max(size, self.size))

    def forgotten(self, rows: Tensor) -> "FieldColumns":
        """The fields, standardised, with these rows (int64 [n]) replaced by the cold row.

        A number whose row is among them gets the weight 0. Rows past the table's end are ignored.
        """
        gone = torch.zeros(
            self.size + 2, dtype=torch.bool
        )  # NO_VALUE and OWN_VALUE index the last two, which are no rows
        gone[rows[rows < self.size]] = True

        def cold(values: Tensor) -> Tensor:
            return values.masked_fill(gone[values.long()], COLD_ROW)

        read, lost = self.standardised(), (self.rows == self.numbers) & gone[self.rows.long()]
        weights = read.weights.masked_fill(lost, 0.0)
        return replace(read, rows=cold(read.rows), weights=weights, neutral=cold(read.neutral))

    def when_predicting(self) -> "FieldColumns":
        """The fields as in predictions: all training-only columns neutral."""
        return self.with_neutral(torch.ones(len(self), 1, dtype=torch.bool)) if self.trains_only else self

    def with_neutral(self, where: Tensor) -> "FieldColumns":
        """The fields with training-only columns neutral where `where` is true (bool [N, C], or [N, 1] for all
        columns).
        """
        where = where & (self.neutral != OWN_VALUE) & (self.rows != NO_VALUE)
        rows = torch.where(where, self.neutral, self.rows)
        return replace(self, rows=rows, weights=self.weights.masked_fill(where, 1.0))

    @property
    def has_numbers(self) -> bool:
        """Whether there is a column of numbers."""
        return bool((self.numbers != NO_VALUE).any())

    def standardised(self) -> "FieldColumns":
        """The fields with scaled numbers, limited to ±FURTHEST, as models read them. Afterwards no column counts as
        numbers.
        """
        if not self.has_numbers:
            return self
        mean, by = self.scale
        scaled = ((self.weights - mean) * by).clamp(-FURTHEST, FURTHEST)
        weights = torch.where(self.rows == self.numbers, scaled, self.weights)
        settled = torch.full_like(self.numbers, NO_VALUE)
        return replace(self, weights=weights, numbers=settled, scale=unscaled(len(settled)))

    @property
    def trains_only(self) -> bool:
        """Whether there is a training-only column."""
        return bool((self.neutral != OWN_VALUE).any())

    @classmethod
    def concatenate(cls, parts: "Sequence[FieldColumns]") -> "FieldColumns":
        """The fields of several periods as one, oldest first; numbers are standardised by each period's own scale.

        Columns of different schemas are kept side by side.
        """
        parts = [part.standardised() for part in parts]
        newest = replace(parts[-1], size=max(part.size for part in parts))
        if all(part._like(newest) for part in parts):
            rows, weights = (torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "weights"))
            return replace(newest, rows=rows, weights=weights)
        ends = np.cumsum([0, *(len(part) for part in parts)])
        rows = torch.full((int(ends[-1]), sum(len(part.sums) for part in parts)), NO_VALUE, dtype=torch.int32)
        weights, at = torch.ones(rows.shape), 0
        for part, start, stop in zip(parts, ends, ends[1:], strict=False):
            own = slice(at, at + len(part.sums))
            rows[start:stop, own], weights[start:stop, own] = part.rows, part.weights
            at = own.stop
        columns: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts], -1) for name in _BY_COLUMN}
        return replace(newest, rows=rows, weights=weights, **columns)

    def _like(self, other: "FieldColumns") -> bool:
        """Whether the columns of both have the same meaning."""
        return all(torch.equal(getattr(self, name), getattr(other, name)) for name in _BY_COLUMN)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint stores."""
        return {name: getattr(self, name) for name in ("rows", "weights", *_BY_COLUMN)}

    def meta(self) -> dict[str, Any]:
        """The other values that a checkpoint stores, as plain JSON."""
        return {"size": self.size}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> "FieldColumns":
        """The inverse of `tensors` and `meta`."""
        return cls(**{**tensors, **meta})


_BY_COLUMN = ("sums", "neutral", "numbers", "scale")


def unscaled(columns: int) -> Tensor:
    """The scale [2, C] that changes no number: 0 and 1."""
    return torch.stack([torch.zeros(columns), torch.ones(columns)])


def range_of(values: Tensor) -> tuple[int, int]:
    """The least and the greatest of one or more integers."""
    low, top = values.aminmax()
    return int(low), int(top)
