"""Reading large delimited files block by block: every path through a file gives what Python's own csv gives."""

import csv
import gzip
import io
import zlib
from collections.abc import Callable
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asmg.datasets.columns import Reading, category_list, identifier, labels, rating, text, whole_number
from asmg.datasets.field_values import field_value
from asmg.datasets.scan import Layout, Malformed, Scan
from asmg.datasets.times import day_of_year_2014, time_of
from asmg.features import Field
from asmg.log_format import LATEST_MS, LogFormatError

MAY_2014 = 1_400_000_000_000  # 2014-05-13T16:53:20Z
CSV = Layout(quoted=True)
BLANKS = Layout(quoted=True, blanks=True)
ever = partial(time_of, now_ms=LATEST_MS)  # so that no time is ahead of now


def ms(*moment: int) -> int:
    """Milliseconds since 1970 of a moment in UTC, by another way than that of the code."""
    return round(datetime(*moment, tzinfo=UTC).timestamp() * 1000)  # type: ignore[misc,arg-type]


# --- single values

READINGS: dict[str, tuple[Reading, str]] = {
    # name: the reading, and a pattern that most good values and many bad ones follow
    "identifier": (identifier(), r"[a-z0\x00é ]{0,3}"),
    "text": (text(), r"[a-z,0 ]{0,3}"),
    "whole_number": (whole_number(0, 365), r"[+\- ]?[0-9]{0,4}(\.0|e1|_)?"),
    "negative_number": (whole_number(-5, 10**17), r"[+-]?[0-9]{1,20}"),
    "rating": (rating(4, 0.5, 5), r"[+ ]?[0-9]{0,2}(\.[0-9]{0,3}|e0)?"),
    "labels": (labels(), r"0|1|0\.0|1\.0|true|false|True|2|01| 1|"),
    "seconds": (ever("s"), r"[-+]?[0-9]{8,11}(\.[0-9]{0,10}|e1)?"),
    "milliseconds": (ever("ms"), r"-?[0-9]{11,14}(\.[0-9]{0,2})?"),
    "moment": (ever("utc"), r"(19[789]|20[0159])[0-9]-[01][0-9]-[0-3][0-9]([T ][0-2][0-9]:[0-6][0-9]"
               r"(:[0-6][0-9](\.[0-9]{0,7})?)?)?(Z|z|[+-]0[0-9]:[0-6]0)?"),
    "moment with zone": (ever("rfc3339"), r"(19[789]|20[0159])[0-9]-[01][0-9]-[0-3][0-9]T[0-2][0-9]:"
                         r"[0-5][0-9]"
                         r":[0-6][0-9](\.[0-9]{0,7})?(Z|z|[+-]0[0-9]:[0-6]0)?"),
    "any time": (ever(), r"[0-9]{9,19}(\.[0-9]{0,4})?(e\+?[0-9]{1,2})?|20[0-2][0-9]-0[1-9]-1[0-9][T ]"
                 r"[0-2][0-9]:[0-5][0-9](:[0-5][0-9](\.[0-9]{1,9})?)?( ?(Z|UTC|[+-][0-2][0-9](:?[0-6]0)?))?"),
    "microseconds": (ever("us"), r"[0-9]{15,16}(\.[0-9]{0,3})?"),
    "time of a zone": (ever(zone="Europe/Berlin"),
                       r"20[0-2][0-9]-(03|10)-(2[5-9]|3[01]) 0[0-4]:[0-5][0-9](:[0-5][0-9])?"),
    "pattern": (ever("%d-%m-%Y %H:%M"), r"[0-3]?[0-9]-[01]?[0-9]-20[0-9]{2} [0-2]?[0-9]:[0-6][0-9]"),
    "pattern with names": (ever("%d %b %Y %I%p", "Europe/Berlin"),
                           r"[0-3][0-9] (Jan|Mar|Oct) 20[0-9]{2} (0[1-9]|1[0-2])(AM|PM)"),
    "categories": (category_list(), r"[ab |\t]{0,8}"),
    "any rating": (rating(4), r"-?[0-9]{0,3}(\.[0-9]{1,3})?"),
    "field": (field_value(Field("a", "item", "categorical")), r"[a|0 \x00]{0,4}|nan|NULL"),
    "fields": (field_value(Field("a", "item", "multi", 3), ","), r"([a ]{0,2},){0,4}|None"),
    "number": (field_value(Field("a", "item", "numeric")),
               r"[+-]?[0-9]{0,3}(\.[0-9]{0,3})?([eE][+-]?[0-9]{1,3})?|nan|inf"),
    "day_of_year_2014": (day_of_year_2014(), r"[0-9]{2,5}| [0-9]{3}|1[0-2][0-3][0-9]|[+-][0-9]{3}"),
}  # fmt: skip


def read_at_once(reading: Reading, values: list[str]) -> list[Any]:
    frame = pl.DataFrame({"x": values}, schema={"x": pl.String})
    return frame.select(reading.parse(pl.col("x")).cast(reading.kind).alias("x"))["x"].to_list()


def read_singly(reading: Reading, value: str) -> Any:
    """What `convert` reads, None where it refuses."""
    try:
        return reading.convert(value)
    except ValueError:
        return None


@pytest.mark.parametrize("name", READINGS)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_what_is_read_at_once_is_what_is_read_singly(name: str, data: st.DataObject) -> None:
    reading, pattern = READINGS[name]
    values = data.draw(st.lists(st.from_regex(pattern, fullmatch=True) | st.text(max_size=8), min_size=1, max_size=30))
    for value, found in zip(values, read_at_once(reading, values), strict=True):
        if found is not None:
            singly = read_singly(reading, value)
            assert singly == found or str(singly) == str(found) == "nan", value


GOOD: dict[str, dict[str, Any]] = {
    "identifier": {"a": "a", "0": "0", " ": " ", "x" * 256: "x" * 256, "é" * 256: "é" * 256},
    "field": {"a": "a", "": "", "NaN": "", "null": "", "é" * 256: "é" * 256, "1.0": "1.0", "a|b": "a|b"},
    "fields": {"a,b,c": "a,b,c", "": "", "None": "", ",,,a,": ",,,a,"},
    "number": {"1": 1, "-3": -3, "2.": 2, ".5": 0.5, "+1e3": 1000, "1E-2": 0.01, "1e30": 1e30, "007": 7},
    "text": {"": "", "a,b": "a,b"},
    "whole_number": {"0": 0, "365": 365, "007": 7, "+3": 3},
    "negative_number": {"-5": -5, str(10**17): 10**17},
    "rating": {"0.5": 0, "3.999": 0, "4": 1, "4.0": 1, "5.0": 1},
    "labels": {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "1.00": 1, "false": 0, "true": 1, "False": 0, "True": 1, "FALSE": 0,
               "TRUE": 1},
    "seconds": {"1400000000": MAY_2014, "1400000000.0": MAY_2014, "1400000000.25": MAY_2014 + 250,
                "631152000": ms(1990, 1, 1), "4102444799.999": ms(2100, 1, 1) - 1},
    "milliseconds": {"1400000000000": MAY_2014, "1400000000000.0": MAY_2014, "1400000000000.5": MAY_2014,
                     "631152000000": ms(1990, 1, 1), "4102444799999": ms(2100, 1, 1) - 1},
    "moment": {"2014-05-13T16:53:20Z": MAY_2014, "2014-05-13T16:53:20": MAY_2014, "2014-05-13 16:53:20": MAY_2014,
               "2014-05-13T16:53:20.123Z": MAY_2014 + 123, "2014-05-13T16:53:20.123999Z": MAY_2014 + 123,
               "2014-05-13T16:53:20.123999999Z": MAY_2014 + 123, "2014-05-13T18:53:20+02:00": MAY_2014,
               "2014-05-13T16:53": ms(2014, 5, 13, 16, 53), "2014-05-13": ms(2014, 5, 13),
               "2016-02-29": ms(2016, 2, 29), "1990-01-01": ms(1990, 1, 1),
               "2099-12-31T23:59:59.999Z": ms(2100, 1, 1) - 1},
    "moment with zone": {"2014-05-13T16:53:20Z": MAY_2014, "2014-05-13t16:53:20z": MAY_2014,
                         "2014-05-13T18:53:20+02:00": MAY_2014, "2014-05-12T23:53:20.5-17:00": MAY_2014 + 500},
    "any time": {"1400000000": MAY_2014, "1400000000000": MAY_2014, "1400000000000000": MAY_2014,
                 "1400000000000000000": MAY_2014, "1400000000123456": MAY_2014 + 123,
                 "1400000000123999999": MAY_2014 + 123, "1400000000.0": MAY_2014,
                 "1.4e+09": MAY_2014, "1.4e9": MAY_2014,
                 "1.4e+18": MAY_2014, "1400000000.1229998": MAY_2014 + 123, "2014-05-13 16:53:20+00:00": MAY_2014,
                 "2014-05-13 18:53:20+0200": MAY_2014, "2014-05-13T18:53:20+02": MAY_2014,
                 "2014-05-13 16:53:20 UTC": MAY_2014, "2014-05-13 11:23:20.5-0530": MAY_2014 + 500},
    "microseconds": {"1400000000000000": MAY_2014, "1400000000000999": MAY_2014},
    # By `TZ=UTC date -d 'TZ="Europe/Berlin" 2021-07-01 07:00' +%s` and so on. The hour from 2:00 to 3:00 of 31 October
    # 2021 came twice: the first is meant.
    "time of a zone": {"2021-01-29 07:00:00": ms(2021, 1, 29, 6), "2021-07-01 07:00": ms(2021, 7, 1, 5),
                       "2021-07-01": ms(2021, 6, 30, 22), "2021-10-31 02:30:00": ms(2021, 10, 31, 0, 30),
                       "2021-10-31 03:00:00": ms(2021, 10, 31, 2), "2021-07-01 07:00:00Z": ms(2021, 7, 1, 7),
                       "2021-07-01T07:00:00+0900": ms(2021, 6, 30, 22), "1625122800": ms(2021, 7, 1, 7)},
    "pattern": {"29-01-2021 07:00": ms(2021, 1, 29, 7), "9-1-2021 7:00": ms(2021, 1, 9, 7)},
    "pattern with names": {"29 Jan 2021 07AM": ms(2021, 1, 29, 6), "01 Jul 2021 07PM": ms(2021, 7, 1, 17)},
    "categories": {"": "", "x": "x", "x||y": "x|y", " x | y ": "x|y", "|": "", "x|": "x", "|x|x": "x|x", "a b": "a b"},
    "any rating": {"4.5": 1, "4": 1, "3.99": 0, "-1": 0, "100": 1},
    "day_of_year_2014": {"0511": ms(2014, 5, 11), "511": ms(2014, 5, 11), "1112": ms(2014, 11, 12),
                         "101": ms(2014, 1, 1), "1231": ms(2014, 12, 31), "228": ms(2014, 2, 28)},
}  # fmt: skip

NOT_TIMES = [
    "",
    "x",
    "0",
    "-1400000000",
    "nan",
    "inf",
    " 1400000000",
    "1400000000 ",
    "1_400_000_000",
]
NOT_DAYS = [
    "", "2014", "1970-01-01", "1989-12-31T23:59:59.999Z", "2100-01-01", "2150-05-05", "2014-13-01", "2014-00-10",
    "2014-04-31", "2015-02-29", "2014-05-13T24:00:00Z", "2014-05-13T10:60:00Z", "2014-05-13T23:59:60Z",
    "2014-5-13", "20140513", "13/05/2014", "2014-05-13T16:53:20+25:00", "2014-05-13T16:53:20,5Z", "2014-05-13Z",
]  # fmt: skip
BAD: dict[str, list[str]] = {
    "identifier": ["", "x" * 257, "a\0b", "nan", "NaN", "None", "null", "NULL", "12.0", "-3.00",
                   "1.23457E+11", "1e+16"],
    "text": [],
    "whole_number": ["", "-1", "366", "1.0", "1e2", " 1", "1 ", "1_0", "٣", "x", "9" * 30],
    "negative_number": ["-6", str(10**17 + 1), "0x1", "--1"],
    "rating": ["", "0.4", "5.1", "6", "-1", "+4", "4.", ".5", "4,5", "4e0", "nan", "inf", " 4", "٤"],
    "labels": ["", "2", "-1", "yes", "tRUE", "01", " 1", "1.", "1.5", "nan"],
    "seconds": [*NOT_TIMES, "631151999", "4102444800", "5680281600", "1400000000000", "9" * 15, "1" * 30],
    "milliseconds": [*NOT_TIMES, "631151999999", "4102444800000", "1400000000", "9" * 15],
    "moment": NOT_DAYS,
    "moment with zone": [*NOT_DAYS, "2014-05-13", "2014-05-13T16:53:20", "2014-05-13 16:53:20.123"],
    "any time": ["", "5", "99999999", "20000000000", "50000000000000", "1.4e+40", "nan", "1400000000,5", "yesterday",
                 "2014-05-13 16:53:20", "2014-05-13", "13-05-2014 16:53", "2014-05-13 16:53:20 CET", "9" * 25],
    "microseconds": ["1400000000", "1400000000000000000", "2014-05-13T16:53:20Z"],
    "time of a zone": ["2021-03-28 02:30:00", "2021-03-28 02:00", "2021-03-28 02:59:59", "2021-02-29", "29-01-2021"],
    "pattern": ["2021-01-29 07:00", "31-02-2021 07:00", "29-01-2021 25:00", "29-01-2021 07:60", "", "29-01-21 07:00"],
    "pattern with names": ["29 Foo 2021 07AM", "28 Mar 2021 02AM"],
    "categories": ["x" * 257, "a\0"],
    "any rating": ["", "nan", "x", "1e3"],
    "field": ["x" * 257, "a\0"],
    "fields": ["x" * 257, "a,b,c,d", "a,b\0"],
    "number": ["inf", "-Infinity", "1e31", "1e999", "0x1", "1_0", "1,5", " 1", ".", "e5", "٣", "x"],
    "day_of_year_2014": ["", "0", "11", "00511", "1301", "0010", "431", "0229", "1032", "-511", "+511", " 511", "5.11",
                         "\u0665\u0661\u0661"],
}  # fmt: skip


@pytest.mark.parametrize("name", READINGS)
def test_good_values(name: str) -> None:
    reading = READINGS[name][0]
    expected = GOOD[name]
    assert {value: read_singly(reading, value) for value in expected} == expected
    assert all(found in (None, expected[value]) for value, found in zip(
        expected, read_at_once(reading, list(expected)), strict=True))  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "identifier",
        "text",
        "whole_number",
        "rating",
        "labels",
        "seconds",
        "milliseconds",
        "any time",
        "microseconds",
        "time of a zone",
        "pattern with names",
        "categories",
        "any rating",
    ],
)
def test_good_values_are_read_at_once(name: str) -> None:
    """Or a large file would take minutes instead of seconds."""
    assert None not in read_at_once(READINGS[name][0], list(GOOD[name]))


@pytest.mark.parametrize(("reading", "values"), [
    (ever("utc"), ["2014-05-13T16:53:20Z", "2014-05-13T16:53:20", "2014-05-13T16:53:20.12", "2014-05-13"]),
    (ever("rfc3339"), ["2014-05-13T16:53:20Z", "2014-05-13T16:53:20.123456Z"]),
    (day_of_year_2014(), ["0511", "511", "1112"]),
])  # fmt: skip
def test_common_moments_are_read_at_once(reading: Reading, values: list[str]) -> None:
    assert None not in read_at_once(reading, values)


@pytest.mark.parametrize("name", READINGS)
def test_bad_values(name: str) -> None:
    reading, values = READINGS[name][0], BAD[name]
    assert [value for value in values if read_singly(reading, value) is not None] == []
    assert [
        value for value, found in zip(values, read_at_once(reading, values), strict=True) if found is not None
    ] == []


# --- whole files


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(
    path: Path,
    readings: dict[str, Reading],
    layout: Layout = CSV,
    malformed: Malformed = "error",
    block_bytes: int = 1 << 20,
) -> tuple[list[tuple[Any, ...]], Scan]:
    """All rows of a file, and the scan when it was through."""
    scan = Scan(path, layout, readings, malformed, block_bytes)
    return [row for block in scan.blocks() for row in block.iter_rows()], scan


ID_TIME = {"id": identifier(), "time": ever("s")}


def quoted(value: str, always: bool) -> str:
    if always or any(c in value for c in ',"\n\r'):
        return '"' + value.replace('"', '""') + '"'
    return value


values = st.text(st.sampled_from("ab,\"\n\r é'€;"), max_size=6)
csv_rows = st.lists(st.tuples(values, values.filter(bool), values, st.booleans()), min_size=1, max_size=12)


@given(
    rows=csv_rows,
    end=st.sampled_from(["\n", "\r\n"]),
    blank=st.sets(st.integers(0, 12)),
    final=st.booleans(),
    bom=st.booleans(),
    compressed=st.booleans(),
    block_bytes=st.integers(1, 200),
)
@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_do_not_depend_on_the_blocks_and_are_those_of_csv(
    tmp_path: Path, rows: list[tuple[str, str, str, bool]], end: str, blank: set[int], final: bool, bom: bool,
    compressed: bool, block_bytes: int,
) -> None:  # fmt: skip
    lines = ["note,id,rest"]
    for n, (note, id_, rest, always) in enumerate(rows):
        lines += [""] * (n in blank) + [",".join(quoted(value, always) for value in (note, id_, rest))]
    content = "\ufeff" * bom + end.join(lines) + end * final
    encoded = content.encode()
    path = write(tmp_path / "log.csv", gzip.compress(encoded) if compressed else encoded)

    expected = [tuple(row) for row in csv.reader(io.StringIO(end.join(lines), newline=""), strict=True) if row][1:]
    assert expected == [row[:3] for row in rows]  # and csv reads what was meant
    found, scan = read(path, {"note": text(), "id": identifier(), "rest": text()}, block_bytes=block_bytes)
    assert found == expected
    assert (scan.rows, scan.dropped) == (len(rows), {})
    few, _ = read(path, {"rest": text(), "id": identifier()}, block_bytes=block_bytes)
    assert few == [(rest, id_) for _, id_, rest in expected]  # in the order that was asked for


@given(content=st.text(st.sampled_from('a,"\n\r b'), max_size=40), block_bytes=st.integers(1, 60))
@example(content='a"b,b\n"x,\ny",b\n', block_bytes=3)  # a quote that is part of an unquoted value
@example(content='"a"b,a\n', block_bytes=20)
@example(content='"a\nb","\n', block_bytes=4)
@example(content=',"""', block_bytes=1)  # never closed
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_read_as_csv_does_or_refused(tmp_path: Path, content: str, block_bytes: int) -> None:
    path = write(tmp_path / "log.csv", "u,v\n" + content)
    try:
        expected = [tuple(row) for row in csv.reader(io.StringIO(content, newline="\n"), strict=True) if row]
    except csv.Error:
        expected = []
    if not expected or any(len(row) != 2 for row in expected):
        with pytest.raises(LogFormatError):
            read(path, {"u": text(), "v": text()}, block_bytes=block_bytes)
    else:
        assert read(path, {"u": text(), "v": text()}, block_bytes=block_bytes)[0] == expected


@pytest.mark.parametrize("block_bytes", [1, 7, 30, 1 << 20])
def test_values_without_quoting_are_taken_as_they_are(tmp_path: Path, block_bytes: int) -> None:
    path = write(tmp_path / "u.data", '"7"\ta b\t"\r\n7"\t"\tc,d\r\n')
    readings = {"a": text(), "b": text(), "c": text()}
    found, _ = read(path, readings, Layout(delimiter="\t", names=("a", "b", "c")), block_bytes=block_bytes)
    assert found == [('"7"', "a b", '"'), ('7"', '"', "c,d")]


@pytest.mark.parametrize("block_bytes", [1, 9, 1 << 20])
def test_a_delimiter_of_two_characters(tmp_path: Path, block_bytes: int) -> None:
    path = write(tmp_path / "ratings.dat", "1::10::978300760\n\n2::1:0::978300761\n")
    readings = {"user": identifier(), "film": text(), "time": ever("s")}
    layout = Layout(delimiter="::", names=("user", "film", "time"))
    assert read(path, readings, layout, block_bytes=block_bytes)[0] == [
        ("1", "10", 978_300_760_000),
        ("2", "1:0", 978_300_761_000),
    ]


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
@pytest.mark.parametrize("header", ["", "user,item\n", "\r\nuser,item\r\n", '\ufeff"user",item\n'])
def test_a_header_may_be_missing_where_the_layout_says_so(tmp_path: Path, header: str, block_bytes: int) -> None:
    path = write(tmp_path / "log.csv", header + "u,i\nuser,item\n")
    layout = Layout(names=("user", "item"), header_optional=True, quoted=True)
    found, _ = read(path, {"user": identifier(), "item": identifier()}, layout, block_bytes=block_bytes)
    assert found == [("u", "i"), ("user", "item")]  # the latter are ids there


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_a_header_behind_blank_lines_and_of_two_lines(tmp_path: Path, block_bytes: int) -> None:
    path = write(tmp_path / "log.csv", '\n\r\n"a\nb",id\nx,1\n')
    assert read(path, {"a\nb": text(), "id": identifier()}, block_bytes=block_bytes)[0] == [("x", "1")]
    with pytest.raises(LogFormatError, match="line 5, column 'id'"):
        read(write(path, '\n\r\n"a\nb",id\nx,\n'), {"id": identifier()}, block_bytes=block_bytes)


# --- errors


def error(path: Path, readings: dict[str, Reading], layout: Layout = CSV, *, block_bytes: int = 1 << 20) -> str:
    """What is said about a file; its path, which comes first, is left out."""
    with pytest.raises(LogFormatError) as raised:
        read(path, readings, layout, block_bytes=block_bytes)
    message = str(raised.value)
    assert message.startswith(str(path))
    return message.removeprefix(str(path)).removeprefix(", ").removeprefix(": ")


AN_ID = "an id of 1 to 256 characters without NUL"
SECONDS = "seconds since 1970, of the years 1990 to 2099 and not ahead of now"
READ = "text or whole numbers are read as ids"
MISSING = "the id is missing; --malformed drop leaves such rows out and counts them"
GOOD_ROWS = "".join(f"u{n},{1_400_000_000 + n}\n" for n in range(20))


@pytest.mark.parametrize(("content", "said"), [
    ("", "expected a file with rows; received an empty file"),
    ("\n\n", "expected at least one row; received none"),
    ("id,time\n", "expected at least one row; received none"),
    ("id,time\r\n\r\n\r\n", "expected at least one row; received none"),
    ("id,when\nu,1\n", "line 1: expected a column 'time'; received id, when"),
    ("id,time,id\nu,1,v\n", "line 1: expected one column 'id'; received 2 of them"),
    ('id,"time', "line 1: expected a header line; received unexpected end of data"),
    ("id,time\nu\n", "line 2: expected 2 values; received 1"),
    ("id,time\nu,1400000000,x\n", "line 2: expected 2 values; received 3"),
    ("id,time\n,1400000000\n", f"line 2, column 'id': expected {AN_ID}; received ''; {MISSING}"),
    ("id,time\nu,\n", f"line 2, column 'time': expected {SECONDS}; received ''"),
    ('id,time\nu,""\n', f"line 2, column 'time': expected {SECONDS}; received ''"),
    ("id,time\nu,100\n", f"line 2, column 'time': expected {SECONDS}; received '100'"),
    (f"id,time\nu,{'x' * 70}\n", f"line 2, column 'time': expected {SECONDS}; received '{'x' * 60}…'"),
])  # fmt: skip
def test_errors_at_the_beginning(tmp_path: Path, content: str, said: str) -> None:
    for block_bytes in (1, 1 << 20):
        assert error(write(tmp_path / "log.csv", content), ID_TIME, block_bytes=block_bytes) == said
    assert error(write(tmp_path / "log.csv.gz", gzip.compress(content.encode())), ID_TIME) == said.replace(
        "a file with rows; received an empty file", "at least one row; received none"
    )


@pytest.mark.parametrize("block_bytes", [1, 40, 150, 1 << 20])
@pytest.mark.parametrize(("bad", "said"), [
    ("u", "expected 2 values; received 1"),
    ("u,1400000000,", "expected 2 values; received 3"),
    (",1400000000", f"column 'id': expected {AN_ID}; received ''; {MISSING}"),
    ("u,yesterday", f"column 'time': expected {SECONDS}; received 'yesterday'"),
    ('"u\nv"x,1400000000', "expected delimited values (RFC 4180); received ',' expected after '\"'"),
    ('"u\nv,1400000000', "expected delimited values (RFC 4180); received unexpected end of data"),
    ("u\rv,1400000000", "expected delimited values (RFC 4180); received new-line character seen in unquoted field"
                        " - do you need to open the file in universal-newline mode?"),
])  # fmt: skip
def test_errors_further_on_name_the_line(tmp_path: Path, bad: str, said: str, block_bytes: int) -> None:
    # 1 header, 20 rows, a blank line, a row of three lines: the bad row is in line 1 + 20 + 1 + 3 + 1.
    content = f'id,time\n{GOOD_ROWS}\n"a\n\nb",1400000000\n{bad}\n{GOOD_ROWS}'
    path = write(tmp_path / "log.csv", content)
    message = error(path, ID_TIME, block_bytes=block_bytes)
    separator = ", " if said.startswith("column") else ": "
    assert message == f"line 26{separator}{said}"
    assert error(write(path, content.replace("\n", "\r\n")), ID_TIME, block_bytes=block_bytes) == message


@pytest.mark.parametrize("block_bytes", [1, 64, 1 << 20])
def test_text_that_is_not_utf8(tmp_path: Path, block_bytes: int) -> None:
    content = f"id,time,title\n{GOOD_ROWS}".replace("\n", ",x\n").replace("title,x", "title").encode()
    path = write(tmp_path / "log.csv", content + b"u,1400000000,caf\xe9\n" + content[14:])
    said = "line 22: expected text in UTF-8; received byte 0xe9"
    assert error(path, ID_TIME, block_bytes=block_bytes) == said  # in a column that nobody asked for, too


@pytest.mark.parametrize("block_bytes", [50, 1 << 20])
def test_damaged_gzip_files(tmp_path: Path, block_bytes: int) -> None:
    """The line is the one that could not be read to its end."""
    content = f"id,time\n{GOOD_ROWS * 20}".encode()
    whole = gzip.compress(content)
    expected = "expected a complete gzip file; received one that is cut short or damaged"
    for n, damaged in enumerate((
        whole[:-20],
        whole[:-1],
        whole[:5],
        whole[:20] + bytes(8) + whole[28:],
        whole[:-8] + bytes(8),
        whole + b"garbage",
    )):  # fmt: skip
        path = write(tmp_path / f"{n}.csv.gz", damaged)
        place, _, said = error(path, ID_TIME, block_bytes=block_bytes).partition(": ")
        assert said.startswith(expected), n
        there = zlib.decompressobj(wbits=31).decompress(damaged) if n in (0, 1, 2) else content
        line = int(place.removeprefix("line "))
        assert line == 1 + there.count(b"\n") if n != 3 else 1 <= line <= 1 + content.count(b"\n"), n


@pytest.mark.parametrize("block_bytes", [1, 30, 1 << 20])
def test_bad_rows_may_be_left_out_and_are_counted(tmp_path: Path, block_bytes: int) -> None:
    content = "id,time\na,1400000000\n,1400000000\nb\n\nc,1,2\nd,x\ne,1400000001\n,x\nf,1400000002\n"
    found, scan = read(write(tmp_path / "log.csv", content), ID_TIME, malformed="drop", block_bytes=block_bytes)
    assert found == [("a", MAY_2014), ("e", MAY_2014 + 1000), ("f", MAY_2014 + 2000)]
    assert scan.rows == 8
    assert scan.dropped == {
        f"rows whose id is not {AN_ID}": 2,  # the first fault of a row counts
        "rows with another number of values": 2,
        f"rows whose time is not {SECONDS}": 1,
    }


def test_a_file_of_bad_rows_only(tmp_path: Path) -> None:
    found, scan = read(write(tmp_path / "log.csv", "id,time\n,x\nu\n"), ID_TIME, malformed="drop")
    assert (found, scan.rows, sum(scan.dropped.values())) == ([], 2, 2)


# --- Parquet


def write_parquet(path: Path, **columns: Any) -> Path:
    pl.DataFrame(columns).write_parquet(path)
    return path


@pytest.mark.parametrize(("values", "reading", "expected"), [
    (["a", "b"], identifier(), ["a", "b"]),
    ([7, -7], identifier(), ["7", "-7"]),
    (pl.Series(["a", "b"], dtype=pl.Categorical), identifier(), ["a", "b"]),
    ([True, False], labels(), [1, 0]),
    ([1.0, 0.0], labels(), [1, 0]),
    ([1_400_000_000, 1_400_000_001], ever("s"), [MAY_2014, MAY_2014 + 1000]),
    ([1_400_000_000.0, 1_400_000_000.5], ever("s"), [MAY_2014, MAY_2014 + 500]),
    ([1_400_000_000_000.0, 1_400_000_000_007.0], ever("ms"), [MAY_2014, MAY_2014 + 7]),
    ([datetime(2014, 5, 13, 16, 53, 20), datetime(2014, 1, 1)], ever("utc"), [MAY_2014, ms(2014, 1, 1)]),
    ([datetime(2014, 5, 13, 16, 53, 20, 5_000, tzinfo=UTC)] * 2, ever("rfc3339"), [MAY_2014 + 5] * 2),
    ([date(2014, 5, 13), date(2015, 1, 1)], ever("utc"), [ms(2014, 5, 13), ms(2015, 1, 1)]),
    ([["x", "y"], []], text(), ["x|y", ""]),
    ([None, "x"], text(), ["", "x"]),
])  # fmt: skip
def test_types_of_parquet_columns(tmp_path: Path, values: Any, reading: Reading, expected: list[Any]) -> None:
    path = write_parquet(tmp_path / "log.parquet", other=[0, 0], x=values)
    found, scan = read(path, {"x": reading})
    assert [value for (value,) in found] == expected
    assert scan.rows == 2


@pytest.mark.parametrize(("values", "reading", "said"), [
    (["a", None], identifier(), f"row 2, column 'x': expected {AN_ID}; received ''; {MISSING}"),
    (["1", "x"], ever("s"), f"row 1, column 'x': expected {SECONDS}; received '1'"),
    ([1_400_000_000, 5], ever("s"), f"row 2, column 'x': expected {SECONDS}; received '5'"),
    ([12.0, 13.0], identifier(), f"column 'x': expected {AN_ID}; received Float64; {READ}"),
    ([date(2014, 1, 1)] * 2, identifier(), f"column 'x': expected {AN_ID}; received Date; {READ}"),
    ([b"a", b"\xff"], identifier(), "column 'x': expected text in UTF-8, or UUIDs of 16 bytes; received other bytes"),
    ([None, None], identifier(), "column 'x': expected text, numbers, dates, UUIDs or lists of text; received Null"),
])  # fmt: skip
def test_bad_parquet_columns(tmp_path: Path, values: Any, reading: Reading, said: str) -> None:
    path = write_parquet(tmp_path / "log.parquet", other=["ü", "ü"], x=values)
    assert error(path, {"x": reading}) == said


def test_rows_of_later_parquet_blocks_are_named_and_may_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asmg.datasets.scan.PARQUET_ROW_BYTES", (1 << 20) // 3)
    path = write_parquet(tmp_path / "log.parquet", time=[MAY_2014] * 8, id=["a", "b", "c", "d", "", "f", "g", "h"])
    readings = {"id": identifier(), "time": ever("ms")}
    assert error(path, readings).startswith("row 5, column 'id'")
    found, scan = read(path, readings, malformed="drop")
    assert found == [(id_, MAY_2014) for id_ in "abcdfgh"]
    assert (scan.rows, scan.dropped) == (8, {f"rows whose id is not {AN_ID}": 1})
    with pytest.raises(LogFormatError, match="expected a column 'when'; received time, id"):
        read(path, {"when": text()})


def test_damaged_and_empty_parquet_files(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "log.parquet", id=[f"u{n}" for n in range(1000)]).read_bytes()
    for damaged in (whole[:-30], whole[:4], b"PAR1 and nothing else", whole[:4] + bytes(2_000) + whole[2_004:]):
        path = write(tmp_path / "damaged.parquet", damaged)
        assert error(path, {"id": identifier()}).startswith(
            "expected a complete Parquet file; received one that is cut"
        )
    empty = write_parquet(tmp_path / "empty.parquet", id=pl.Series([], dtype=pl.String))
    assert error(empty, {"id": identifier()}) == "expected at least one row; received none"


def test_a_name_with_brackets_is_no_pattern(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "log[1]*.parquet", id=["u"])
    assert read(path, {"id": identifier()})[0] == [("u",)]
    assert Scan(path, CSV, {}).header() == ("id",)
    path = write(tmp_path / "log[1]*.csv", "id\nu\n")
    assert read(path, {"id": identifier()})[0] == [("u",)]


# --- the header


@pytest.mark.parametrize(("content", "expected"), [
    ("a,b\n1,2\n", ("a", "b")),
    ("a,b", ("a", "b")),
    ('\ufeff\r\na,"b\nc"\r\n\r\n"x,y",\r\n', ("a", "b\nc")),
    (" a ,\tb\n", ("a", "b")),
])  # fmt: skip
def test_the_header(tmp_path: Path, content: str, expected: tuple[str, ...]) -> None:
    assert Scan(write(tmp_path / "log.csv", content), BLANKS, {}).header() == expected
    assert Scan(write(tmp_path / "log.gz", gzip.compress(content.encode())), BLANKS, {}).header() == expected


@pytest.mark.parametrize(("content", "said"), [
    ("", "expected a header line and rows; received an empty file"),
    ("\n\n", "expected a header line and rows; received blank lines"),
    ('a,"b\n', r"line 1: expected a header line; received unexpected end of data"),
    (b"a,b\nc,\xff\n", "line 2: expected text in UTF-8; received byte 0xff"),
    (b"PAR1....", "expected a complete Parquet file"),
])  # fmt: skip
def test_no_header(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(LogFormatError, match=said):
        Scan(write(tmp_path / "log", content), CSV, {}).header()


def test_the_header_tells_no_progress_and_a_file_can_be_read_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "id,time\nu,1400000000\n")
    assert Scan(path, CSV, ID_TIME, progress=lambda fraction: pytest.fail("told")).header() == ("id", "time")
    assert read(path, ID_TIME)[0] == read(path, ID_TIME)[0] == [("u", MAY_2014)]


@pytest.mark.parametrize("block_bytes", [1, 40, 1 << 20])
def test_blanks_around_names_and_values(tmp_path: Path, block_bytes: int) -> None:
    path = write(tmp_path / "log.csv", "id,  time\nu, 1400000000\n\tv w ,1400000001 \n")
    assert read(path, ID_TIME, BLANKS, block_bytes=block_bytes)[0] == [("u", MAY_2014), ("v w", MAY_2014 + 1000)]
    write(path, "id,time\n  ,1400000000\n")
    with pytest.raises(LogFormatError, match=r"line 2, column 'id': .* received ''; the id is missing"):
        read(path, ID_TIME, BLANKS, block_bytes=block_bytes)


# --- progress


@pytest.mark.parametrize("make", [
    lambda path, rows: write(path, "id,time\n" + rows),
    lambda path, rows: write(path, "id,time\n" + rows.rstrip("\n")),
    lambda path, rows: write(path, gzip.compress(("id,time\n" + rows).encode())),
    lambda path, rows: write_parquet(path, id=["u"] * 400, time=[1_400_000_000] * 400),
])  # fmt: skip
def test_progress_goes_up_to_one(
    tmp_path: Path, make: Callable[[Path, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asmg.datasets.scan.PARQUET_ROW_BYTES", 10)
    told: list[float] = []
    path = make(tmp_path / "log", GOOD_ROWS * 20)
    scan = Scan(path, CSV, ID_TIME, "error", 700, told.append)
    assert sum(block.height for block in scan.blocks()) == 400
    assert told == sorted(told)
    assert 0 <= told[0] <= told[-1] == 1
    assert len(told) >= 5


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.csv", ID_TIME)
