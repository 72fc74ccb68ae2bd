"""What interactions read of the field table: rows and weights, column by column.

All fields of the context, of users and of items share one embedding table, which has a row for each value of each
field, and a model reads three *sums* of its rows: the context's, the user's and the item's. So a field is data: one
more, or one fewer, changes no shape.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asmg.layout import COLD_ROW, NO_VALUE

__all__ = ["SUMS", "FieldColumns"]

SUMS = ("context", "user", "item")
"""What a field is of, in the order of the sums."""


@dataclass(frozen=True, kw_only=True)
class FieldColumns:
    """The fields of N interactions in C columns. A field of one value has one column, a multi-valued field several."""

    rows: Tensor
    """int32 [N, C], rows of the field table, NO_VALUE where a column has no (further) value."""
    weights: Tensor
    """float32 [N, C], what each row counts in the sum: 1, or, for a number, the number (standardised, once it is
    prepared)."""
    sums: Tensor
    """int32 [C]: of what each column is, and so the sum that it belongs to: 0 context, 1 user, 2 item (`SUMS`)."""
    size: int
    """Rows of the field table after this period, the cold row included."""
    neutral: Tensor
    """int32 [C]: the row (that of the missing value) which a training-only column reads when a model predicts; NO_VALUE
    for all other columns."""
    numbers: Tensor
    """int32 [C]: the row of each column whose weights are numbers yet to be standardised; NO_VALUE for the others."""

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
        if c and not (int(self.sums.min()) >= 0 and int(self.sums.max()) < len(SUMS)):
            low, top = int(self.sums.min()), int(self.sums.max())
            raise ValueError(f"fields.sums: expected numbers from 0 to {len(SUMS) - 1}; received {low}..{top}")
        if self.size < 1:
            raise ValueError(f"fields.size: expected at least 1 row; received {self.size}")
        for name in ("rows", "neutral", "numbers"):
            rows = getattr(self, name)
            if rows.numel() and not (int(rows.min()) >= NO_VALUE and int(rows.max()) < self.size):
                low, top = int(rows.min()), int(rows.max())
                raise ValueError(f"fields.{name}: expected rows under {self.size} or {NO_VALUE}; received {low}..{top}")
        if not bool(torch.isfinite(self.weights).all()):
            raise ValueError("fields.weights: expected finite numbers; received NaN or infinity")

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, index: Tensor) -> "FieldColumns":
        """Those of the interactions at `index` (int64 or a bool mask)."""
        return replace(self, rows=self.rows[index], weights=self.weights[index])

    def cut(self, start: int, stop: int) -> "FieldColumns":
        """Those of the interactions start..stop-1."""
        return replace(self, rows=self.rows[start:stop], weights=self.weights[start:stop])

    @classmethod
    def none(cls, n: int) -> "FieldColumns":
        """Of `n` interactions of which no field is known."""
        nothing = torch.empty(0, dtype=torch.int32)
        rows = torch.empty(n, 0, dtype=torch.int32)
        return cls(rows=rows, weights=torch.empty(n, 0), size=1, sums=nothing, neutral=nothing, numbers=nothing)

    def within(self, size: int) -> "FieldColumns":
        """For a table of `size` rows: the cold row in the place of those past its end."""
        rows, neutral = (torch.where(values < size, values, COLD_ROW) for values in (self.rows, self.neutral))
        return replace(self, rows=rows, neutral=neutral, size=max(size, self.size))

    def forgotten(self, rows: Tensor) -> "FieldColumns":
        """With the cold row in the place of these rows (int64 [n], any of which may be past the table's end)."""
        gone = torch.zeros(self.size + 1, dtype=torch.bool)  # NO_VALUE finds the last place, which no row has
        gone[rows[rows < self.size]] = True

        def cold(values: Tensor) -> Tensor:
            return values.masked_fill(gone[values.long()], COLD_ROW)

        return replace(self, rows=cold(self.rows), neutral=cold(self.neutral))

    def when_predicting(self) -> "FieldColumns":
        """With every training-only column neutral, as it is when a model predicts."""
        return self.with_neutral(torch.ones(len(self), 1, dtype=torch.bool)) if self.trains_only else self

    def with_neutral(self, where: Tensor) -> "FieldColumns":
        """With the training-only columns neutral in the places of `where` (bool [N, C], or [N, 1] for all of them)."""
        where = where & (self.neutral != NO_VALUE) & (self.rows != NO_VALUE)
        rows = torch.where(where, self.neutral, self.rows)
        return replace(self, rows=rows, weights=self.weights.masked_fill(where, 1.0))

    @property
    def trains_only(self) -> bool:
        """Whether there is a training-only column."""
        return bool((self.neutral != NO_VALUE).any())

    @classmethod
    def concatenate(cls, parts: "Sequence[FieldColumns]") -> "FieldColumns":
        """Several periods' fields as one, oldest first; the table is that of the last.

        Columns of different schemas stand side by side.
        """
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
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("sums", "neutral", "numbers")}
        return replace(newest, rows=rows, weights=weights, **columns)

    def _like(self, other: "FieldColumns") -> bool:
        """Whether columns of both mean the same to a model."""
        return all(torch.equal(getattr(self, name), getattr(other, name)) for name in ("sums", "neutral", "numbers"))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside `meta`."""
        return {name: getattr(self, name) for name in ("rows", "weights", "sums", "neutral", "numbers")}

    def meta(self) -> dict[str, Any]:
        """The rest, as plain JSON values."""
        return {"size": self.size}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> "FieldColumns":
        """The inverse of `tensors` and `meta`."""
        return cls(**tensors, **meta)
