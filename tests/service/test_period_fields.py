"""The fields of a period's interactions: what was known of context, user and item at each, as rows and weights."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from asmg.features import Field, Schema
from asmg.field_columns import SUMS, FieldColumns
from asmg.layout import COLD_ROW, NO_VALUE, OWN_VALUE
from asmg.numbers import NumberMoments
from service.serving.encode import Known
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EntityKind, EventBatch, FeaturesOf, FeatureVersion, Interaction
from service.use_cases.update.period_fields import NamedRows, columns_of_items, fields_of_snapshot
from tests.service.eviction_support import rows_of
from tests.service.update_support import HOUR_MS, moment, prepare_period

DEVICE = Field("device", "context", "categorical")
PAGE = Field("page", "context", "numeric")
PLACE = Field("place", "context", "categorical", training_only=True)
MARKS = Field("marks", "context", "multi", most=3)
AGE = Field("age", "user", "numeric", enter="buckets", buckets=(18.0, 30.0))
PRICE = Field("price", "item", "numeric", enter="log")
TAGS = Field("tags", "item", "multi", most=2)
START_MS = 1_700_000_000_000
NO_TIME: dict[str, Any] = {"time": ()}


@dataclass
class Logs:
    """Periods of events that each have a user, an item, a millisecond and a context."""

    database: Database
    closed: int = 0

    def _start(self, period: int) -> int:
        return START_MS + period * HOUR_MS

    async def know(self, kind: Any, *versions: tuple[str, int, dict[str, Any]]) -> None:
        """Versions of features, from a millisecond of the next period on."""
        start = self._start(self.closed + 1)
        async with self.database.unit_of_work() as work:
            put = [FeatureVersion(id_, moment(start + at), values) for id_, at, values in versions]
            await work.features.put(kind, put)
            await work.commit()

    async def happen(self, *events: tuple[str, str, int, dict[str, Any] | None]) -> None:
        """A period, closed."""
        self.closed += 1
        logged = [
            Interaction(
                f"{self.closed}-{n:03}",
                user,
                item,
                n % 2,
                moment(self._start(self.closed) + at),
                context=None if context is None else json.dumps(context),
            )
            for n, (user, item, at, context) in enumerate(events)
        ]
        async with self.database.unit_of_work() as work:
            await work.interactions.insert(self.closed, EventBatch.of(logged))
            await work.periods.seal(self.closed, len(logged))
            await work.periods.create(self.closed + 1)
            await work.commit()

    async def read(self, schema: Schema, *, evict_after: int | None = None) -> "Read":
        """The fields of the last period."""
        prepared = await prepare_period(self.database, self.closed, 30, evict_after=evict_after, schema=schema)
        assert prepared.data.fields is not None
        rows = await rows_of(self.database, EntityKind.FIELD)
        return Read(prepared.data.fields, rows, schema, prepared.allocations)


@dataclass(frozen=True)
class Read:
    """What is read, in words."""

    columns: FieldColumns
    rows: Mapping[str, int]
    schema: Schema
    allocations: Mapping[str, int]

    def column(self, field: Field, place: int = 0) -> int:
        """The first column of a field, or a later one."""
        return sum(each.most for each in self.schema.all[: self.schema.all.index(field)]) + place

    def names(self, field: Field) -> list[set[str]]:
        """Of each interaction the values that it reads of a field; NO_VALUE is none."""
        name_of = {row: name for name, row in self.rows.items()} | {COLD_ROW: "cold"}
        at = slice(self.column(field), self.column(field) + field.most)
        found = [[name_of[row] for row in rows if row != NO_VALUE] for rows in self.columns.rows[:, at].tolist()]
        assert all(len(set(names)) == len(names) for names in found)
        return [{name.removeprefix(f"{field.name}=") for name in names} for names in found]

    def weights(self, field: Field) -> list[float]:
        return self.columns.weights[:, self.column(field)].tolist()


@pytest.fixture
def logs(database: Database) -> Logs:
    return Logs(database)


async def test_features_are_those_of_the_moment(logs: Logs) -> None:
    """A version is valid from exactly its millisecond on; a later version, or another id's, does not count."""
    await logs.know(
        "user", ("ann", 10, {"age": 10}), ("ann", 20, {"age": 20}), ("ann", 30, {}), ("bob", 0, {"age": 40})
    )
    await logs.know("item", ("hat", 15, {"price": 5}), ("hat", 25, {"price": 0}), ("hat", 35, {"price": -5.5}))
    moments = [9, 10, 11, 19, 20, 24, 25, 29, 30, 34, 35, 99]
    await logs.happen(
        *(("ann", "hat", at, {"device": f"d{at}"}) for at in moments),
        ("bob", "shoe", 9, None), ("eve", "hat", 14, {"device": "tv"}),
    )  # fmt: skip
    read = await logs.read(Schema((DEVICE, AGE, PRICE), **NO_TIME))
    order = sorted([*moments, 9.5, 14])  # bob's comes after ann's, as his event's name does
    ann = [order.index(at) for at in moments]

    def of_ann(values: list[Any]) -> list[Any]:
        return [values[place] for place in ann]

    ages = ["" if at < 10 or at >= 30 else "0" if at < 20 else "1" for at in moments]
    assert of_ann(read.names(AGE)) == [{age} for age in ages]
    prices = [None if at < 15 else 5 if at < 25 else 0 if at < 35 else -5.5 for at in moments]
    assert of_ann(read.names(PRICE)) == [{"" if price is None else "#"} for price in prices]
    logged = [1 if price is None else math.copysign(math.log1p(abs(price)), price) for price in prices]
    assert of_ann(read.weights(PRICE)) == pytest.approx(logged)
    assert of_ann(read.names(DEVICE)) == [{f"d{at}"} for at in moments]
    bob, eve = order.index(9.5), order.index(14)
    assert (read.names(AGE)[bob], read.names(PRICE)[bob], read.names(DEVICE)[bob]) == ({"2"}, {""}, {""})
    assert (read.names(AGE)[eve], read.names(PRICE)[eve], read.names(DEVICE)[eve]) == ({""}, {""}, {"tv"})
    assert [SUMS[s] for s in read.columns.sums.tolist()] == ["context", "user", "item"]


async def test_missing_is_a_value(logs: Logs) -> None:
    missing: list[dict[str, Any] | None] = [None, {}, {"device": None}, {"device": ""}, {"marks": []}, {"page": None}]
    await logs.happen(*(("u", "i", at, context) for at, context in enumerate(missing)))
    read = await logs.read(Schema((DEVICE, PAGE, MARKS), **NO_TIME))
    for field in (DEVICE, PAGE, MARKS):
        assert read.names(field) == [{""}] * len(missing)
        assert read.weights(field) == [1] * len(missing)
    assert set(read.rows) == {"device=", "page=", "page=#", "marks="} and COLD_ROW not in read.rows.values()


async def test_several_values_at_a_time(logs: Logs) -> None:
    """In any order, each once; true differs from 1, although they are equal in Python, and so does "1"."""
    given: list[list[Any]] = [["b", "a"], ["a", "b", "a"], [True], [1], ["1"], [1, True], [False, 0], ["true"], []]
    expected = [{"a", "b"}, {"a", "b"}, {"true"}, {"1"}, {"1"}, {"1", "true"}, {"false", "0"}, {"true"}, {""}]
    await logs.happen(*(("u", "i", at, {"marks": marks, "device": True}) for at, marks in enumerate(given)))
    read = await logs.read(Schema((MARKS, DEVICE), **NO_TIME))
    assert read.names(MARKS) == expected
    assert torch.equal(read.columns.rows[0], read.columns.rows[1])
    assert read.names(DEVICE) == [{"true"}] * len(given)
    assert read.columns.rows.shape == (len(given), 4) and read.columns.sums.tolist() == [0] * 4


async def test_what_a_new_schema_cannot_read_is_missing(logs: Logs) -> None:
    """The log has an earlier schema, with other kinds, other fields, and more values."""
    await logs.know("user", ("u", 0, {"age": "young", "plan": "gold"}))
    await logs.know("item", ("i", 0, {"price": [1, 2], "tags": ["a", "b", "c"]}))
    contexts: list[dict[str, Any]] = [
        {"device": 7.5, "page": "front", "marks": "a"},
        {"device": ["phone"], "page": True, "marks": ["a", "b", "c", "d"]},
        {"device": "phone", "page": 3, "marks": ["a"], "campaign": "spring"},
    ]
    await logs.happen(*(("u", "i", at, context) for at, context in enumerate(contexts)))
    read = await logs.read(Schema((DEVICE, PAGE, MARKS, AGE, PRICE, TAGS), **NO_TIME))
    assert read.names(DEVICE) == [{""}, {""}, {"phone"}]
    assert read.names(PAGE) == [{""}, {""}, {"#"}] and read.weights(PAGE) == [1, 1, 3]
    assert read.names(MARKS) == [{""}, {""}, {"a"}]
    assert read.names(AGE) == read.names(PRICE) == read.names(TAGS) == [{""}] * 3
    assert not [name for name in read.rows if name.startswith(("plan=", "campaign="))]


async def test_what_is_for_training_only_is_neutral_when_predicting(logs: Logs) -> None:
    """Whether it was ever missing or not: the missing value has a row in any case."""
    parts = Field("parts", "context", "multi", most=2, training_only=True)
    height = Field("height", "context", "numeric", training_only=True)
    given = {"place": "top", "parts": ["x", "y"], "height": 3, "device": "tv"}
    await logs.happen(("u", "i", 0, given), ("u", "i", 1, given | {"place": 2}))
    read = await logs.read(Schema((PLACE, parts, height, DEVICE), **NO_TIME))
    assert read.names(PLACE) == [{"top"}, {"2"}] and read.names(parts) == [{"x", "y"}] * 2
    missing = {name: read.rows[f"{name}="] for name in ("place", "parts", "height")}
    neutral = [missing["place"], missing["parts"], NO_VALUE, missing["height"], OWN_VALUE]
    assert read.columns.neutral.tolist() == neutral
    predicting = read.columns.when_predicting()
    assert predicting.rows.tolist() == [[*neutral[:4], read.rows["device=tv"]]] * 2
    assert predicting.weights.tolist() == [[1] * 5] * 2


async def test_numbers_weigh_the_one_row_of_their_field(logs: Logs) -> None:
    await logs.happen(*(("u", "i", at, {"page": page}) for at, page in enumerate([2, -7.25, None, 1e30, 0])))
    read = await logs.read(Schema((PAGE,)))
    assert read.names(PAGE) == [{"#"}, {"#"}, {""}, {"#"}, {"#"}]
    assert read.weights(PAGE) == pytest.approx([2, -7.25, 1, 1e30, 0])
    assert read.columns.numbers.tolist() == [NO_VALUE, NO_VALUE, read.rows["page=#"]]
    hour, weekday = read.schema.all[:2]
    assert read.names(hour) == [{str(moment(START_MS + HOUR_MS).hour)}] * 5
    assert read.names(weekday) == [{str(moment(START_MS + HOUR_MS).weekday())}] * 5


async def test_values_get_rows_and_lose_them_as_ids_do(logs: Logs) -> None:
    """Values of a dropped field too, including the row of its numbers; freed rows have no moments."""
    before, after = Schema((DEVICE, PAGE), **NO_TIME), Schema((DEVICE,), **NO_TIME)
    await logs.happen(("u", "i", 0, {"device": "tv", "page": 1}), ("u", "i", 1, {"device": "phone"}))
    first = await logs.read(before, evict_after=3)
    assert set(first.rows) == {"device=tv", "device=phone", "page=#", "page="}
    for _ in range(2):
        await logs.happen(("u", "i", 0, {"device": "phone", "page": 1}))
        read = await logs.read(after, evict_after=3)
        assert read.rows == first.rows and read.columns.size == first.columns.size
    await logs.happen(("u", "i", 0, {"device": "phone"}), ("u", "i", 1, {"device": "watch"}))
    read = await logs.read(after, evict_after=3)
    gone = {first.rows[name] for name in ("device=tv", "page=#", "page=")}
    assert set(read.rows) == {"device=phone", "device=watch"} and read.rows["device=watch"] in gone
    assert read.rows["device=phone"] == first.rows["device=phone"]
    assert (read.columns.size, read.names(DEVICE)) == (first.columns.size, [{"phone"}, {"watch"}])
    assert read.allocations["field"] == first.allocations["field"] + 2  # some were freed, one was given
    async with logs.database.read() as session:
        nobodys = await session.entities.rows_of_nobody(EntityKind.FIELD, first.allocations["field"])
    assert set(nobodys.tolist()) == gone  # what a model of before knows of these rows is forgotten
    again = await logs.read(after, evict_after=3)
    assert again.rows == read.rows and again.allocations == read.allocations


def test_a_snapshot_knows_the_features_that_its_items_have() -> None:
    """As values that its model knows; items without features, and row 0, have missing values."""
    schema = Schema((DEVICE, PRICE, TAGS))
    names = ["price=#", "price=", "tags=", "tags=a", "tags=b", "device=tv"]
    rows = {name: row for row, name in enumerate(names, start=1)}
    items = NamedRows(["hat", "shoe", "sock", "cap"], np.array([1, 2, 3, 5]))
    versions = {
        "elsewhere": {"price": 9, "tags": ["a"]},
        "hat": {"price": math.e - 1, "tags": ["b", "a"]},
        "sock": {"price": "dear", "tags": ["new"]},
        "shoe": {"tags": ["a", "b", "a", "b"]},
    }
    features = FeaturesOf(sorted(versions), np.zeros(4, np.int64), [versions[i] for i in sorted(versions)])
    sums = [[4.0, 8.0, 4 * (2.0**2 + 0.5**2)]]  # of 4 numbers, mean 2, deviation ½
    numbers = NumberMoments.of(
        {"numbers.rows": torch.tensor([1]), "numbers.sums": torch.tensor(sums, dtype=torch.float64)}
    )
    columns = columns_of_items(schema, items, features, 6)
    known = fields_of_snapshot(schema, columns, rows, Known.of(names, np.arange(1, 7)), numbers)
    expected = [
        {"price=", "tags="}, {"price=#", "tags=a", "tags=b"}, {"price=", "tags="}, {"price=", "cold"},
        {"price=", "tags="}, {"price=", "tags="},
    ]  # fmt: skip
    name_of = {row: name for name, row in rows.items()} | {COLD_ROW: "cold"}
    found = [{name_of[row] for row in of if row != NO_VALUE} for of in known.of_items.rows.tolist()]
    assert found == expected  # the shoe has more tags than the schema allows
    weights = known.of_items.standardised().weights
    assert weights[1, 0].item() == pytest.approx((1 - 2) / 0.5, rel=1e-2)
    assert (weights[:, 1:] == 1).all() and (weights[[0, 2, 3, 4, 5], 0] == 1).all()
    # The same as the reader of the snapshot says.
    for item, row in (("hat", 1), ("shoe", 2), ("sock", 3), ("cap", 5)):
        said = {rows.get(name, COLD_ROW): weight for name, weight in known.reader.of_item(versions.get(item, {}))}
        read = zip(known.of_items.rows[row].tolist(), weights[row].tolist(), strict=True)
        assert {r: weight for r, weight in read if r != NO_VALUE} == pytest.approx(said)
    assert known.reader.to_json()["schema"] == schema.to_json()
