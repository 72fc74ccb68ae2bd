"""Small delimited files, such as lists of films: the wanted columns as text, with the line each value came from."""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import polars as pl

from asmg.log_format import LogFormatError

LIST_SEPARATOR = "|"


@dataclass(frozen=True)
class Column:
    """The values of one column as text; no value is the empty text."""

    table: "Table"
    name: str
    values: list[str]

    def error(self, row: int, expected: str) -> LogFormatError:
        """What is wrong with the value of a row (counted from 0)."""
        value = self.values[row]
        received = repr(value if len(value) <= 60 else value[:60] + "…")
        return LogFormatError(self.table.path, expected, received, column=self.name, line=self.table.lines[row])

    def convert(self, convert: Callable[[str], Any], expected: str) -> list[Any]:
        """The values converted; the first for which `convert` raises ValueError or KeyError is a LogFormatError."""
        try:
            return [convert(value) for value in self.values]
        except (KeyError, ValueError):
            pass
        for row, value in enumerate(self.values):
            try:
                convert(value)
            except (KeyError, ValueError):
                raise self.error(row, expected) from None
        raise AssertionError("convert is a function of its argument only")


class Table:
    """The wanted columns of a file as text, and the line each row came from."""

    def __init__(self, path: Path, columns: dict[str, list[str]], lines: Sequence[int]) -> None:
        """`lines[i]` is the line of the file that row i came from."""
        self.path = path
        self.lines = lines
        self._columns = columns

    def __contains__(self, name: object) -> bool:
        """Whether the file has the column."""
        return name in self._columns

    def column(self, name: str) -> Column:
        """One of the columns asked for."""
        return Column(self, name, self._columns[name])


def read_table(path: Path, columns: Sequence[str], *, delimiter: str = ",", quoted: bool = True) -> Table:
    """Reads columns of a delimited file, perhaps compressed by gzip, as text.

    Raises LogFormatError where it is none, holds no row, or lacks a column.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if not start:
        raise LogFormatError(path, "a header line", "an empty file")
    compressed = start == b"\x1f\x8b"
    try:
        table = _read_csv(path, columns, compressed, delimiter, quoted)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LogFormatError(path, "a complete gzip file", f"one that is cut short or damaged ({error})") from error
    except UnicodeDecodeError as error:
        received = f"byte {error.object[error.start]:#04x}"
        raise LogFormatError(path, "text in UTF-8", received, line=_undecodable_line(path, compressed)) from error
    if not len(table.lines):
        raise LogFormatError(path, "at least one row", "none")
    return table


def _read_csv(path: Path, columns: Sequence[str], compressed: bool, delimiter: str, quoted: bool) -> Table:
    with _open(path, compressed) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
        # Python's own reader knows the line of each row: a value may hold line breaks, and lines may be blank.
        reader = csv.reader(
            text, delimiter=delimiter, strict=True, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        )
        rows = _csv_rows(path, reader)
        header = next(rows, None)
        if header is None:
            raise LogFormatError(path, "a header line", "blank lines")
        names = header[1]
        indices = find_columns(path, names, columns)
        values: list[list[str]] = [[] for _ in indices]
        wanted = list(zip(values, indices.values(), strict=True))
        lines = []
        for line, row in rows:
            if len(row) != len(names):
                raise LogFormatError(path, f"{len(names)} values like the header", str(len(row)), line=line)
            lines.append(line)
            for column, index in wanted:
                column.append(row[index])
    return Table(path, dict(zip(indices, values, strict=True)), lines)


def _open(path: Path, compressed: bool) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if compressed else path.open("rb")


def _undecodable_line(path: Path, compressed: bool) -> int | None:
    with _open(path, compressed) as binary:
        for number, line in enumerate(binary, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return None  # the text ends within a character


def _csv_rows(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the line it starts on."""
    line = 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise LogFormatError(path, "comma-separated values (RFC 4180)", str(error), line=line) from error
        if row:
            yield line, row
        line = reader.line_num + 1


_PLAIN_KINDS = (pl.String, pl.Boolean, pl.Date, pl.Categorical, pl.Enum)
_NO_TEXT = r"[\x00-\x1f\x7f]"
_UUID_BYTES = 16


def as_text(path: Path, series: pl.Series) -> pl.Series:
    """A Parquet column as the text it would be in a CSV file."""
    kind = series.dtype
    if isinstance(kind, pl.List):
        series = series.cast(pl.List(pl.String)).list.join(LIST_SEPARATOR)
    elif isinstance(kind, pl.Datetime):
        if kind.time_zone is not None:
            series = series.dt.convert_time_zone("UTC")
        series = series.dt.strftime("%Y-%m-%dT%H:%M:%S%.3f" + ("" if kind.time_zone is None else "Z"))
    elif kind == pl.Binary:
        series = _binary_as_text(path, series)
    elif not (kind.is_integer() or kind.is_float() or kind.is_decimal() or kind in _PLAIN_KINDS):
        expected = "text, numbers, dates, UUIDs or lists of text"
        raise LogFormatError(path, expected, str(kind), column=series.name)
    return series.cast(pl.String).fill_null("")


def _binary_as_text(path: Path, series: pl.Series) -> pl.Series:
    """Bytes that are text in UTF-8 as that, and 16 bytes each that are not as UUIDs, which Parquet stores so."""
    try:
        text = series.cast(pl.String)
        if not text.str.contains(_NO_TEXT).any():
            return text
    except pl.exceptions.PolarsError:
        pass  # some are no UTF-8
    if not (series.drop_nulls().bin.size() == _UUID_BYTES).all():
        expected = f"text in UTF-8, or UUIDs of {_UUID_BYTES} bytes"
        raise LogFormatError(path, expected, "other bytes", column=series.name)
    digits = series.bin.encode("hex")
    parts = pl.select(pl.concat_str([digits.str.slice(*part) for part in _UUID_PARTS], separator="-"))
    return parts.to_series().alias(series.name)


_UUID_PARTS = ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))


def find_columns(path: Path, names: Sequence[str], wanted: Sequence[str]) -> dict[str, int]:
    """Name → position of the wanted columns."""
    found = {}
    for name in wanted:
        if names.count(name) > 1:
            raise LogFormatError(path, f"one column {name!r}", f"{names.count(name)} of them", line=1)
        if name not in names:
            raise LogFormatError(path, f"a column {name!r}", ", ".join(names)[:200] or "no column", line=1)
        found[name] = names.index(name)
    return found
