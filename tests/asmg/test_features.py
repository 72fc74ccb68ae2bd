"""Schemas and the values of fields: what a file declares, what is refused, and what a model reads."""

import json
import math
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asmg.features import (
    DEFAULT,
    MAX_EDGES,
    MAX_FIELDS,
    MAX_LIST_VALUES,
    MAX_NUMBER,
    MAX_VALUE_LENGTH,
    MISSING,
    RESERVED_NAMES,
    Field,
    Schema,
    SchemaError,
    ValueFault,
    bucket_values,
    check,
    encode,
    number,
    numbers,
    time_values,
)

SHOP = """
timezone = "Europe/Berlin"

[fields.device]
of = "context"
kind = "categorical"

[fields.position]
of = "context"
kind = "categorical"
training_only = true

[fields.age]
of = "user"
kind = "numeric"
enter = "buckets"
buckets = [18, 25, 35, 50]

[fields.tags]
of = "item"
kind = "multi"
most = 3

[fields.price]
of = "item"
kind = "numeric"
enter = "log"

[fields.length]
of = "item"
kind = "numeric"
"""

DEVICE = Field("device", "context", "categorical")
POSITION = Field("position", "context", "categorical", training_only=True)
AGE = Field("age", "user", "numeric", enter="buckets", buckets=(18, 25, 35, 50))
TAGS = Field("tags", "item", "multi", most=3)
PRICE = Field("price", "item", "numeric", enter="log")
LENGTH = Field("length", "item", "numeric", enter="standardised")

edges = st.lists(st.integers(-1000, 1000), min_size=1, max_size=MAX_EDGES, unique=True).map(sorted).map(tuple)


@st.composite
def fields(draw: st.DrawFn, name: str) -> Field:
    kind = draw(st.sampled_from(["categorical", "multi", "numeric"]))
    of = draw(st.sampled_from(["context", "user", "item"]))
    enter = draw(st.sampled_from(["standardised", "log", "buckets"])) if kind == "numeric" else None
    return Field(
        name,
        of,  # type: ignore[arg-type] # one of these texts
        kind,  # type: ignore[arg-type]
        most=draw(st.integers(1, MAX_LIST_VALUES)) if kind == "multi" else 1,
        enter=enter,  # type: ignore[arg-type]
        buckets=draw(edges) if enter == "buckets" else (),
        training_only=of == "context" and draw(st.booleans()),
    )


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    names = draw(
        st.lists(
            st.from_regex("[a-z][a-z0-9_]{0,31}", fullmatch=True).filter(lambda name: name not in RESERVED_NAMES),
            max_size=5,
            unique=True,
        )
    )
    return Schema(
        tuple(draw(fields(name)) for name in names),
        timezone=draw(st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata"])),
        time=draw(st.sampled_from([(), ("hour",), ("weekday", "hour")])),
    )


def toml_of(schema: Schema) -> str:
    """The file that declares a schema, written without a look at how it is read: JSON values are TOML values too."""
    values = schema.to_json()
    lines = [f"timezone = {json.dumps(values['timezone'])}", f"time = {json.dumps(values['time'])}"]
    for field in values["fields"]:
        lines.append(f"[fields.{field.pop('name')}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in field.items()]
    return "\n".join(lines)


class TestSchema:
    """What a file declares."""

    def test_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "features.toml"
        path.write_text(SHOP)
        schema = Schema.read(path)
        assert schema.timezone == "Europe/Berlin" and schema.time == ("hour", "weekday")
        assert schema.fields == (DEVICE, POSITION, AGE, TAGS, PRICE, LENGTH)
        assert [field.name for field in schema.all] == [
            *("hour", "weekday", "device", "position", "age", "tags", "price", "length")
        ]
        assert [field.name for field in schema.of("context")] == ["hour", "weekday", "device", "position"]
        assert schema.of("user") == (AGE,) and schema.of("item") == (TAGS, PRICE, LENGTH)
        assert list(schema.declared("context")) == ["device", "position"]
        assert [field.by_table for field in schema.fields] == [True, True, True, True, False, False]

    def test_a_multi_field_has_8_values_unless_it_says_otherwise(self) -> None:
        assert Schema.from_toml('[fields.tags]\nof = "item"\nkind = "multi"').fields[0].most == 8

    def test_hour_and_weekday_are_the_default(self) -> None:
        assert Schema.from_toml("") == DEFAULT
        hour, weekday = DEFAULT.all
        assert (hour.name, hour.of, hour.kind) == ("hour", "context", "categorical")
        assert (weekday.name, weekday.of, weekday.kind) == ("weekday", "context", "categorical")
        assert Schema.from_toml("time = []").all == ()

    @given(schemas())
    def test_comes_back_from_json_and_toml(self, schema: Schema) -> None:
        assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
        assert Schema.from_toml(toml_of(schema)) == schema

    def test_needs_no_torch(self) -> None:
        code = "import sys, asmg.features; sys.exit('torch' in sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)

    def test_has_64_fields_at_most(self) -> None:
        many = tuple(Field(f"f{n}", "item", "categorical") for n in range(MAX_FIELDS + 1))
        assert len(Schema(many[:-1]).fields) == 64
        with pytest.raises(SchemaError, match=r"^fields: expected at most 64 fields; received 65$"):
            Schema(many)

    @pytest.mark.parametrize(
        ("text", "fault"),
        [
            ("fields = [[", "expected TOML; received something else: .*"),
            ('[fields.a]\nof = "item"\n[fields.a]\nof = "item"', "fields.a: expected a name .*; received it twice"),
            ("zone = 1", "zone: expected timezone, time or fields; received a setting of another name"),
            ("timezone = 1", "timezone: expected a name of the IANA database; received 1"),
            ('timezone = "Mars"', "timezone: expected a name of the IANA database, .*; received 'Mars'"),
            ('time = "hour"', 'time: expected a list of some of hour, weekday; received "hour"'),
            ('time = ["month"]', r'time: expected some of hour, weekday, each at most once; received \["month"\]'),
            ('time = ["hour", "hour"]', "time: expected some of hour, weekday, each at most once; .*"),
            ("fields = 3", r"fields: expected a table for each field, \[fields.NAME\]; received 3"),
            ("[fields]\na = 3", "fields.a: expected a table of of, kind, .*; received 3"),
            ("[fields.A]", "fields.A: expected a name of at most 32 characters: .*; received \"A\""),
            (f"[fields.{'a' * 33}]", f"fields.{'a' * 33}: expected a name of at most 32 characters: .*"),
            ("[fields.a]", "fields.a.of: expected context, user or item; received nothing"),
            ("[fields.a]", "fields.a.kind: expected categorical, multi or numeric; received nothing"),
            ('[fields.a]\nof = "shop"', 'fields.a.of: expected context, user or item; received "shop"'),
            ('[fields.a]\nkind = "text"', 'fields.a.kind: expected categorical, multi or numeric; received "text"'),
            ('[fields.a]\nkind = ["text"]', r'fields.a.kind: expected .*; received \["text"\]'),
            ("[fields.a]\ncolour = 1", "fields.a.colour: expected a setting of a field: .*"),
            ('[fields.a]\nkind = "categorical"\nmost = 2', "fields.a.most: expected none, .*; received 2"),
            ('[fields.a]\nkind = "multi"\nmost = 0', "fields.a.most: expected a whole number from 1 to 32; received 0"),
            ('[fields.a]\nkind = "multi"\nmost = 33', "fields.a.most: expected a whole number .*; received 33"),
            ('[fields.a]\nkind = "multi"\nmost = 2.0', "fields.a.most: expected a whole number .*; received 2.0"),
            ('[fields.a]\nkind = "multi"\nmost = true', "fields.a.most: expected a whole number .*; received true"),
            ('[fields.a]\nkind = "multi"\nenter = "log"', 'fields.a.enter: expected none, .*; received "log"'),
            ('[fields.a]\nkind = "numeric"\nenter = "raw"', "fields.a.enter: expected standardised, .*"),
            ('[fields.a]\nkind = "numeric"\nbuckets = [1]', 'fields.a.buckets: expected none without enter .*'),
            ('[fields.a]\nof = "item"\ntraining_only = true', "fields.a.training_only: expected false .*"),
            ("[fields.a]\ntraining_only = 1", "fields.a.training_only: expected true or false; received 1"),
            *(
                (
                    f'[fields.a]\nof = "item"\nkind = "numeric"\nenter = "buckets"\n{buckets}',
                    "fields.a.buckets: expected 1 to 64 ascending numbers; .*",
                )
                for buckets in (
                    *("", "buckets = []", "buckets = [2, 1]", "buckets = [1, 1]", "buckets = [nan]", "buckets = [inf]"),
                    *('buckets = ["1"]', "buckets = [true]", "buckets = [1e31]", "buckets = 1979-05-27"),
                    f"buckets = {list(range(65))}",
                )
            ),
            *(
                (f"[fields.{name}]\nof = 'item'\nkind = 'multi'", f"fields.{name}: .* reserved; .*")
                for name in sorted(RESERVED_NAMES)
            ),
        ],
    )  # fmt: skip
    def test_faults(self, text: str, fault: str, tmp_path: Path) -> None:
        with pytest.raises(SchemaError) as caught:
            Schema.from_toml(text)
        path = tmp_path / "features.toml"
        path.write_text(text)
        assert sum(re.fullmatch(fault, line) is not None for line in caught.value.faults) == 1, caught.value.faults
        assert all("\n" not in line for line in caught.value.faults)
        with pytest.raises(SchemaError) as caught_of_file:
            Schema.read(path)
        assert caught_of_file.value.faults == tuple(f"{path}: {line}" for line in caught.value.faults)

    def test_all_faults_are_told_at_once(self) -> None:
        with pytest.raises(SchemaError) as caught:
            Schema.from_toml('time = 1\n[fields.hour]\nof = "user"\nkind = "x"\n[fields.Y]\nof = "z"\nkind = "multi"')
        assert [fault.split(":")[0] for fault in caught.value.faults] == [
            "time",
            "fields.hour.kind",
            "fields.Y",
            "fields.Y.of",
        ]

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        path = tmp_path / "features.toml"
        with pytest.raises(FileNotFoundError):
            Schema.read(path)
        path.write_bytes(b"# caf\xe9")
        with pytest.raises(SchemaError, match=r"features\.toml: expected UTF-8; received another byte at 5"):
            Schema.read(path)
        path.write_bytes(b"#" * ((1 << 20) + 1))
        with pytest.raises(SchemaError, match=r"features\.toml: expected at most 1,048,576 bytes; received 1,048,577"):
            Schema.read(path)

    @pytest.mark.parametrize(
        "values", [{"fields": 3}, {"fields": [3]}, {"fields": [{"of": "item"}]}, {"fields": [{"name": 3}]}]
    )
    def test_json_that_is_none(self, values: dict[str, Any]) -> None:
        with pytest.raises(SchemaError, match=r"^fields"):
            Schema.from_json(values)


class TestValues:
    """What a client may send for a field."""

    @pytest.mark.parametrize(
        ("field", "value", "encoded"),
        [
            (DEVICE, "phone", ("phone",)),
            (DEVICE, 3, ("3",)),
            (DEVICE, "3", ("3",)),
            (DEVICE, -(2**63), ("-9223372036854775808",)),
            (DEVICE, True, ("true",)),
            (DEVICE, False, ("false",)),
            (DEVICE, None, (MISSING,)),
            (DEVICE, "", (MISSING,)),
            (DEVICE, "é" * MAX_VALUE_LENGTH, ("é" * 256,)),
            (TAGS, ["red", 3, "blue"], ("3", "blue", "red")),
            (TAGS, ["b", "a", "b"], ("a", "b")),
            (TAGS, ["b", ""], ("b",)),
            (TAGS, [], (MISSING,)),
            (TAGS, [""], (MISSING,)),
            (TAGS, None, (MISSING,)),
            (AGE, 17.9, ("0",)),
            (AGE, 18, ("1",)),
            (AGE, 49, ("3",)),
            (AGE, 1e30, ("4",)),
            (AGE, None, (MISSING,)),
        ],
    )
    def test_encode(self, field: Field, value: Any, encoded: tuple[str, ...]) -> None:
        assert encode(field, value) == encoded
        check(field, value)

    def test_number(self) -> None:
        assert number(LENGTH, 3) == 3.0 and number(LENGTH, -1.5) == -1.5 and number(LENGTH, MAX_NUMBER) == 1e30
        assert number(PRICE, math.e - 1) == pytest.approx(1) and number(PRICE, 1 - math.e) == pytest.approx(-1)
        assert number(PRICE, 0) == 0 and math.isnan(number(PRICE, None)) and math.isnan(number(LENGTH, None))

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            (DEVICE, ["phone"], "device: expected text, a whole number or true/false; received a list"),
            (DEVICE, {"a": 1}, "device: expected text, a whole number or true/false; received an object"),
            (DEVICE, 3.0, "device: expected text, a whole number or true/false; received the number 3.0"),
            (DEVICE, "x" * 257, "device: expected at most 256 characters; received 257"),
            (DEVICE, "a\0", "device: expected text of Unicode characters, without NUL; received another"),
            (DEVICE, "\ud800", "device: expected text of Unicode characters, without NUL; received another"),
            (
                DEVICE,
                2**63,
                f"device: expected a whole number from {-(2**63)} to {2**63 - 1}, or text; received another",
            ),
            (TAGS, "red", "tags: expected a list of text, whole numbers or true/false; received text"),
            (TAGS, ["a"] * 10_000, "tags: expected at most 3 values; received 10,000"),
            (TAGS, ["a", None], "tags: expected a list of text, whole numbers or true/false; received one with null"),
            (TAGS, [["a"]], "tags: expected text, a whole number or true/false; received a list"),
            (TAGS, [1.5], "tags: expected text, a whole number or true/false; received the number 1.5"),
            (PRICE, "3", "price: expected a number; received text"),
            (PRICE, True, "price: expected a number; received true"),
            (PRICE, [3], "price: expected a number; received a list"),
            (PRICE, math.nan, "price: expected a number from -1e+30 to 1e+30; received nan"),
            (LENGTH, -math.inf, "length: expected a number from -1e+30 to 1e+30; received -inf"),
            (AGE, math.inf, "age: expected a number from -1e+30 to 1e+30; received inf"),
            (AGE, 10**400, "age: expected a number from -1e+30 to 1e+30; received a larger one"),
        ],
    )
    def test_what_is_refused(self, field: Field, value: Any, message: str) -> None:
        for read in (check, encode if field.by_table else number):
            with pytest.raises(ValueFault) as caught:
                read(field, value)
            assert str(caught.value) == message

    def test_of_a_mapping(self) -> None:
        schema = Schema.from_toml(SHOP)
        schema.check_context({"device": "phone", "position": 3})
        schema.check_context({})
        schema.check_user({"age": 30})
        schema.check_item({"tags": ["a"], "price": None})
        faults = schema.faults("context", {"price": 3, "device": [], "hour": 3, "position": 1})
        assert [(fault.name, fault.expected, fault.received) for fault in faults] == [
            ("price", "a field of the context: device, position", "a field of another name"),
            ("device", "text, a whole number or true/false", "a list"),
            ("hour", "a field of the context: device, position", "a field of another name"),
        ]
        with pytest.raises(ValueError, match=r"^price: expected a field of the user: age; received"):
            schema.check_user({"price": 1})
        with pytest.raises(
            ValueError, match=r"^device: expected no field: the schema has none of the context; received"
        ):
            DEFAULT.check_context({"device": "phone"})

    @given(
        st.dictionaries(
            st.sampled_from(["device", "position", "colour"]) | st.text(max_size=2),
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("x" * 257),
            max_size=3,
        ),
        st.dictionaries(
            st.sampled_from(["tags", "price", "length"]),
            st.lists(st.text(max_size=2) | st.integers() | st.none() | st.just("é" * 257), max_size=4)
            | st.floats()
            | st.integers(-(10**31), 10**31)
            | st.text(max_size=2),
            max_size=3,
        ),
    )
    def test_what_is_allowed_is_what_has_no_fault(self, context: dict[str, Any], item: dict[str, Any]) -> None:
        schema = Schema((DEVICE, POSITION, AGE, TAGS, PRICE, LENGTH))
        assert schema.allows("context", context) == (not schema.faults("context", context))
        assert schema.allows("item", item) == (not schema.faults("item", item))

    @given(st.lists(st.floats(-1e30, 1e30) | st.integers(-60, 60), max_size=20), st.booleans())
    def test_columns_are_as_single_values(self, values: list[float], missing: bool) -> None:
        column = np.array([*values, *([math.nan] if missing else [])], dtype=np.float64)
        singles = [None if math.isnan(value) else value for value in column.tolist()]
        assert [(name,) for name in bucket_values(AGE, column).tolist()] == [encode(AGE, value) for value in singles]
        for field in (PRICE, LENGTH):
            expected = [number(field, value) for value in singles]
            np.testing.assert_allclose(numbers(field, column), expected, rtol=1e-12)

    @given(
        st.data(),
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9), max_size=3),
    )
    def test_the_order_of_a_list_means_nothing(self, data: st.DataObject, values: list[str]) -> None:
        assert encode(TAGS, data.draw(st.permutations(values))) == encode(TAGS, values)


class TestTime:
    """time_values."""

    @pytest.mark.parametrize(
        "zone", ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Africa/Casablanca", "Australia/Lord_Howe"]
    )
    def test_shows_what_the_clock_of_the_zone_shows(self, zone: str) -> None:
        seconds = np.random.default_rng(0).integers(631_152_000, 4_102_444_800, 3000)
        # Also around each half hour of the days on which clocks change in Berlin and New York, and both ends.
        days = [datetime(2024, month, day, tzinfo=UTC) for month, day in ((3, 10), (3, 31), (10, 27), (11, 3))]
        around = [
            int(day.timestamp()) + 1800 * half + shift for day in days for half in range(49) for shift in (-1, 0, 1)
        ]
        moments = np.concatenate((seconds, around, [631_152_000, 4_102_444_799])) * 1000 + 999
        found = time_values(Schema(timezone=zone), moments)
        shown = [datetime.fromtimestamp(moment // 1000, ZoneInfo(zone)) for moment in moments.tolist()]
        assert found["hour"].tolist() == [str(clock.hour) for clock in shown]
        assert found["weekday"].tolist() == [str(clock.weekday()) for clock in shown]

    def test_of_the_hour_that_comes_twice(self) -> None:
        change = datetime(2024, 10, 27, 1, tzinfo=UTC)  # 03:00 becomes 02:00 in Berlin
        moments = [round((change + timedelta(hours=hours)).timestamp() * 1000) for hours in (-2, -1, 0, 1)]
        assert time_values(Schema(timezone="Europe/Berlin"), np.array(moments))["hour"].tolist() == ["1", "2", "2", "3"]

    def test_only_those_of_the_schema(self) -> None:
        now = np.array([0, 1, 2]) + 1_700_000_000_000
        assert time_values(Schema(time=()), now) == {}
        assert list(time_values(Schema(time=("weekday",)), now)) == ["weekday"]
        assert time_values(DEFAULT, now[:0])["hour"].tolist() == []

    @pytest.mark.parametrize("moment", [0, 4_102_444_800_000])
    def test_refuses_other_years(self, moment: int) -> None:
        with pytest.raises(ValueError, match="expected times of the years 1990 to 2099; received"):
            time_values(DEFAULT, np.array([moment]))
