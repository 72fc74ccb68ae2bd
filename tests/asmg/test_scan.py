"""Large files, read block by block: any block size gives the rows of Python's csv, and every error names its place."""

import csv
import gzip
import io
import zlib
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asmg.datasets.columns import Reading, identifier, labels, text
from asmg.datasets.scan import Layout, Malformed, Scan
from asmg.log_format import LogFormatError
from tests.asmg.scans import BLANKS, CSV, MAY_2014, ever, ms, values


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
