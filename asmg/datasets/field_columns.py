"""The values of a field as a column, one per interaction, user or item."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from asmg.features import MISSING, Field, Value, check, encode

__all__ = ["By", "FieldColumn"]

By = Literal["row", "user", "item"]
"""What a column has one value per: interaction, user or item."""


@dataclass(frozen=True, eq=False)
class FieldColumn:
    """The n values of a field."""

    field: Field
    values: npt.NDArray[Any]
    """For a numeric field float64 [n], NaN if missing; otherwise uint32 [n], places in `distinct`."""
    distinct: tuple[tuple[str, ...], ...] = ()
    """Values as encoded by `asmg.features.encode`, ("",) for a missing one; duplicates and unused ones are allowed.
    Empty for a numeric field."""
    by: By = "row"
    """What the n values belong to. A user field that changes over time has one value per interaction."""

    def __post_init__(self) -> None:
        kind = np.dtype(np.float64 if self.field.kind == "numeric" else np.uint32)
        if self.values.dtype != kind or self.values.ndim != 1:
            received = f"{self.values.dtype} [{', '.join(map(str, self.values.shape))}]"
            raise ValueError(f"{self.field.name}: expected {kind} [n]; received {received}")

    def __len__(self) -> int:
        """The number of values n."""
        return len(self.values)

    @classmethod
    def of(cls, field: Field, values: Iterable[Value], by: By = "row") -> "FieldColumn":
        """The column of values as a client sends them; None for a missing one.

        Raises:
            ValueFault: a value is not allowed for the field.
        """
        if field.kind == "numeric":
            numbers = []
            for value in values:
                check(field, value)
                numbers.append(np.nan if value is None else float(value))  # type: ignore[arg-type] # `check` accepts only numbers
            return cls(field, np.array(numbers, np.float64), (), by)
        known: dict[tuple[str, ...], int] = {}
        places = [known.setdefault(encode(field, value), len(known)) for value in values]
        return cls(field, np.array(places, np.uint32), tuple(known), by)

    @classmethod
    def missing(cls, field: Field, count: int, by: By = "row") -> "FieldColumn":
        """A column of `count` missing values."""
        if field.kind == "numeric":
            return cls(field, np.full(count, np.nan), (), by)
        return cls(field, np.zeros(count, np.uint32), ((MISSING,),), by)

    @classmethod
    def joined(cls, parts: Sequence["FieldColumn"]) -> "FieldColumn":
        """The concatenated values of several columns of one field."""
        starts = np.cumsum([0, *(len(part.distinct) for part in parts)])
        numeric = parts[0].field.kind == "numeric"
        values = [
            part.values if numeric else part.values + np.uint32(start)
            for part, start in zip(parts, starts[:-1], strict=True)
        ]
        return replace(
            parts[0], values=np.concatenate(values), distinct=tuple(v for part in parts for v in part.distinct)
        )

    def take(self, places: npt.NDArray[Any]) -> "FieldColumn":
        """The values at these places (indices or a mask)."""
        return replace(self, values=self.values[places])

    def to_series(self) -> pl.Series:
        """The column as it is stored: floats (null if missing), text as a categorical, or lists of text."""
        name = f"field.{self.field.name}"
        if self.field.kind == "numeric":
            return pl.Series(name, self.values, dtype=pl.Float64).fill_nan(None)
        if self.field.kind == "multi":
            lists = [[] if value == (MISSING,) else list(value) for value in self.distinct]
            return pl.Series(name, lists, dtype=pl.List(pl.String)).gather(pl.Series(self.values))
        texts = pl.Series(name, [value[0] for value in self.distinct], dtype=pl.String).cast(pl.Categorical)
        return texts.gather(pl.Series(self.values))

    @classmethod
    def from_series(cls, field: Field, series: pl.Series, by: By) -> "FieldColumn":
        """The inverse of `to_series`; text may also be plain.

        Raises:
            ValueError: the series has another type, or a value that is not allowed for the field.
        """
        kind = {"numeric": pl.Float64, "multi": pl.List(pl.String), "categorical": pl.Categorical}[field.kind]
        if field.kind == "categorical" and series.dtype == pl.String:
            series = series.cast(pl.Categorical)
        if series.dtype != kind:
            raise ValueError(f"{field.name}: expected {kind}; received {series.dtype}")
        if field.kind == "numeric":
            if series.is_nan().any() or series.is_infinite().any():
                raise ValueError(f"{field.name}: expected finite numbers, null where missing; received another")
            for end in (series.min(), series.max()):
                check(field, end)
            return cls(field, series.fill_null(np.nan).to_numpy(), (), by)
        if field.kind == "categorical":
            series = series.fill_null(MISSING)
            places = series.to_physical().to_numpy()
        else:
            series = series.fill_null(pl.lit([], dtype=pl.List(pl.String)))
            places = series.rank("dense").to_numpy()
        first = np.full(int(places.max(initial=0)) + 1, -1)  # one of the places of each number
        first[places] = np.arange(len(places))
        used = np.flatnonzero(first >= 0)
        numbers = np.zeros(len(first), np.uint32)
        numbers[used] = np.arange(len(used), dtype=np.uint32)
        distinct = series.gather(first[used]).to_list()
        return cls(field, numbers[places], tuple(encode(field, value) for value in distinct), by)
