"""The wanted columns of a CSV or Parquet file as text, with the place each value came from."""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    kind: str = "text"
    """The type that the column has in a Parquet file, `text` in CSV."""

    def error(self, row: int, expected: str) -> LogFormatError:
        """What is wrong with the value of a row (counted from 0)."""
        value = self.values[row]
        received = repr(value if len(value) <= 60 else value[:60] + "…")
        table = self.table
        return LogFormatError(
            table.path, expected, received, column=self.name, line=table.lines[row], unit=table.line_unit
        )

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

    def __init__(
        self,
        path: Path,
        columns: dict[str, list[str]],
        lines: Sequence[int],
        line_unit: str = "line",
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        """`lines[i]` is the line, or with another `line_unit` the row, of the file that row i came from."""
        self.path = path
        self.lines = lines
        self.line_unit = line_unit
        self._columns = columns
        self._kinds = kinds or {}

    def __contains__(self, name: object) -> bool:
        """Whether the file has the column."""
        return name in self._columns

    def column(self, name: str) -> Column:
        """One of the columns asked for."""
        return Column(self, name, self._columns[name], self._kinds.get(name, "text"))


def read_table(
    path: Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    *,
    delimiter: str = ",",
    quoted: bool = True,
) -> Table:
    """Reads columns of a CSV or Parquet file as text.

    Raises LogFormatError where it is neither, holds no row, or lacks a required column.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise LogFormatError(path, "a header line or a Parquet file", "an empty file")
    if start == b"PAR1":
        table = _read_parquet(path, required, optional)
    else:
        compressed = start[:2] == b"\x1f\x8b"
        try:
            table = _read_csv(path, required, optional, compressed, delimiter, quoted)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise LogFormatError(path, "a complete gzip file", f"one that is cut short or damaged ({error})") from error
        except UnicodeDecodeError as error:
            received = f"byte {error.object[error.start]:#04x}"
            raise LogFormatError(path, "text in UTF-8", received, line=_undecodable_line(path, compressed)) from error
    if not len(table.lines):
        raise LogFormatError(path, "at least one interaction", "none")
    return table


def _read_csv(
    path: Path, required: Sequence[str], optional: Sequence[str], compressed: bool, delimiter: str, quoted: bool
) -> Table:
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
        indices = find_columns(path, names, required, optional)
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


def _read_parquet(path: Path, required: Sequence[str], optional: Sequence[str]) -> Table:
    try:
        names = list(pl.read_parquet_schema(path))
        indices = find_columns(path, names, required, optional)
        frame = pl.read_parquet(path, columns=list(indices), glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LogFormatError(path, "a complete Parquet file", f"one that is cut short or damaged ({error})") from error
    columns = {name: as_text(path, frame[name]).to_list() for name in indices}
    kinds = {name: str(frame[name].dtype) for name in indices}
    return Table(path, columns, range(1, frame.height + 1), "row", kinds)


_PLAIN_KINDS = (pl.String, pl.Boolean, pl.Date, pl.Categorical, pl.Enum)


def as_text(path: Path, series: pl.Series) -> pl.Series:
    """A Parquet column as the text it would be in a CSV file."""
    kind = series.dtype
    if isinstance(kind, pl.List):
        series = series.cast(pl.List(pl.String)).list.join(LIST_SEPARATOR)
    elif isinstance(kind, pl.Datetime):
        if kind.time_zone is not None:
            series = series.dt.convert_time_zone("UTC")
        series = series.dt.strftime("%Y-%m-%dT%H:%M:%S%.3f" + ("" if kind.time_zone is None else "Z"))
    elif not (kind.is_integer() or kind.is_float() or kind in _PLAIN_KINDS):
        raise LogFormatError(path, "text, numbers, dates or lists of text", str(kind), column=series.name)
    return series.cast(pl.String).fill_null("")


def find_columns(path: Path, names: Sequence[str], required: Sequence[str], optional: Sequence[str]) -> dict[str, int]:
    """Name → position of the required columns and of those optional ones that are there."""
    found = {}
    for name in dict.fromkeys([*required, *optional]):
        if names.count(name) > 1:
            raise LogFormatError(path, f"one column {name!r}", f"{names.count(name)} of them", line=1)
        if name in names:
            found[name] = names.index(name)
        elif name in required:
            raise LogFormatError(path, f"a column {name!r}", ", ".join(names)[:200] or "no column", line=1)
    return found
