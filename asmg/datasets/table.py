"""Small delimited files, such as lists of films: some columns as text, with the line of each value."""

import csv
import gzip
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from asmg.datasets.damage import GZIP_ERRORS, damaged_gzip, not_utf8, quoted
from asmg.log_format import LogFormatError

LIST_SEPARATOR = "|"
"""Separates the values of a list within a column."""


@dataclass(frozen=True)
class Column:
    """The values of one column as text; a missing value is the empty text."""

    table: "Table"
    name: str
    values: list[str]

    def error(self, row: int, expected: str) -> LogFormatError:
        """The error for the value of a row (from 0)."""
        received = quoted(self.values[row])
        return LogFormatError(self.table.path, expected, received, column=self.name, line=self.table.lines[row])

    def convert(self, convert: Callable[[str], Any], expected: str) -> list[Any]:
        """The converted values.

        Raises:
            LogFormatError: for the first value for which `convert` raises ValueError or KeyError.
        """
        try:
            return [convert(value) for value in self.values]
        except (KeyError, ValueError):
            pass
        for row, value in enumerate(self.values):
            try:
                convert(value)
            except (KeyError, ValueError):
                raise self.error(row, expected) from None
        raise AssertionError("convert depends only on its argument")


class Table:
    """Some columns of a file as text, and the line of each row."""

    def __init__(self, path: Path, columns: dict[str, list[str]], lines: Sequence[int]) -> None:
        """`lines[i]` is the line of row i in the file."""
        self.path = path
        self.lines = lines
        self._columns = columns

    def __contains__(self, name: object) -> bool:
        """Whether the file has the column."""
        return name in self._columns

    def column(self, name: str) -> Column:
        """One of the columns."""
        return Column(self, name, self._columns[name])


def read_table(path: Path, columns: Sequence[str], *, delimiter: str = ",", quoted: bool = True) -> Table:
    """Read columns of a delimited file, plain or compressed by gzip, as text.

    Raises:
        LogFormatError: the file is damaged, has no row, or lacks a column.
    """
    with path.open("rb") as file:
        start = file.read(2)
    if not start:
        raise LogFormatError(path, "a header line", "an empty file")
    compressed = start == b"\x1f\x8b"
    try:
        table = _read_csv(path, columns, compressed, delimiter, quoted)
    except GZIP_ERRORS as error:
        raise damaged_gzip(path, error) from error
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, _undecodable_line(path, compressed)) from error
    if not len(table.lines):
        raise LogFormatError(path, "at least one row", "none")
    return table


def _read_csv(path: Path, columns: Sequence[str], compressed: bool, delimiter: str, quoted: bool) -> Table:
    with _open(path, compressed) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
        # Python's csv reader knows the line of each row; values may contain line breaks, and lines may be blank.
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
    return None  # the file ends within a character


def _csv_rows(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The non-blank rows, each with the line on which it starts."""
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


def find_columns(path: Path, names: Sequence[str], wanted: Sequence[str]) -> dict[str, int]:
    """Name → position of the wanted columns.

    Raises:
        LogFormatError: a column is missing, or there are several of its name.
    """
    found = {}
    for name in wanted:
        if names.count(name) > 1:
            raise LogFormatError(path, f"one column {name!r}", f"{names.count(name)} of them", line=1)
        if name not in names:
            raise LogFormatError(path, f"a column {name!r}", ", ".join(names)[:200] or "no column", line=1)
        found[name] = names.index(name)
    return found
