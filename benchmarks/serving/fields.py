"""Fields of the measured model: a schema with fields of every kind, random values of users, items and requests, and
what the model reads of them.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asmg.features import MISSING, NUMBER, Field, Of, Schema, encode, name_of_value, number
from asmg.field_columns import SUMS
from asmg.layout import FURTHEST
from asmg.numbers import NumberMoments
from benchmarks.serving.requests import item_id, user_id
from service.serving.encode import Known, KnownFields
from service.storage.postgres.repositories import FeaturesOf, FeatureVersion
from service.use_cases.update.period_fields import NamedRows, columns_of_items, fields_of_snapshot

OF_EACH = 5
"""Number of features of a user, and of an item."""

VALUES = 20
"""Number of values of a categorical field."""

MOST = 4
"""Most values of a multi field."""

EDGES = (20.0, 40.0, 60.0, 80.0)
"""Edges of the buckets of a number, which is drawn from 0 to 100."""

Given = Mapping[str, Any]
"""Values of fields by their names."""


def make_fields(context: int, users: int, items: int, seed: int) -> "ServingFields":
    """Fields with random values.

    Args:
        context: number of fields of the context.
        users, items: rows of the tables, without the cold rows.
        seed: of the values.
    """
    counts: dict[Of, int] = {"context": context, "user": OF_EACH, "item": OF_EACH}
    fields = tuple(_field(of, n) for of, count in counts.items() for n in range(count))
    # Neither hour nor weekday: they would change what is expected while it is measured, and cost next to nothing.
    return ServingFields(Schema(fields, time=()), users, items, seed)


class ServingFields:
    """A schema, and the values that users, items and requests have of its fields."""

    def __init__(self, schema: Schema, users: int, items: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 4])
        self.schema, self._seed = schema, seed
        self.users = [{}, *self._some("user", users, rng)]
        """Features by row of the user table; the cold row has none."""
        self.items = [{}, *self._some("item", items, rng)]
        """Features by row of the item table."""
        names = [name_of_value(field.name, value) for field in schema.fields for value in _values(field)]
        self._values = NamedRows(names, np.arange(1, len(names) + 1))

    @property
    def size(self) -> int:
        """Rows of the field table."""
        return 1 + len(self._values.ids)

    def contexts(self, count: int) -> list[Given]:
        """The contexts of `count` requests."""
        return self._some("context", count, np.random.default_rng([self._seed, 5]))

    def versions(self, rows: Sequence[int], at: Any) -> list[FeatureVersion]:
        """The features of users, as the service stores them."""
        return [FeatureVersion(user_id(row), at, self.users[row]) for row in rows]

    def known(self) -> KnownFields:
        """The fields as a snapshot holds them."""
        ids = [item_id(row) for row in range(1, len(self.items))]
        features = FeaturesOf(ids, np.zeros(len(ids), np.int64), self.items[1:])
        items = NamedRows(ids, np.arange(1, len(self.items)))
        columns = columns_of_items(self.schema, items, features, len(self.items))
        rows = dict(zip(self._values.ids, self._values.rows.tolist(), strict=True))
        return fields_of_snapshot(self.schema, columns, rows, Known.of(*self._values), self._moments)

    def sums(
        self, table: Tensor, contexts: Sequence[Given], users: NDArray[np.int64], items: NDArray[np.int64]
    ) -> Tensor:
        """What the model reads of each candidate, [R · n, 3 · dim], as `asmg.models.field_sums` has it.

        Args:
            table: the field table.
            contexts: of each request.
            users: rows of their users, [R].
            items: rows of the candidates, [R, n].
        """
        n = items.shape[1]
        parts = {
            "context": torch.stack([self._sum(table, "context", context) for context in contexts]),
            "user": torch.stack([self._sum(table, "user", self.users[row]) for row in users.tolist()]),
        }
        found = {of: each.repeat_interleave(n, 0) for of, each in parts.items()}
        found["item"] = torch.stack([self._sum(table, "item", self.items[row]) for row in items.reshape(-1).tolist()])
        return torch.cat([found[of] for of in SUMS], 1)

    def _sum(self, table: Tensor, of: Of, given: Given) -> Tensor:
        total = torch.zeros(table.shape[1])
        for field in self.schema.of(of):
            value = given.get(field.name)
            if field.by_table or value is None:
                texts = encode(field, value) if field.by_table else (MISSING,)
                for text in texts:
                    total += table[self._row_of[name_of_value(field.name, text)]]
            else:
                row = self._row_of[name_of_value(field.name, NUMBER)]
                mean, by = self._moments.scales()[row]
                weight = min(max((number(field, value) - mean) * by, -FURTHEST), FURTHEST)
                total += weight * table[row]
        return total

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return dict(zip(self._values.ids, self._values.rows.tolist(), strict=True))

    @cached_property
    def _moments(self) -> NumberMoments:
        rows = sorted(
            self._row_of[name_of_value(field.name, NUMBER)] for field in self.schema.fields if not field.by_table
        )
        one = torch.tensor([[100.0, 300.0, 1300.0]], dtype=torch.float64)  # mean 3, deviation 2
        return NumberMoments(torch.tensor(rows, dtype=torch.int64), one.repeat(len(rows), 1))

    def _some(self, of: Of, count: int, rng: np.random.Generator) -> list[Given]:
        fields = self.schema.of(of)
        columns = [_random(field, count, rng) for field in fields]
        return [
            {field.name: value for field, value in zip(fields, values, strict=True)}
            for values in zip(*columns, strict=True)
        ] or [{}] * count


def _field(of: Of, n: int) -> Field:
    """The n-th field: one in five is a number (log and buckets in turn), one in ten multi, the others categorical."""
    name = f"{of}_{n}"
    if n % 5 == 3:
        bucketised = n % 10 == 8
        return Field(name, of, "numeric", enter="buckets" if bucketised else "log", buckets=EDGES if bucketised else ())
    if n % 10 == 4:
        return Field(name, of, "multi", most=MOST)
    return Field(name, of, "categorical")


def _values(field: Field) -> list[str]:
    """All values of a field, the missing one included."""
    if not field.by_table:
        return [NUMBER, MISSING]
    if field.kind == "numeric":
        return [*map(str, range(len(EDGES) + 1)), MISSING]
    return [*(f"value-{n}" for n in range(VALUES)), MISSING]


def _random(field: Field, count: int, rng: np.random.Generator) -> list[Any]:
    if field.kind == "numeric":
        found: list[Any] = np.round(100 * rng.random(count), 2).tolist()
        return found
    places = rng.integers(VALUES, size=(count, 3 if field.kind == "multi" else 1)).tolist()
    texts = [[f"value-{place}" for place in several] for several in places]
    return texts if field.kind == "multi" else [several[0] for several in texts]
