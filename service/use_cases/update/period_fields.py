"""The fields of a period's interactions: what was known of the context, the user and the item at each of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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

__all__ = ["Given", "NamedColumns", "fields_of_snapshot", "name_columns"]

Values = Mapping[str, Any]
"""Name of a field → what a client sent for it."""


@dataclass(frozen=True)
class Given:
    """What clients sent, as it is stored."""

    contexts: Sequence[Values | None]
    """Of each interaction of a log."""
    users: FeaturesOf
    """Versions of the features of its users."""
    items: FeaturesOf
    """Those of its items."""


@dataclass(frozen=True)
class NamedColumns:
    """Fields as `asmg.field_columns.FieldColumns` has them, with names of values in the place of rows."""

    names: list[str]
    """Distinct names of values (`asmg.features.name_of_value`)."""
    places: NDArray[np.int32]
    """[N, C] within `names`; NO_VALUE for nothing."""
    weights: NDArray[np.float32]
    """[N, C]: 1, or a number that is not standardised yet."""
    fields: list[Field]
    """[C] whose column each is."""

    def in_rows(self, rows: Mapping[str, int], size: int) -> FieldColumns:
        """The same in rows of a table of `size` rows; a name without a row reads the cold one."""
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
    """The fields of a log.

    What is stored was checked when it came, by the schema of then: a value that a field of this one cannot have counts
    as missing.
    """
    of_time = time_values(schema, log.timestamps_ms)
    users = given.users.as_of(log.user_ids, log.timestamps_ms)
    items = given.items.as_of(log.item_ids, log.timestamps_ms)
    columns = _Columns(len(log))
    for field in schema.all:
        if field.name in of_time:
            columns.add(field, [{field.name: value} for value in of_time[field.name].tolist()])
        elif field.of == "context":
            columns.add(field, given.contexts)
        else:
            versions, places = (given.users, users) if field.of == "user" else (given.items, items)
            # Read once for each version, not for each interaction; the last is that of nobody.
            columns.add(field, [*versions.features, None], places)
    return columns.named()


def fields_of_snapshot(
    schema: Schema, values: Known, items: Known, features: FeaturesOf, count: int, numbers: NumberMoments
) -> KnownFields:
    """What a snapshot has to know of the fields that its model reads.

    Args:
        schema: says which there are.
        values: the values that have a row, by name.
        items: the items that have one.
        features: the newest version of each item that has any.
        count: rows of the item table; row 0 is an item of which nothing is known.
        numbers: what standardises the numbers.
    """
    rows, scales = dict(zip(values.ids, np.asarray(values.rows).tolist(), strict=True)), numbers.scales()
    scale_of = {
        field.name: scales.get(rows.get(name_of_value(field.name, NUMBER), COLD_ROW), (0.0, 0.0))
        for field in schema.all
        if not field.by_table
    }
    row_of, places = dict(zip(items.ids, np.asarray(items.rows).tolist(), strict=True)), np.full(count, -1, np.int64)
    for version, item_id in enumerate(features.ids):
        if (row := row_of.get(item_id, COLD_ROW)) != COLD_ROW:
            places[row] = version
    columns = _Columns(count)
    for field in schema.of("item"):
        columns.add(field, [*features.features, None], places)
    named = columns.named()
    scale = torch.tensor([scale_of.get(field.name, (0.0, 1.0)) for field in named.fields]).reshape(-1, 2).t()
    of_items = replace(named.in_rows(rows, max(rows.values(), default=0) + 1), scale=scale.contiguous())
    return KnownFields(values, FieldReader(schema, scale_of), of_items)


class _Columns:
    """Columns of n interactions, field by field."""

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
            given: of each interaction, or of those that `which` picks from.
            which: [n], a place in `given` for each interaction; −1 is its last.
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
            # By type too: true is another value than 1, and equal to it.
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
        """All that was added."""
        if not self._fields:
            return NamedColumns([], np.empty((self._n, 0), np.int32), np.empty((self._n, 0), np.float32), [])
        places, weights = np.concatenate(self._places, 1), np.concatenate(self._weights, 1)
        return NamedColumns(list(self._numbers), places, weights, self._fields)

    def _place(self, field: Field, value: str) -> int:
        return self._numbers.setdefault(name_of_value(field.name, value), len(self._numbers))


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
