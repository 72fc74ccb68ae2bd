"""The fields of a prepared log as rows of the field table and numbers: the columns that every interaction reads."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from asmg.datasets.field_columns import FieldColumn
from asmg.datasets.prepared import PreparedLog
from asmg.features import MISSING, NUMBER, Field, Schema, bucket_values, numbers, time_values
from asmg.field_columns import SUMS, FieldColumns, unscaled
from asmg.layout import NO_VALUE, OWN_VALUE

__all__ = ["LogFields", "field_columns", "no_columns", "read_columns"]


class LogFields(NamedTuple):
    """What n interactions read of the field table: C columns, those of context and user fields first, then of items.

    A multi field has `most` columns, any other one. Rows are numbered from 1 by first appearance in the order of the
    interactions, so those that the first of them know are the first rows of the table; row 0 is the cold row.
    """

    rows: npt.NDArray[np.int32]
    """[n, C]; NO_VALUE where there is nothing. Of a number the row of (field, NUMBER), or of (field, "") where it is
    missing."""
    numbers: npt.NDArray[np.float64]
    """[n, C] by what the row is weighed once it is standardised; NaN where the column enters by table, and where the
    number is missing."""
    values: list[tuple[str, str]]
    """(field, value) of rows 1, 2, …"""
    neutral: npt.NDArray[np.int32]
    """[C] the row that is read in predicting in the place of the column's own: that of the missing value of a
    `training_only` field (NO_VALUE in its further columns), and OWN_VALUE in the columns of all others. The missing
    values of such fields are the first rows, whether or not they appear."""
    fields: tuple[Field, ...]
    """[C] whose column each is."""

    @property
    def request_columns(self) -> int:
        """How many of the columns are of context and user fields."""
        return sum(field.of != "item" for field in self.fields)

    def take(self, count: int) -> "LogFields":
        """The same of the first interactions alone, and the rows that they know."""
        known = max(int(self.rows[:count].max(initial=0)), int(self.neutral.max(initial=0)))
        return self._replace(rows=self.rows[:count], numbers=self.numbers[:count], values=self.values[:known])

    def part(self, start: int, stop: int) -> "LogFields":
        """The same of the interactions from `start` to `stop` - 1; the rows are those of all."""
        return self._replace(rows=self.rows[start:stop], numbers=self.numbers[start:stop])

    def rows_after(self, ends: Sequence[int]) -> list[int]:
        """Rows of the field table, the cold row included, that the first so many interactions know."""
        least = int(self.neutral.max(initial=0))
        newest = np.maximum.accumulate(self.rows.max(1, initial=least))
        return [int(newest[end - 1]) + 1 for end in ends]

    def columns(self, size: int) -> FieldColumns:
        """The same as models read it, of a field table of `size` rows; numbers are not standardised yet."""
        number = {name: row for row, (name, value) in enumerate(self.values, start=1) if value == NUMBER}
        numbers = [number.get(f.name, NO_VALUE) if not f.by_table else NO_VALUE for f in self.fields]
        return FieldColumns(
            rows=torch.from_numpy(self.rows),
            weights=torch.from_numpy(np.where(np.isnan(self.numbers), 1.0, self.numbers).astype(np.float32)),
            size=size,
            sums=torch.tensor([SUMS.index(f.of) for f in self.fields], dtype=torch.int32),
            neutral=torch.from_numpy(self.neutral),
            numbers=torch.tensor([row if row < size else NO_VALUE for row in numbers], dtype=torch.int32),
            scale=unscaled(len(self.fields)),
        )

    def neutralised(self, which: slice) -> "LogFields":
        """The same with the `training_only` fields of some interactions missing."""
        own = self.neutral == OWN_VALUE
        if own.all():
            return self
        rows, weights = self.rows.copy(), self.numbers.copy()
        rows[which] = np.where(own, rows[which], self.neutral)
        weights[which] = np.where(own, weights[which], np.nan)
        return self._replace(rows=rows, numbers=weights)


def no_columns(count: int) -> LogFields:
    """Those of interactions without fields."""
    return LogFields(np.empty((count, 0), np.int32), np.empty((count, 0)), [], np.empty(0, np.int32), ())


class _Part(NamedTuple):
    """The columns of one field, its values numbered among themselves."""

    places: npt.NDArray[np.int32]
    """[n, m] within `values`; NO_VALUE where there is nothing."""
    numbers: npt.NDArray[np.float64] | None
    """[n] of a field that enters as a number, else None."""
    values: list[str]


def field_columns(log: PreparedLog) -> LogFields:
    """The columns of a log's fields, hour and weekday among them; none where it has no fields (C = 0)."""
    if log.schema is None:
        return no_columns(len(log.user))
    return read_columns(log.schema, log.timestamps_ms, log.by_row)


def read_columns(
    schema: Schema, timestamps_ms: npt.NDArray[np.int64], by_row: Callable[[str], FieldColumn]
) -> LogFields:
    """The columns of n interactions.

    Args:
        schema: their fields.
        timestamps_ms: [n] never decreasing.
        by_row: the values of a field of `schema.fields`, by its name, one of each interaction.
    """
    n = len(timestamps_ms)
    of_time = time_values(schema, timestamps_ms)
    declared = sorted(schema.all, key=lambda field: field.of == "item")
    parts = [_of_time(of_time[f.name]) if f.name in of_time else _part(f, by_row(f.name)) for f in declared]
    widths = [part.places.shape[1] for part in parts]
    columns = tuple(f for f, width in zip(declared, widths, strict=True) for _ in range(width))
    order = _by_first_appearance(declared, parts)
    names = [(field.name, value) for field, part in zip(declared, parts, strict=True) for value in part.values]
    row_of = np.empty(len(names) + 1, np.int32)
    row_of[order] = np.arange(1, len(names) + 1, dtype=np.int32)
    row_of[-1] = NO_VALUE
    rows, weights = np.empty((n, len(columns)), np.int32), np.full((n, len(columns)), np.nan)
    neutral = np.full(len(columns), OWN_VALUE, np.int32)
    start = at = 0
    for field, part, width in zip(declared, parts, widths, strict=True):
        here = slice(at, at + width)
        rows[:, here] = row_of[np.where(part.places == NO_VALUE, len(names), part.places + start)]
        if part.numbers is not None:
            weights[:, at] = part.numbers
        if field.training_only:
            neutral[here] = NO_VALUE
            neutral[at] = row_of[start + part.values.index(MISSING)]
        start, at = start + len(part.values), at + width
    return LogFields(rows, weights, [names[place] for place in order], neutral, columns)


def _by_first_appearance(fields: Sequence[Field], parts: list[_Part]) -> npt.NDArray[np.int64]:
    """The values of all fields, one field's after the other's, in the order of their rows.

    First the missing values of the fields that are for training only, then by first interaction, then by field.
    """
    firsts = []
    for field, part in zip(fields, parts, strict=True):
        n, width = part.places.shape
        first = np.full(len(part.values), n)
        flat = part.places.reshape(-1)[::-1]
        at = np.arange(len(flat))[::-1] // max(1, width)
        present = flat != NO_VALUE
        first[flat[present]] = at[present]  # of a value's places the last written, the first, stays
        if field.training_only:
            first[part.values.index(MISSING)] = -1
        firsts.append(first)
    return np.argsort(np.concatenate(firsts), kind="stable") if firsts else np.zeros(0, np.int64)


def _of_time(texts: npt.NDArray[np.str_]) -> _Part:
    values, places = np.unique(texts, return_inverse=True)
    return _Part(places.astype(np.int32)[:, None], None, values.tolist())


def _part(field: Field, column: FieldColumn) -> _Part:
    """The columns of a field that is no time; values that appear nowhere are left out but for the missing one."""
    if not field.by_table:
        missing = np.isnan(column.values)
        values = [NUMBER, MISSING]
        part = _Part(missing.astype(np.int32)[:, None], numbers(field, column.values), values)
    elif field.kind == "numeric":
        values = [*map(str, range(len(field.buckets) + 1)), MISSING]
        place = {value: n for n, value in enumerate(values)}
        found, inverse = np.unique(bucket_values(field, column.values), return_inverse=True)
        part = _Part(np.array([place[value] for value in found], np.int32)[inverse][:, None], None, values)
    else:
        known: dict[str, int] = {}
        table = np.full((max(1, len(column.distinct)), field.most), NO_VALUE, np.int32)
        for at, several in enumerate(column.distinct):
            table[at, : len(several)] = [known.setdefault(value, len(known)) for value in several]
        known.setdefault(MISSING, len(known))
        part = _Part(table[column.values], None, list(known))
    used = np.zeros(len(part.values), np.bool_)
    used[part.places[part.places != NO_VALUE]] = True
    used[part.values.index(MISSING)] |= field.training_only
    renumbered = np.append(np.cumsum(used, dtype=np.int32) - 1, np.int32(NO_VALUE))
    return part._replace(
        places=renumbered[part.places], values=[v for v, kept in zip(part.values, used, strict=True) if kept]
    )
