"""The fields of a period's interactions: the values of context, user and item as they were at each interaction.

The stage `prepare` makes columns of them; the stage `publish` writes those of the items into the snapshot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from asmg.features import MISSING, NUMBER, Field, Schema, ValueFault, encode, name_of_value, number, time_values
from asmg.field_columns import SUMS, FieldColumns, unscaled
from asmg.layout import COLD_ROW, NO_VALUE, OWN_VALUE
from asmg.numbers import NumberMoments
from service.serving.encode import Known, KnownFields
from service.serving.fields import FieldReader
from service.storage.postgres.repositories import FeaturesOf, PeriodLog

__all__ = [
    "Given",
    "NamedColumns",
    "NamedRows",
    "columns_of_items",
    "fields_of_snapshot",
    "name_columns",
    "names_of_missing",
    "names_of_numbers",
]

Values = Mapping[str, Any]
"""Name of a field → the value that a client sent."""


@dataclass(frozen=True)
class Given:
    """The stored values of fields that clients sent."""

    contexts: Sequence[Values | None]
    """Context of each interaction of a log; None without one."""
    users: FeaturesOf
    """Versions of the features of the log's users."""
    items: FeaturesOf
    """Versions of the features of the log's items."""


class NamedRows(NamedTuple):
    """Ids with the rows that they have in a table."""

    ids: Sequence[str]
    rows: NDArray[np.int64]
    """int64 [N], each ≥ 1."""


@dataclass(frozen=True)
class NamedColumns:
    """Fields as in `asmg.field_columns.FieldColumns`, with names of values instead of rows."""

    names: list[str]
    """Distinct names of values (`asmg.features.name_of_value`)."""
    places: NDArray[np.int32]
    """[N, C] index into `names`; NO_VALUE where there is no value."""
    weights: NDArray[np.float32]
    """[N, C] 1, or for a number its value, not yet standardised."""
    fields: list[Field]
    """[C] the field of each column."""

    def in_rows(self, rows: Mapping[str, int], size: int) -> FieldColumns:
        """The columns with rows instead of names.

        Args:
            rows: name of a value → its row; a name without a row reads the cold row.
            size: number of rows of the table.
        """
        row_of = np.array([rows.get(name, COLD_ROW) for name in self.names] + [NO_VALUE], np.int32)
        first = {field.name: column for column, field in reversed(list(enumerate(self.fields)))}

        def row(name: str) -> int:
            return rows.get(name, COLD_ROW)

        return FieldColumns(
            rows=torch.from_numpy(row_of[self.places]),
            weights=torch.from_numpy(self.weights),
            size=size,
            sums=_int32([SUMS.index(field.of) for field in self.fields]),
            neutral=_int32(
                [
                    OWN_VALUE
                    if not field.training_only
                    else row(name_of_value(field.name, MISSING))
                    if first[field.name] == column
                    else NO_VALUE
                    for column, field in enumerate(self.fields)
                ]
            ),
            numbers=_int32(
                [NO_VALUE if field.by_table else row(name_of_value(field.name, NUMBER)) for field in self.fields]
            ),
            scale=unscaled(len(self.fields)),
        )


def name_columns(schema: Schema, log: PeriodLog, given: Given) -> NamedColumns:
    """The fields of a log as columns.

    Stored values were checked by the schema of the time when they came; a value that this schema does not allow counts
    as missing.

    Args:
        schema: the fields.
        log: its times and ids.
        given: the stored values.
    """
    of_time = time_values(schema, log.timestamps_ms)
    users = given.users.as_of(log.user_ids, log.timestamps_ms)
    items = given.items.as_of(log.item_ids, log.timestamps_ms)
    columns = _Columns(len(log))
    for field in schema.all:
        if field.name in of_time:
            values, which = _distinct(of_time[field.name])
            columns.add(field, [{field.name: value} for value in values], which)
        elif field.of == "context":
            columns.add(field, given.contexts)
        else:
            versions, places = (given.users, users) if field.of == "user" else (given.items, items)
            # Encoded once for each version, not for each interaction; the last entry stands for "no version".
            columns.add(field, [*versions.features, None], places)
    return columns.named()


def columns_of_items(schema: Schema, items: NamedRows, features: FeaturesOf, count: int) -> NamedColumns:
    """The columns of the fields of items.

    Args:
        schema: the fields.
        items: ids of items with their rows.
        features: the newest version of each item that has any.
        count: number of rows; row 0 is the cold row, of which nothing is known.
    """
    row_of, places = dict(zip(items.ids, items.rows.tolist(), strict=True)), np.full(count, -1, np.int64)
    for version, item_id in enumerate(features.ids):
        if COLD_ROW < (row := row_of.get(item_id, COLD_ROW)) < count:
            places[row] = version
    columns = _Columns(count)
    for field in schema.of("item"):
        columns.add(field, [*features.features, None], places)
    return columns.named()


def names_of_numbers(schema: Schema) -> list[str]:
    """Names of the values that weigh numbers."""
    return [name_of_value(field.name, NUMBER) for field in schema.all if not field.by_table]


def names_of_missing(schema: Schema) -> list[str]:
    """Names of the values that an item has of which nothing is known."""
    return [name_of_value(field.name, MISSING) for field in schema.of("item")]


def fields_of_snapshot(
    schema: Schema, of_items: NamedColumns, rows: Mapping[str, int], values: Known, numbers: NumberMoments
) -> KnownFields:
    """What a serving snapshot contains of the fields that its model reads.

    Args:
        schema: the fields.
        of_items: the columns of the items.
        rows: row of each value in `of_items`, and of `names_of_numbers`, in the whole table; values without one are
            left out.
        values: the values that the snapshot knows.
        numbers: moments that standardise numeric fields.
    """
    scales = numbers.scales()
    scale_of = {
        field.name: scales.get(rows.get(name_of_value(field.name, NUMBER), COLD_ROW), (0.0, 0.0))
        for field in schema.all
        if not field.by_table
    }
    scale = torch.tensor([scale_of.get(field.name, (0.0, 1.0)) for field in of_items.fields]).reshape(-1, 2).t()
    columns = replace(of_items.in_rows(rows, max(rows.values(), default=0) + 1), scale=scale.contiguous())
    return KnownFields(values, FieldReader(schema, scale_of), columns)


class _Columns:
    """Collects the columns of n interactions, field by field."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._numbers: dict[str, int] = {}
        self._places: list[NDArray[np.int32]] = []
        self._weights: list[NDArray[np.float32]] = []
        self._fields: list[Field] = []

    def add(self, field: Field, given: Sequence[Values | None], which: NDArray[np.int64] | None = None) -> None:
        """Add the columns of one field.

        Args:
            field: the field.
            given: values of each interaction, or values that `which` picks from.
            which: [n] index into `given` for each interaction; −1 is the last.
        """
        places = np.full((len(given), field.most), NO_VALUE, np.int32)
        weights = np.ones((len(given), field.most), np.float32)
        known: dict[Any, list[int]] = {}
        for at, values in enumerate(given):
            value = None if values is None else values.get(field.name)
            if not field.by_table:
                x = _number(field, value)
                missing = x != x
                places[at, 0] = self._place(field, MISSING if missing else NUMBER)
                weights[at, 0] = 1.0 if missing else x
                continue
            # With its type: True and 1 are equal but different values.
            key = tuple((type(one), one) for one in value) if isinstance(value, list) else (type(value), value)
            if (found := known.get(key)) is None:
                found = known[key] = [self._place(field, text) for text in _texts(field, value)]
            places[at, : len(found)] = found
        for name in ((MISSING,) if field.training_only else ()) + (() if field.by_table else (NUMBER,)):
            self._place(field, name)
        pick = slice(None) if which is None else which
        self._places.append(places[pick])
        self._weights.append(weights[pick])
        self._fields += [field] * field.most

    def named(self) -> NamedColumns:
        """All columns that were added."""
        if not self._fields:
            return NamedColumns([], np.empty((self._n, 0), np.int32), np.empty((self._n, 0), np.float32), [])
        places, weights = np.concatenate(self._places, 1), np.concatenate(self._weights, 1)
        return NamedColumns(list(self._numbers), places, weights, self._fields)

    def _place(self, field: Field, value: str) -> int:
        return self._numbers.setdefault(name_of_value(field.name, value), len(self._numbers))


def _distinct(values: NDArray[Any]) -> tuple[list[Any], NDArray[np.int64]]:
    """The distinct values in the order of their first appearance, and the place of each value among them."""
    found, first, which = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return found[order].tolist(), np.argsort(order)[which]


def _texts(field: Field, value: Any) -> tuple[str, ...]:
    try:
        return encode(field, value)
    except ValueFault:
        return (MISSING,)


def _number(field: Field, value: Any) -> float:
    try:
        return number(field, value)
    except ValueFault:
        return float("nan")


def _int32(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)
