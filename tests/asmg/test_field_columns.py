"""Columns of fields: on disk, beside drawn negatives, and as the rows and numbers that an interaction reads."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asmg.datasets import InteractionLog, sample_negatives
from asmg.datasets.card import Card, read_card
from asmg.datasets.field_columns import By, FieldColumn
from asmg.datasets.log_fields import field_columns
from asmg.datasets.prepared import PreparedLog, read_prepared, write_prepared
from asmg.datasets.sampling import rows_that_tell
from asmg.experiments.periods import cut_periods
from asmg.features import DEFAULT, NUMBER, Field, Schema, encode, number
from asmg.layout import NO_VALUE, OWN_VALUE
from asmg.log_format import LogFormatError
from tests.asmg.test_prepared import CARD, ITEMS, LOG, USERS

DEVICE = Field("device", "context", "categorical")
PLACE = Field("place", "context", "categorical", training_only=True)
MARKS = Field("marks", "context", "multi", most=3, training_only=True)
AGE = Field("age", "user", "numeric", enter="buckets", buckets=(18, 30))
INCOME = Field("income", "user", "numeric", enter="log")
TAGS = Field("tags", "item", "multi", most=3)
PRICE = Field("price", "item", "numeric")
SCHEMA = Schema((TAGS, DEVICE, PRICE, AGE, PLACE, INCOME, MARKS), "Asia/Tokyo")

TEXTS = st.one_of(st.none(), st.sampled_from(["", "a", "b", "é|", "true"]), st.integers(-2, 2), st.booleans())
NUMBERS = st.one_of(st.none(), st.integers(-40, 40), st.floats(-1e30, 1e30, allow_nan=False))
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "categorical": TEXTS, "multi": st.one_of(st.none(), st.lists(TEXTS.filter(lambda v: v is not None), max_size=3)),
    "numeric": NUMBERS,
}  # fmt: skip


def decoded(column: FieldColumn) -> list[Any]:
    """Of a field that enters by table what `encode` gives; of numbers the number, None where it is missing."""
    if column.field.kind == "numeric":
        return [None if math.isnan(value) else value for value in column.values.tolist()]
    return [column.distinct[place] for place in column.values.tolist()]


def expected(field: Field, values: list[Any]) -> list[Any]:
    if field.kind == "numeric":
        return [None if value is None else float(value) for value in values]
    return [encode(field, value) for value in values]


class TestFieldColumn:
    """One column."""

    @given(st.data(), st.sampled_from(SCHEMA.fields))
    def test_comes_back_from_disk(self, data: st.DataObject, field: Field) -> None:
        values = data.draw(st.lists(KINDS[field.kind], min_size=1, max_size=12))
        column = FieldColumn.of(field, values)
        assert decoded(column) == expected(field, values) and len(column) == len(values)
        series = column.to_series()
        assert series.name == f"field.{field.name}" and len(series) == len(values)
        assert decoded(FieldColumn.from_series(field, series, "row")) == expected(field, values)

    @given(st.data(), st.sampled_from(SCHEMA.fields))
    def test_joined_and_taken(self, data: st.DataObject, field: Field) -> None:
        parts = data.draw(st.lists(st.lists(KINDS[field.kind], max_size=4), min_size=1, max_size=3))
        joined = FieldColumn.joined([FieldColumn.of(field, part) for part in parts])
        values = [value for part in parts for value in part]
        assert decoded(joined) == expected(field, values)
        places = np.array(data.draw(st.lists(st.integers(0, max(0, len(values) - 1)), max_size=5 * bool(values))), int)
        assert decoded(joined.take(places)) == [expected(field, values)[place] for place in places.tolist()]

    @pytest.mark.parametrize("field", SCHEMA.fields)
    def test_missing_values(self, field: Field) -> None:
        assert decoded(FieldColumn.missing(field, 2, "user")) == expected(field, [None, None])

    def test_of_text_that_is_not_categorical(self) -> None:
        assert decoded(FieldColumn.from_series(DEVICE, pl.Series(["a", None, "a"]), "row")) == [("a",), ("",), ("a",)]

    @pytest.mark.parametrize(("field", "series", "said"), [
        (DEVICE, pl.Series([1, 2]), "device: expected Categorical; received Int64"),
        (DEVICE, pl.Series(["x" * 257]), "device: expected at most 256 characters"),
        (TAGS, pl.Series(["a"]), r"tags: expected List\(String\); received String"),
        (TAGS, pl.Series([["a", "b", "c", "d"]]), "tags: expected at most 3 values"),
        (PRICE, pl.Series([1]), "price: expected Float64; received Int64"),
        (PRICE, pl.Series([math.nan]), "price: expected finite numbers, null where missing; received another"),
        (PRICE, pl.Series([1.0, -math.inf]), "price: expected finite numbers"),
        (PRICE, pl.Series([1.0, 1e31]), "price: expected a number from"),
    ])  # fmt: skip
    def test_bad_columns(self, field: Field, series: pl.Series, said: str) -> None:
        with pytest.raises(ValueError, match=said):
            FieldColumn.from_series(field, series, "row")
        with pytest.raises(ValueError, match=r"price: expected float64 \[n\]; received uint32 \[2\]"):
            FieldColumn(PRICE, np.zeros(2, np.uint32))


def columns(n: int = 3, users: int = 2, items: int = 3) -> dict[str, FieldColumn]:
    """A column of each field of SCHEMA; the price is of each interaction, as it changes."""

    def of(field: Field, values: list[Any], by: By, count: int) -> FieldColumn:
        return FieldColumn.of(field, (values * count)[:count], by)

    return {
        "tags": of(TAGS, [["x", "y"], [], ["y"]], "item", items), "device": of(DEVICE, ["web", "app", ""], "row", n),
        "price": of(PRICE, [2.5, None, 1], "row", n), "age": of(AGE, [30, None], "user", users),
        "place": of(PLACE, [1, 2], "row", n), "income": of(INCOME, [math.e - 1, None], "user", users),
        "marks": of(MARKS, [["q"], ["q", "r"]], "row", n),
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_prepared(tmp_path / "log", LOG, USERS, ITEMS, CARD, schema=SCHEMA, fields=columns())
    return tmp_path / "log"


class TestPrepared:
    """A folder with fields."""

    def test_what_is_written_is_read(self, folder: Path) -> None:
        log = read_prepared(folder)
        assert log.schema == SCHEMA and list(log.fields) == [field.name for field in SCHEMA.fields]
        for name, column in columns().items():
            assert decoded(log.fields[name]) == decoded(column) and log.fields[name].by == column.by
        of_rows = {name: decoded(log.by_row(name)) for name in log.fields}
        assert of_rows["tags"] == [("x", "y"), ("",), ("y",)] and of_rows["age"] == [30, None, 30]
        assert of_rows["price"] == [2.5, None, 1] and log.by_row("age").by == "row"
        places = {name: pl.read_parquet(folder / f"{name}.parquet").columns for name in ("log", "users", "items")}
        assert places["users"] == ["id", "field.age", "field.income"]
        assert places["items"] == ["id", "categories", "field.tags"]
        assert places["log"][4:] == ["field.device", "field.price", "field.place", "field.marks"]

    def test_folders_of_earlier_versions_have_no_fields(self, tmp_path: Path) -> None:
        write_prepared(tmp_path / "log", LOG, USERS, ITEMS, CARD)
        card = json.loads((tmp_path / "log" / "card.json").read_text())
        assert card.pop("features") is None
        (tmp_path / "log" / "card.json").write_text(json.dumps(card))
        log = read_prepared(tmp_path / "log")
        assert (log.schema, log.fields, log.card.features) == (None, {}, None)
        assert field_columns(log).rows.shape == (3, 0)

    @pytest.mark.parametrize(("damage", "said"), [
        (lambda f: (f / "features.toml").unlink(), "features.toml: expected the fields that the card names; received"),
        (lambda f: (f / "features.toml").write_text("time = 5"), "features.toml: expected a schema of fields; received "
                                                                 "time: expected a list"),
        (lambda f: (f / "features.toml").write_text(DEFAULT.to_toml()), "features.toml: expected the fields that the "
         "card names; received others; other fields take another `asmg experiment prepare`"),
        (lambda f: rewrite(f / "users.parquet", pl.exclude("field.age")),
         "a column 'field.age' in log.parquet or users.parquet; received none"),
        (lambda f: rewrite(f / "items.parquet", pl.all(), pl.lit(1.0).alias("field.age")), ""),
        (lambda f: rewrite(f / "users.parquet", pl.col("id"), pl.lit("x").alias("field.age"), pl.col("field.income")),
         "users.parquet, column 'field.age': expected values of the field age; received age: expected Float64"),
    ])  # fmt: skip
    def test_damage(self, folder: Path, damage: Callable[[Path], Any], said: str) -> None:
        damage(folder)
        if not said:  # a column that no field has in that place
            assert decoded(read_prepared(folder).fields["age"]) == [30, None]
            return
        with pytest.raises(LogFormatError) as raised:
            read_prepared(folder)
        assert said in str(raised.value)

    def test_a_schema_that_the_card_does_not_name(self, folder: Path) -> None:
        card = json.loads((folder / "card.json").read_text()) | {"features": None}
        (folder / "card.json").write_text(json.dumps(card))
        assert read_card(folder).features is None
        with pytest.raises(LogFormatError, match=r"features.toml: expected the fields that the card names"):
            read_prepared(folder)


def rewrite(path: Path, *expressions: pl.Expr) -> None:
    pl.read_parquet(path).select(*expressions).write_parquet(path)


class TestNegatives:
    """What is known of an item that was drawn."""

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=12), st.data())
    def test_the_rows_that_tell(self, rows: list[tuple[int, int]], data: st.DataObject) -> None:
        items, time = (np.array(part, np.int64) for part in zip(*rows, strict=True))
        wanted = data.draw(st.lists(st.tuples(st.sampled_from(items.tolist()), st.integers(-1, 6)), max_size=6))
        drawn, moments = (np.array([want[k] for want in wanted], np.int64) for k in (0, 1))
        for found, (item, moment) in zip(rows_that_tell(items, time, drawn, moments).tolist(), wanted, strict=True):
            own = sorted((t, n) for n, (i, t) in enumerate(rows) if i == item)
            before = [n for t, n in own if t <= moment]
            assert found == (before[-1] if before else own[0][1])

    def test_of_a_log_in_memory(self) -> None:
        price = FieldColumn.of(PRICE, [1, 2, 3, 4])
        log = InteractionLog(
            user_ids=np.array(["u", "v", "w", "w"], np.object_), item_ids=np.array(["i", "j", "i", "k"], np.object_),
            labels=np.ones(4, np.uint8), timestamps_ms=np.arange(4), positives_only=True,
            fields={"price": price, "device": FieldColumn.of(DEVICE, ["a", "b", "c", "d"])},
        )  # fmt: skip
        found = sample_negatives(log, rng=np.random.default_rng(0), mode="so_far").log
        assert decoded(found.fields["device"]) == [(text,) for text in "aabbccdd"]
        known = {"i": [1, 1, 3, 3], "j": [2, 2, 2, 2], "k": [4, 4, 4, 4]}  # after each positive
        prices = [known[item][n // 2] for n, item in enumerate(found.item_ids.tolist())]
        assert decoded(found.fields["price"]) == prices and found.labels.tolist() == [1, 0] * 4

    def test_as_many_values_as_interactions(self) -> None:
        ids = np.array(["u"], np.object_)
        with pytest.raises(
            ValueError, match=r"fields\['price'\]: expected shape \(1,\) like user_ids; received \(2,\)"
        ):
            InteractionLog(
                user_ids=ids, item_ids=ids, labels=np.ones(1, np.uint8), timestamps_ms=np.zeros(1, np.int64),
                fields={"price": FieldColumn.of(PRICE, [1, 2])},
            )  # fmt: skip


def slow_columns(log: PreparedLog) -> list[list[tuple[str, str, float | None] | None]]:
    """Of each interaction and each of its columns: field, value and the number; None for nothing."""
    assert log.schema is not None
    found = []
    for n in range(len(log.user)):
        shown: list[tuple[str, str, float | None] | None] = []
        hours = int(log.timestamps_ms[n]) // 3_600_000 + 9  # Tokyo
        made = {"hour": str(hours % 24), "weekday": str((hours // 24 + 3) % 7)}
        for items in (False, True):
            for field in (field for field in log.schema.all if (field.of == "item") == items):
                if field.name in made:
                    shown.append((field.name, made[field.name], None))
                    continue
                column = log.by_row(field.name)
                if field.kind == "numeric":
                    raw = None if math.isnan(column.values[n]) else float(column.values[n])
                    if field.by_table:
                        shown.append((field.name, encode(field, raw)[0], None))
                    elif raw is None:
                        shown.append((field.name, "", None))
                    else:
                        shown.append((field.name, NUMBER, number(field, raw)))
                else:
                    several = column.distinct[column.values[n]]
                    shown += [(field.name, value, None) for value in several]
                    shown += [None] * (field.most - len(several))
        found.append(shown)
    return found


@pytest.fixture(scope="module")
def log() -> PreparedLog:
    """40 interactions whose values come little by little."""
    rng = np.random.default_rng(3)
    n, users, items = 40, 6, 7
    card = Card(**CARD | {"rows": n, "users": users, "items": items}, log_sha256="")

    def grow(count: int, most: int) -> list[int]:
        return list((rng.random(count) * np.linspace(1, most, count)).astype(int).tolist())

    fields = {
        "tags": FieldColumn.of(TAGS, [[f"t{k}" for k in range(v)] for v in grow(items, 4)], "item"),
        "device": FieldColumn.of(DEVICE, [f"d{v}" if v else None for v in grow(n, 9)]),
        "price": FieldColumn.of(PRICE, [v or None for v in grow(n, 5)]),
        "age": FieldColumn.of(AGE, [10.0 * v or None for v in grow(users, 6)], "user"),
        "place": FieldColumn.of(PLACE, [v or None for v in grow(n, 4)][::-1]),
        "income": FieldColumn.of(INCOME, [v or None for v in grow(users, 3)], "user"),
        "marks": FieldColumn.of(MARKS, [[f"m{k}" for k in range(1 + v)] for v in grow(n, 3)]),
    }  # fmt: skip
    return PreparedLog(
        card, np.sort(rng.integers(0, users, n)).astype(np.uint32), rng.integers(0, items, n).astype(np.uint32),
        rng.integers(0, 2, n).astype(np.uint8), 1_400_000_000_000 + np.arange(n) * 7_777_777, schema=SCHEMA,
        fields=fields,
    )  # fmt: skip


class TestFieldColumns:
    """What every interaction reads."""

    def test_a_slow_version(self, log: PreparedLog) -> None:
        found = field_columns(log)
        names = [None, *found.values]
        assert len(set(found.values)) == len(found.values)
        assert [field.name for field in found.fields] == [
            *("hour", "weekday", "device", "age", "place", "income", "marks", "marks", "marks"),
            *("tags", "tags", "tags", "price"),
        ]
        assert found.request_columns == 9
        for n, row in enumerate(slow_columns(log)):
            for c, cell in enumerate(row):
                place, value = int(found.rows[n, c]), float(found.numbers[n, c])
                if cell is None:
                    assert place == NO_VALUE and math.isnan(value)
                else:
                    assert names[place] == cell[:2]
                    assert math.isnan(value) if cell[2] is None else value == pytest.approx(cell[2])

    def test_rows_by_first_appearance(self, log: PreparedLog) -> None:
        """So what a period knows are the first rows of the table, whatever comes after it."""
        found = field_columns(log)
        newest = np.maximum.accumulate(found.rows.max(axis=1))
        neutral = {row for row in found.neutral.tolist() if row >= 0}
        assert neutral == {1, 2}  # the missing values of the two fields that are for training only
        for n in range(1, len(log.user) + 1):
            seen = set(found.rows[:n].reshape(-1).tolist()) - {NO_VALUE} | neutral
            assert seen == set(range(1, int(newest[n - 1]) + 1))
            part = field_columns(replace(log, user=log.user[:n], item=log.item[:n], timestamps_ms=log.timestamps_ms[:n],
                                         fields={name: column.take(np.arange(n)) if column.by == "row" else column
                                                 for name, column in log.fields.items()}))  # fmt: skip
            taken = found.take(n)
            assert np.array_equal(part.rows, taken.rows) and part.values == taken.values
            assert np.array_equal(part.numbers, taken.numbers, equal_nan=True)

    def test_neutral_rows(self, log: PreparedLog) -> None:
        found = field_columns(log)
        assert found.neutral.tolist() == [OWN_VALUE] * 4 + [1, OWN_VALUE, 2, NO_VALUE, NO_VALUE] + [OWN_VALUE] * 4
        assert found.values[:2] == [("place", ""), ("marks", "")]
        some = found.neutralised(slice(0, None, 4))
        for n in range(len(log.user)):
            expected = (
                np.where(found.neutral == OWN_VALUE, found.rows[n], found.neutral) if n % 4 == 0 else found.rows[n]
            )
            assert some.rows[n].tolist() == expected.tolist()
        assert not np.array_equal(found.rows, some.rows)
        without = replace(log, schema=Schema((DEVICE,)), fields={"device": log.fields["device"]})
        plain = field_columns(without)
        assert plain.neutralised(slice(None)) is plain

    def test_a_number_for_training_only(self, log: PreparedLog) -> None:
        bid = Field("bid", "context", "numeric", training_only=True)
        fields = {"bid": FieldColumn.of(bid, [1.5] * len(log.user))}
        found = field_columns(replace(log, schema=Schema((bid,), time=()), fields=fields))
        assert found.values == [("bid", ""), ("bid", NUMBER)] and found.neutral.tolist() == [1]
        hidden = found.neutralised(slice(None))
        assert set(hidden.rows[:, 0].tolist()) == {1} and np.isnan(hidden.numbers).all()

    def test_in_periods(self, log: PreparedLog) -> None:
        cut = cut_periods(log, 3, known="so_far", categories=False, fields=True)
        assert cut.fields is not None and cut.fields.rows.shape == (39, 13)
        assert np.array_equal(cut.fields.part(13, 26).rows, field_columns(log).rows[13:26])
        assert cut_periods(log, 3, known="so_far", categories=False).fields is None
        plain = replace(log, schema=None, fields={})
        with pytest.raises(ValueError, match=r"^fields: expected a log that has them; "):
            cut_periods(plain, 3, known="so_far", categories=False, fields=True)
        for n, period in enumerate(cut.data):
            assert period.fields is not None
            assert np.array_equal(period.fields.rows.numpy(), cut.fields.rows[13 * n : 13 * n + 13])
            assert period.fields.size == 1 + cut.fields.rows[: 13 * n + 13].max()
