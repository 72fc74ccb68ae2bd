"""The fields of a log as rows of the field table and numbers, in columns. Used by experiments, yardsticks and the
demo.
"""

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
    """The fields of n interactions in C columns, those of context and user fields before those of item fields.

    A multi field has `most` columns, any other one. Rows of the field table are numbered from 1 by first appearance, so
    the first interactions use the first rows; row 0 is the cold row.
    """

    rows: npt.NDArray[np.int32]
    """[n, C], rows; NO_VALUE for no value. For a number the row of (field, NUMBER), or of (field, "") if it is
    missing."""
    numbers: npt.NDArray[np.float64]
    """[n, C], the numbers, not standardised; NaN for missing numbers and in columns of fields that enter by table."""
    values: list[tuple[str, str]]
    """(field, value) of the rows 1, 2, …"""
    neutral: npt.NDArray[np.int32]
    """[C], for a column of a `training_only` field the row that it reads in predictions: that of the missing value, or
    NO_VALUE in its further columns. OWN_VALUE for all other columns. The missing values of such fields are the first
    rows, even if they do not appear."""
    fields: tuple[Field, ...]
    """[C], the field of each column."""

    @property
    def request_columns(self) -> int:
        """Number of columns of context and user fields."""
        return sum(field.of != "item" for field in self.fields)

    def take(self, count: int) -> "LogFields":
        """The fields of the first `count` interactions, with the rows that they use."""
        known = max(int(self.rows[:count].max(initial=0)), int(self.neutral.max(initial=0)))
        return self._replace(rows=self.rows[:count], numbers=self.numbers[:count], values=self.values[:known])

    def part(self, start: int, stop: int) -> "LogFields":
        """The fields of the interactions `start` to `stop` - 1, with the rows of all."""
        return self._replace(rows=self.rows[start:stop], numbers=self.numbers[start:stop])

    def rows_after(self, ends: Sequence[int]) -> list[int]:
        """Size of the field table, cold row included, after each of these numbers of interactions."""
        least = int(self.neutral.max(initial=0))
        newest = np.maximum.accumulate(self.rows.max(1, initial=least))
        return [int(newest[end - 1]) + 1 for end in ends]

    def columns(self, size: int) -> FieldColumns:
        """The columns as models read them, for a field table of `size` rows; numbers are not standardised."""
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
        """The fields with `training_only` ones missing in the interactions `which`."""
        own = self.neutral == OWN_VALUE
        if own.all():
            return self
        rows, weights = self.rows.copy(), self.numbers.copy()
        rows[which] = np.where(own, rows[which], self.neutral)
        weights[which] = np.where(own, weights[which], np.nan)
        return self._replace(rows=rows, numbers=weights)


def no_columns(count: int) -> LogFields:
    """No columns, for `count` interactions without fields."""
    return LogFields(np.empty((count, 0), np.int32), np.empty((count, 0)), [], np.empty(0, np.int32), ())


class _OwnColumns(NamedTuple):
    """The columns of one field, with its own numbering of values."""

    places: npt.NDArray[np.int32]
    """[n, m], places in `values`; NO_VALUE for no value."""
    numbers: npt.NDArray[np.float64] | None
    """[n], the numbers of a field that enters as a number, else None."""
    values: list[str]


def field_columns(log: PreparedLog) -> LogFields:
    """The columns of a log's fields, hour and weekday included; C = 0 for a log without fields."""
    if log.schema is None:
        return no_columns(len(log.user))
    return read_columns(log.schema, log.timestamps_ms, log.by_row)


def read_columns(
    schema: Schema, timestamps_ms: npt.NDArray[np.int64], by_row: Callable[[str], FieldColumn]
) -> LogFields:
    """The columns of n interactions.

    Args:
        schema: the fields.
        timestamps_ms: [n], milliseconds since 1970, never decreasing.
        by_row: returns the values of a declared field by its name, one per interaction.
    """
    n = len(timestamps_ms)
    of_time = time_values(schema, timestamps_ms)
    declared = sorted(schema.all, key=lambda field: field.of == "item")
    parts = [_time_columns(of_time[f.name]) if f.name in of_time else _own_columns(f, by_row(f.name)) for f in declared]
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


def _by_first_appearance(fields: Sequence[Field], parts: list[_OwnColumns]) -> npt.NDArray[np.int64]:
    """The order in which values get rows, as indices of the concatenated values of all fields.

    First the missing values of the training-only fields, then by first interaction, then by field.
    """
    firsts = []
    for field, part in zip(fields, parts, strict=True):
        n, width = part.places.shape
        first = np.full(len(part.values), n)
        flat = part.places.reshape(-1)[::-1]
        at = np.arange(len(flat))[::-1] // max(1, width)
        present = flat != NO_VALUE
        first[flat[present]] = at[present]  # numpy keeps the last write: the first place
        if field.training_only:
            first[part.values.index(MISSING)] = -1
        firsts.append(first)
    return np.argsort(np.concatenate(firsts), kind="stable") if firsts else np.zeros(0, np.int64)


def _time_columns(texts: npt.NDArray[np.str_]) -> _OwnColumns:
    values, places = np.unique(texts, return_inverse=True)
    return _OwnColumns(places.astype(np.int32)[:, None], None, values.tolist())


def _own_columns(field: Field, column: FieldColumn) -> _OwnColumns:
    """The columns of a declared field, without unused values except a training-only field's missing one."""
    if not field.by_table:
        missing = np.isnan(column.values)
        values = [NUMBER, MISSING]
        part = _OwnColumns(missing.astype(np.int32)[:, None], numbers(field, column.values), values)
    elif field.kind == "numeric":
        values = [*map(str, range(len(field.buckets) + 1)), MISSING]
        place = {value: n for n, value in enumerate(values)}
        found, inverse = np.unique(bucket_values(field, column.values), return_inverse=True)
        part = _OwnColumns(np.array([place[value] for value in found], np.int32)[inverse][:, None], None, values)
    else:
        known: dict[str, int] = {}
        table = np.full((max(1, len(column.distinct)), field.most), NO_VALUE, np.int32)
        for at, several in enumerate(column.distinct):
            table[at, : len(several)] = [known.setdefault(value, len(known)) for value in several]
        known.setdefault(MISSING, len(known))
        part = _OwnColumns(table[column.values], None, list(known))
    used = np.zeros(len(part.values), np.bool_)
    used[part.places[part.places != NO_VALUE]] = True
    used[part.values.index(MISSING)] |= field.training_only
    renumbered = np.append(np.cumsum(used, dtype=np.int32) - 1, np.int32(NO_VALUE))
    return part._replace(
        places=renumbered[part.places], values=[v for v, kept in zip(part.values, used, strict=True) if kept]
    )
