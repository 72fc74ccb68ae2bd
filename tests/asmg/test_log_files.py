"""The user's own log: what is read from CSV and Parquet files, and which files are refused."""

import base64
import gzip
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asmg.datasets import ColumnMap, InteractionLog, LogFormatError, LogOptions, read_log
from tests.asmg.logs import write

CSV = (
    "user_id,item_id,label,timestamp,categories,when\n"
    "u1,i1,1,1700000000,red|round,3\n"
    '"u,2",i2,0,1700000001.5,,4\n'
    "ü3,i1,1,1600000000,blue,4\n"
)


def check_example(log: InteractionLog) -> None:
    assert list(log.user_ids) == ["u1", "u,2", "ü3"]
    assert list(log.item_ids) == ["i1", "i2", "i1"]
    assert list(log.labels) == [1, 0, 1]
    assert list(log.timestamps_ms) == [1_700_000_000_000, 1_700_000_001_500, 1_600_000_000_000]
    assert log.categories == {"i1": ("blue",)}  # the last row that names any
    assert not log.positives_only


@pytest.mark.parametrize("kind", ["plain", "byte order mark", "CRLF", "gzip", "tabs", "blank lines", "Parquet"])
def test_a_log_is_read_from(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    if kind == "gzip":
        path.write_bytes(gzip.compress(CSV.encode()))
    elif kind == "tabs":
        path = write(tmp_path / "log.tsv", CSV.replace('"u,2"', "U").replace(",", "\t").replace("U", "u,2"))
    elif kind == "Parquet":
        pl.read_csv(CSV.encode()).write_parquet(path)
    else:
        write(
            path,
            {
                "plain": CSV,
                "byte order mark": "\ufeff" + CSV,
                "CRLF": CSV.replace("\n", "\r\n"),
                "blank lines": CSV.replace("\n", "\n\n"),
            }[kind],
        )
    log = read_log(path)
    check_example(log)
    assert log.period is None
    log = read_log(path, LogOptions(columns=ColumnMap(period="when")))
    assert log.period is not None
    assert list(log.period) == [3, 4, 4]


def is_id(text: str) -> bool:
    """Whether it is an id, and one that has no blanks around it; numbers have tests of their own."""
    missing = ("", "nan", "NaN", "None", "null", "NULL")
    return text == text.strip(" \t") and text not in missing and not re.fullmatch(r"[\d.eE+-]+", text)


@given(
    rows=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(is_id),
            st.text("ab,\"'\n\r\t| ", min_size=1, max_size=8).filter(is_id),
            st.integers(0, 1),
            st.integers(631_152_000_000, 1_700_000_000_000),
        ),
        min_size=1,
        max_size=20,
    )
)
@settings(max_examples=50, deadline=None)
def test_what_was_written_is_read(
    rows: list[tuple[str, str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "label", "timestamp"], orient="row")
    folder = tmp_path_factory.mktemp("log")
    frame.write_csv(folder / "log.csv", quote_style="always")
    frame.write_parquet(folder / "log.parquet")
    for name in ("log.csv", "log.parquet"):
        log = read_log(folder / name)
        assert list(zip(log.user_ids, log.item_ids, log.labels, log.timestamps_ms, strict=True)) == rows


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "who;what;liked;at;kinds\nu;i;1;1700000000000;a|b|a\n")
    columns = ColumnMap(user_id="who", item_id="what", label="liked", timestamp="at", categories="kinds")
    log = read_log(path, LogOptions(columns=columns, delimiter=";"))
    assert (log.user_ids[0], log.item_ids[0], log.labels[0], log.timestamps_ms[0]) == ("u", "i", 1, 1_700_000_000_000)
    assert log.categories == {"i": ("a", "b")}


@pytest.mark.parametrize(
    ("header", "positives_only", "label", "expected"),
    [
        ("kind", None, None, True),
        ("label", None, None, False),
        ("label", True, None, True),
        ("label", False, None, False),
        ("liked", False, "liked", False),
        ("liked", True, "liked", True),
    ],
)
def test_which_logs_hold_positives_only(
    tmp_path: Path, header: str, positives_only: bool | None, label: str | None, expected: bool
) -> None:
    path = write(tmp_path / "log.csv", f"user_id,item_id,timestamp,{header}\nu,i,1700000000,0\n")
    log = read_log(path, LogOptions(columns=ColumnMap(label=label), positives_only=positives_only))
    assert log.positives_only is expected
    assert list(log.labels) == [int(expected)]


NOON = 1_700_049_600_000
"""2023-11-15T12:00:00Z; by `date -u -d 2023-11-15T12:00:00Z +%s`."""


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        ("1700049600", None, NOON),
        ("1700049600.25", None, NOON + 250),
        ("1700049600000", None, NOON),
        ("1700049600000.0", None, NOON),
        ("2023-11-15T12:00:00Z", None, NOON),
        ("2023-11-15t12:00:00z", None, NOON),
        ("2023-11-15 13:00:00.1239+01:00", None, NOON + 123),
        ("2023-11-15T12:00:00", "utc", NOON),
        ("2023-11-15T07:00:00-05:00", "utc", NOON),
        ("2023-11-15", "utc", NOON - 43_200_000),
        ("700049600", "s", 700_049_600_000),
        ("1700049600000999", None, NOON),
        ("1700049600000999999", "ns", NOON),
        ("15.11.2023 12:00", "%d.%m.%Y %H:%M", NOON),
    ],
)
def test_timestamps(tmp_path: Path, text: str, form: Any, expected: int) -> None:
    path = write(tmp_path / "log.csv", f"user_id,item_id,timestamp\nu,i,{text}\n")
    assert read_log(path, LogOptions(timestamp_format=form)).timestamps_ms[0] == expected


@given(
    moment=st.datetimes(datetime(1990, 1, 2), datetime(2026, 1, 1), timezones=st.just(UTC)), hours=st.integers(-12, 14)
)
@settings(deadline=None)
def test_rfc_3339_in_any_zone(moment: datetime, hours: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    local = (moment + timedelta(hours=hours)).replace(tzinfo=None).isoformat()
    path = tmp_path_factory.getbasetemp() / "zones.csv"
    write(path, f"user_id,item_id,timestamp\nu,i,{local}{'-' if hours < 0 else '+'}{abs(hours):02}:00\n")
    expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert read_log(path).timestamps_ms[0] == expected


@pytest.mark.parametrize(
    ("timestamp", "item", "label", "categories"),
    [
        (
            pl.Series([datetime(2023, 11, 15, 12, tzinfo=UTC)]),
            pl.Series([7]),
            pl.Series([True]),
            pl.Series([["x", "y"]]),
        ),
        (pl.Series([1_700_049_600.0]), pl.Series(["7"], dtype=pl.Categorical), pl.Series([1.0]), pl.Series(["x|y"])),
        (
            pl.Series([datetime(2023, 11, 15, 13)]).dt.replace_time_zone("Europe/Paris"),
            pl.Series([7], dtype=pl.UInt8),
            pl.Series(["1"]),
            pl.Series([["x", "y", "x"]]),
        ),
        (pl.Series([NOON], dtype=pl.Int64), pl.Series(["7"]), pl.Series([1], dtype=pl.Int8), pl.Series(["x|y"])),
    ],
)
def test_types_of_parquet(
    tmp_path: Path, timestamp: pl.Series, item: pl.Series, label: pl.Series, categories: pl.Series
) -> None:
    path = tmp_path / "log.parquet"
    frame = {"user_id": ["u"], "item_id": item, "label": label, "timestamp": timestamp, "categories": categories}
    pl.DataFrame(frame).write_parquet(path)
    log = read_log(path)
    assert (log.item_ids[0], log.labels[0], log.timestamps_ms[0]) == ("7", 1, NOON)
    assert log.categories == {"7": ("x", "y")}


HEADER = "user_id,item_id,label,timestamp\n"

GOOD = "u,i,1,1700000000\n"

A_TIME = (
    "seconds, milliseconds, microseconds or nanoseconds since 1970, or a date and time (RFC 3339) with a time zone, as "
    "in 2026-01-31T23:59:59Z, of the years 1990 to 2099 and not ahead of now"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a header line and rows; received an empty file"),
        ("\n\n", "expected a header line and rows; received blank lines"),
        (HEADER, "expected at least one row; received none"),
        ("user_id,timestamp\n", "line 1: expected a column 'item_id'; received user_id, timestamp"),
        ("user_id;timestamp\n", "line 1: expected a column 'item_id'; received user_id, timestamp"),
        ("user_id,item_id,user_id,timestamp\n", "line 1: expected one column 'user_id'; received 2 of them"),
        (HEADER + GOOD + "u,i,1\n", "line 3: expected 4 values; received 3"),
        (HEADER + GOOD + '"u,i,1,1\n', "line 3: expected delimited values (RFC 4180); received unexpected end"),
        (
            HEADER + GOOD + "\n" + "u,i,2,1700000000\n",
            "line 4, column 'label': expected 0 or 1; received '2'; --positive",
        ),
        (HEADER + '"u\nu",i,1,1700000000\nu,i,,1700000000\n', "line 4, column 'label': expected 0 or 1; received ''"),
        (HEADER + ",i,1,1700000000\n", "line 2, column 'user_id': expected an id of 1 to 256 characters"),
        (HEADER + GOOD + "u,12.0,1,1700000000\n", "line 3, column 'item_id': expected an id of 1 to 256 characters"),
        (HEADER + GOOD + "u,nan,1,1700000000\n", "received 'nan'; the id is missing; --malformed drop"),
        (HEADER + GOOD + f"u,{'i' * 257},1,1700000000\n", f"received '{'i' * 60}…'"),
        (
            HEADER + "u,i\0,1,1700000000\n",
            "line 2, column 'item_id': expected an id of 1 to 256 characters without NUL",
        ),
        (HEADER + "u,i,1,yesterday\n", f"line 2, column 'timestamp': expected {A_TIME}; received 'yesterday'"),
        (HEADER + GOOD + "u,i,1,99999999\n", f"line 3, column 'timestamp': expected {A_TIME}; received '99999999'"),
        (HEADER + "u,i,1,-5\n", "line 2, column 'timestamp': expected seconds, milliseconds"),
        (HEADER + "u,i,1,٣\n", "line 2, column 'timestamp': expected seconds, milliseconds"),
        (
            HEADER + "u,i,1,2021-01-29 07:00:00\n",
            "received '2021-01-29 07:00:00'; for times without a zone give --timestamp-format utc, or --timezone",
        ),
        (HEADER + "u,i,1,29-01-2021 07:00\n", "give --timestamp-format with a pattern of strptime, such as '%d-%m"),
        (HEADER + "u,i,1,2023-02-30T12:00:00Z\n", "received '2023-02-30T12:00:00Z'"),
        (HEADER + "u,i,1,1969-12-31T23:59:59Z\n", "of the years 1990 to 2099 and not ahead of now; received '1969"),
        (HEADER + "u,i,1,4000000000\n", "received '4000000000'; it is more than 300 seconds ahead of the clock here"),
    ],
)
def test_bad_csv_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "bad.csv", text)
    with pytest.raises(LogFormatError) as caught:
        read_log(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_the_error_carries_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.csv", HEADER + "u,i,x,1700000000\n")
    with pytest.raises(LogFormatError) as caught:
        read_log(path)
    error = caught.value
    assert (error.path, error.line, error.column, error.expected, error.received) == (path, 2, "label", "0 or 1", "'x'")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": ColumnMap(label="liked")}, "expected a column 'liked'"),
        ({"columns": ColumnMap(categories="kinds")}, "expected a column 'kinds'"),
        ({"columns": ColumnMap(period="week")}, "expected a column 'week'"),
        ({"columns": ColumnMap(period="odd")}, "column 'odd': expected a whole number from"),
        ({"positives_only": False}, "expected a column 'label'"),
        ({"timestamp_format": "rfc3339"}, "expected a date and time (RFC 3339) with a time zone"),
    ],
)
def test_what_was_asked_for_has_to_be_there(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "log.csv", "user_id,item_id,timestamp,odd\nu,i,1700000000,a||b\n")
    with pytest.raises(LogFormatError) as caught:
        read_log(path, LogOptions(**arguments))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timestamp_format": "days"}, "timestamp_format: expected one of s, ms, us, ns, rfc3339, utc, or a pattern"),
        ({"timestamp_format": "%q"}, "timestamp_format: expected a pattern of strptime; received '%q'"),
        ({"timestamp_format": "%d.%m."}, "timestamp_format: expected a pattern with year, month and day; received '%d"),
        (
            {"timezone": "Mars"},
            "timezone: expected a name of the IANA database, such as Europe/Berlin; received 'Mars'",
        ),
        ({"timezone": "../etc"}, "timezone: expected a name of the IANA database"),
        ({"timezone": "UTC", "timestamp_format": "s"}, "timezone: expected none with the timestamp format s"),
        ({"positive_from": 4, "positives_only": True}, "positive_from: expected none with positives only"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        LogOptions(**options)
    assert said in str(caught.value)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_log(tmp_path / "none.csv")


def cut_short(content: bytes) -> bytes:
    return content[: len(content) // 2]


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 40]) + content[middle + 40 :]


@pytest.mark.parametrize("break_it", [cut_short, damaged])
def test_a_broken_gzip_file_is_refused(tmp_path: Path, break_it: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "log.csv.gz"
    lines = "".join(f"u{n * n % 977},i{n},1,{1_700_000_000 + n}\n" for n in range(5000))
    path.write_bytes(break_it(gzip.compress((HEADER + lines).encode())))
    with pytest.raises(LogFormatError, match="expected "):
        read_log(path)


def test_a_gzip_file_cut_short_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.gz"
    path.write_bytes(gzip.compress((HEADER + GOOD).encode())[:-9])
    with pytest.raises(LogFormatError, match="expected a complete gzip file; received one that is cut short"):
        read_log(path)


@pytest.mark.parametrize("break_it", [cut_short, damaged])
def test_a_broken_parquet_file_is_refused(tmp_path: Path, break_it: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "log.parquet"
    users = [f"u{n * n % 977}" for n in range(5000)]
    pl.DataFrame({"user_id": users, "item_id": users, "timestamp": 1_700_000_000}).write_parquet(path)
    path.write_bytes(break_it(path.read_bytes()))
    with pytest.raises(LogFormatError, match="expected a complete Parquet file"):
        read_log(path)


def test_text_that_is_not_utf_8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes((HEADER + GOOD).encode() + "ü,i,1,1700000000\n".encode("latin-1"))
    with pytest.raises(LogFormatError, match="line 3: expected text in UTF-8; received byte 0xfc"):
        read_log(path)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "item_id",
            [1.0, 2.0],
            "column 'item_id': expected an id of 1 to 256 characters without NUL; received Float64; text or",
        ),
        ("item_id", ["i", None], "row 2, column 'item_id': expected an id of 1 to 256 characters"),
        (
            "item_id",
            [b"i", b"\xff"],
            "column 'item_id': expected text in UTF-8, or UUIDs of 16 bytes; received other bytes",
        ),
        ("label", [0, 2], "row 2, column 'label': expected 0 or 1; received '2'"),
        ("label", [0.0, 0.5], "row 2, column 'label': expected 0 or 1; received '0.5'"),
        ("timestamp", [1_700_000_000, None], "row 2, column 'timestamp': expected seconds, milliseconds"),
        (
            "timestamp",
            [datetime(2023, 1, 1)] * 2,
            "received '2023-01-01T00:00:00.000'; for times without a zone give --timestamp-format utc",
        ),
        ("timestamp", [float("nan")] * 2, "row 1, column 'timestamp': expected seconds, milliseconds"),
    ],
)
def test_bad_parquet_is_refused_with_its_place(tmp_path: Path, column: str, values: list[Any], message: str) -> None:
    path = tmp_path / "log.parquet"
    good = {"user_id": ["u", "u"], "item_id": ["i", "j"], "label": [0, 1], "timestamp": [1_700_000_000] * 2}
    pl.DataFrame({**good, column: values}).write_parquet(path)
    with pytest.raises(LogFormatError) as caught:
        read_log(path)
    assert message in str(caught.value)


SEVEN = 1_611_903_600_000
"""2021-01-29T07:00:00Z, by `date -u -d 2021-01-29T07:00:00Z +%s`."""

ODD_FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    # name: the file, of u1 and i1 with label 1 at seven o'clock and u2 and i2 with label 0 a second later, and options
    "pandas, naive": (HEADER + "u1,i1,True,2021-01-29 07:00:00\nu2,i2,False,2021-01-29 07:00:01\n",
                      {"timestamp_format": "utc"}),
    "pandas, local": (HEADER + "u1,i1,1.0,2021-01-29 08:00:00.000\nu2,i2,0.0,2021-01-29 08:00:01.000\n",
                      {"timezone": "Europe/Berlin"}),
    "pandas, with a zone": (HEADER + "u1,i1,1,2021-01-29 07:00:00+00:00\nu2,i2,0,2021-01-29 07:00:01+00:00\n", {}),
    "microseconds": (HEADER + "u1,i1,1,1611903600000000\nu2,i2,0,1611903601000000\n", {}),
    "nanoseconds": (HEADER + "u1,i1,1,1611903600000000000\nu2,i2,0,1611903601000000000\n", {}),
    "floats": (HEADER + "u1,i1,1,1.6119036e+09\nu2,i2,0,1611903601.0\n", {}),
    "a spreadsheet": ("user_id;item_id;label;timestamp\r\n"
                      "u1;i1;TRUE;29-01-2021 07:00:00\r\nu2;i2;FALSE;29-01-2021 07:00:01\r\n",
                      {"timestamp_format": "%d-%m-%Y %H:%M:%S"}),
    "tabs": ("user_id\titem_id\tlabel\ttimestamp\nu1\ti1\t1\t1611903600\nu2\ti2\t0\t1611903601\n", {}),
    "bars": ("user_id|item_id|label|timestamp\nu1|i1|1|1611903600\nu2|i2|0|1611903601\n", {}),
    "blanks": ("user_id,  item_id, label ,timestamp\nu1 , i1, 1,2021-01-29 07:00:00 \nu2,i2,0 , 2021-01-29 07:00:01\n",
               {"timestamp_format": "utc"}),
    "offsets": (HEADER + "u1,i1,1,2021-01-29T08:00:00+0100\nu2,i2,0,2021-01-29 01:30:01-0530\n", {}),
    "ratings": (HEADER + "u1,i1,4.5,1611903600\nu2,i2,3.5,1611903601\n", {"positive_from": 4}),
    "quotes, a mark and CRLF": ('\ufeff"user_id";"item_id";"label";"timestamp"\r\n"u1";"i1";"1";"1611903600"\r\n'
                                '"u2";"i2";"0";"1611903601"\r\n', {}),
}  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ODD_FORMS)
def test_odd_forms(name: str, compressed: bool, tmp_path: Path) -> None:
    content, options = ODD_FORMS[name]
    path = tmp_path / "log"
    path.write_bytes(gzip.compress(content.encode()) if compressed else content.encode())
    log = read_log(path, LogOptions(**options))
    rows = zip(log.user_ids, log.item_ids, log.labels, log.timestamps_ms, strict=True)
    assert list(rows) == [("u1", "i1", 1, SEVEN), ("u2", "i2", 0, SEVEN + 1000)]


def test_empty_parts_of_categories(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "user_id,item_id,timestamp,categories\nu,i,1700000000,x||y\nu,j,1700000000,|\n")
    assert read_log(path).categories == {"i": ("x", "y")}


UUIDS = ["12345678" + "12345678" * 3, "1".zfill(32)]

# Of pyarrow 26, `store_schema=False`: a column of 16 bytes (UUID), whole numbers, booleans, timestamp[ns] without and
# with a zone, decimal128(20, 0), and dictionaries of text and of numbers.
ARROW = base64.b64decode(
    "UEFSMRUEFUAVQEwVBBUAEgAAEjRWeBI0VngSNFZ4EjRWeAAAAAAAAAAAAAAAAAAAAAEVABUSFRIsFQQVEBUGFQYcAAAAAgAAAAQBAQMCFQQV"
    "IBUgTBUEFQASAAAMAAAAAAAAAA0AAAAAAAAAFQAVEhUSLBUEFRAVBhUGHAAAAAIAAAAEAQEDAhUAFQ4VDiwVBBUAFQYVBhwAAAACAAAABAEB"
    "FQQVIBUgTBUEFQASAAAAYCyyyKFeFoDcrfzIoV4WFQAVEhUSLBUEFRAVBhUGHAAAAAIAAAAEAQEDAhUEFSAVIEwVBBUAEgAAAGAsssihXhaA"
    "3K38yKFeFhUAFRIVEiwVBBUQFQYVBhwAAAACAAAABAEBAwIVBBUkFSRMFQQVABIAAAAAAAAAAAAADAAAAAAAAAAADRUAFRIVEiwVBBUQFQYV"
    "BhwAAAACAAAABAEBAwIVBBUUFRRMFQQVABIAAAEAAABhAQAAAGIVABUSFRIsFQQVEBUGFQYcAAAAAgAAAAQBAQMCFQQVIBUgTBUEFQASAAAH"
    "AAAAAAAAAAgAAAAAAAAAFQAVEhUSLBUEFRAVBhUGHAAAAAIAAAAEAQEDAhUEGZw1ABgGc2NoZW1hFRAAFQ4VIBUCGAd1c2VyX2lkABUEJQIY"
    "B2l0ZW1faWQAFQAlAhgFbGFiZWwAFQQlAhgJdGltZXN0YW1wbIwSHDwAAAAAABUEJQIYBXpvbmVkbIwRHDwAAAAAABUOFRIVAhgHZGVjaW1h"
    "bCUKFQAVKCxcFQAVKAAAABUMJQIYBGtpbmQlAEwcAAAAFQQlAhgLbnVtYmVyX2tpbmQAFgQZHBmMJgAcFQ4ZNQAGEBkYB3VzZXJfaWQVABYE"
    "FpQBFpQBJmQmCCksFQQVABUCABUAFRAVAgA8KQYZJgAEAAAAJgAcFQQZNQAGEBkYB2l0ZW1faWQVABYEFnQWdCbYASacASksFQQVABUCABUA"
    "FRAVAgA8KQYZJgAEAAAAJgAcFQAZJQYAGRgFbGFiZWwVABYEFjQWNCaQAkkcFQAVABUCADwpBhkmAAQAAAAmABwVBBk1AAYQGRgJdGltZXN0"
    "YW1wFQAWBBZ0FnQmgAMmxAIpLBUEFQAVAgAVABUQFQIAPCkGGSYABAAAACYAHBUEGTUABhAZGAV6b25lZBUAFgQWdBZ0JvQDJrgDKSwVBBUA"
    "FQIAFQAVEBUCADwpBhkmAAQAAAAmABwVDhk1AAYQGRgHZGVjaW1hbBUAFgQWeBZ4JuwEJqwEKSwVBBUAFQIAFQAVEBUCADwpBhkmAAQAAAAm"
    "ABwVDBk1AAYQGRgEa2luZBUAFgQWaBZoJtQFJqQFKSwVBBUAFQIAFQAVEBUCADwWBBkGGSYABAAAACYAHBUEGTUABhAZGAtudW1iZXJfa2lu"
    "ZBUAFgQWdBZ0JsgGJowGKSwVBBUAFQIAFQAVEBUCADwpBhkmAAQAAAAW+AYWBCYIFvgGACggcGFycXVldC1jcHAtYXJyb3cgdmVyc2lvbiAy"
    "Ni4wLjEZjBwAABwAABwAABwAABwAABwAABwAABwAAADOAgAAUEFSMQ=="
)


@pytest.mark.parametrize(
    ("columns", "options", "users", "items"),
    [
        ({}, {"timestamp_format": "utc"}, UUIDS, ["12", "13"]),
        ({"timestamp": "zoned", "item_id": "decimal"}, {}, UUIDS, ["12", "13"]),
        ({"timestamp": "zoned", "user_id": "kind", "item_id": "number_kind"}, {}, ["a", "b"], ["7", "8"]),
        ({"item_id": "kind"}, {"timezone": "UTC"}, UUIDS, ["a", "b"]),
    ],
)  # fmt: skip
def test_columns_of_arrow(
    columns: dict[str, str], options: dict[str, Any], users: list[str], items: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "log.parquet"
    path.write_bytes(ARROW)
    log = read_log(path, LogOptions(columns=ColumnMap(**columns), **options))
    expected = [str(uuid.UUID(user)) if len(user) == 32 else user for user in users]
    assert list(log.user_ids) == expected
    assert list(log.item_ids) == items
    assert list(log.labels) == [1, 0]
    assert list(log.timestamps_ms) == [SEVEN, SEVEN + 1250]


@pytest.mark.parametrize(
    "timestamp",
    [
        pl.Series([SEVEN * 10**6] * 2),
        pl.Series([SEVEN * 10**3] * 2),
        pl.Series([SEVEN * 1e6] * 2),
        pl.Series([SEVEN / 1e3] * 2),
        pl.Series([datetime(2021, 1, 29, 7, tzinfo=UTC)] * 2, dtype=pl.Datetime("ns", "UTC")),
        pl.Series(["1611903600.000"] * 2).cast(pl.Decimal(20, 3)),
    ],
)
def test_times_in_parquet(timestamp: pl.Series, tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    ids = pl.Series(["12.00", "13.00"]).cast(pl.Decimal(10, 0))
    kinds = pl.Series(["a", "b"], dtype=pl.Categorical)
    pl.DataFrame({"user_id": ids, "item_id": kinds, "timestamp": timestamp}).write_parquet(path)
    log = read_log(path)
    assert list(log.timestamps_ms) == [SEVEN, SEVEN]
    assert (list(log.user_ids), list(log.item_ids)) == (["12", "13"], ["a", "b"])
