"""Values of columns: whether a value is read at once or singly makes no difference."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg.datasets.columns import Reading, category_list, identifier, labels, rating, text, whole_number
from asmg.datasets.field_values import field_value
from asmg.datasets.times import day_of_year_2014
from asmg.features import Field
from tests.asmg.scans import MAY_2014, ever, ms

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
