"""Reads large delimited files block by block: parsed by Polars, explained by Python.

A file is read in blocks that end with a line. Polars parses a block at once; only where something in it is not as
expected, Python's own reader goes over the same block, which either finds it good after all or names the line and the
column that is wrong. So a file of any size costs the memory of one block, and an error is as exact as in a small one.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import polars as pl

from asmg.datasets.reading import LABELS, MAX_ID_LENGTH, parse_utc, parse_with_zone
from asmg.datasets.table import LIST_SEPARATOR, as_text, find_columns
from asmg.log_format import EARLIEST_MS, LATEST_MS, LogFormatError

__all__ = [
    "BLOCK_BYTES",
    "Field",
    "Layout",
    "Malformed",
    "Scan",
    "category_list",
    "day_of_year_2014",
    "identifier",
    "labels",
    "moment",
    "numbered_moment",
    "rating",
    "text",
    "unreadable",
    "whole_number",
]

BLOCK_BYTES = 1 << 26
"""Bytes of a block."""

_PIECE = 1 << 20  # bytes read at once, so that of a damaged file the line is known

PARQUET_ROWS = 1 << 20
"""Rows of a block of a Parquet file."""

Malformed = Literal["error", "drop"]
"""What becomes of a row that is not as expected: the end of it all, or it is left out and counted."""

DAY_MS = 86_400_000
_LONGEST_ROW = 1 << 24  # bytes; and at least four blocks


@dataclass(frozen=True)
class Field:
    """How the text of a column is read, twice: all of a block at once, and a single value.

    What `parse` reads, `convert` reads as the same value; `parse` may leave more to `convert` than is wrong.
    """

    kind: Any
    """The Polars type of the values."""
    parse: Callable[[pl.Expr], pl.Expr]
    """Text → values, null where it is for `convert` to say."""
    convert: Callable[[str], Any]
    """Text → value; ValueError where it is none."""
    expected: str
    """What a good value is."""
    refused: tuple[str, ...] = ()
    """How the names of Parquet types begin that such a column cannot have."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the lines of a file are made."""

    delimiter: str = ","
    """One character, or several that never occur within a value."""
    quoted: bool = False
    """Whether values may be quoted (RFC 4180)."""
    names: tuple[str, ...] | None = None
    """The columns of a file without a header line."""
    header_optional: bool = False
    """Whether a first line that holds just these names is a header."""


@dataclass
class Scan:
    """One pass over a file."""

    path: Path
    layout: Layout
    fields: Mapping[str, Field]
    """Column → how it is read."""
    malformed: Malformed = "error"
    block_bytes: int = BLOCK_BYTES
    progress: Callable[[float], None] | None = None
    """Told the fraction of the file's bytes that has been read."""
    rows: int = 0
    """Rows read so far, those that were left out among them."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason → rows left out so far."""

    def blocks(self) -> Iterator[pl.DataFrame]:
        """The wanted columns, block by block, in the order of `fields`.

        Raises:
            LogFormatError: the file is not as it should be.
        """
        with self.path.open("rb") as file:
            start = file.read(4)
        if not start:
            raise LogFormatError(self.path, "a file with rows", "an empty file")
        found = self._parquet_blocks() if start == b"PAR1" else self._text_blocks(start[:2] == b"\x1f\x8b")
        for frame in found:
            if frame.height:
                yield frame
        if not self.rows:
            raise LogFormatError(self.path, "at least one row", "none")

    def peek(self, rows: int = 1) -> dict[str, list[str]]:
        """The columns of the file, with what the first rows have there; `fields` does not matter.

        Raises:
            LogFormatError: there is neither a header nor a row.
        """
        with self.path.open("rb") as file:
            start = file.read(4)
        if start == b"PAR1":
            try:
                frame = pl.scan_parquet(self.path, glob=False).head(rows).collect()
            except (pl.exceptions.PolarsError, OSError) as error:
                raise self._damaged_parquet(error) from error
            if not frame.height:
                raise LogFormatError(self.path, "at least one row", "none")
            return {column.name: self._peek_at(column) for column in frame}
        with self.path.open("rb") as raw:
            binary = gzip.GzipFile(fileobj=raw) if start[:2] == b"\x1f\x8b" else raw
            block = b"".join(islice(self._cut(binary), 2))  # the last line may be a block of its own
        if not block:
            raise LogFormatError(self.path, "a file with rows", "an empty file")
        reader = self._reader(self._decode(block, 1))
        try:
            found = (row for row in reader if row)
            names: list[str] = next(found, [])
            first = list(islice(found, 1))
            if first and len(first[0]) != len(names):  # it will be an error, or left out
                first = list(islice((row for row in found if len(row) == len(names)), 1)) or [[""] * len(names)]
            first += islice((row for row in found if len(row) == len(names)), rows - 1)
        except csv.Error as error:
            raise LogFormatError(self.path, "delimited values (RFC 4180)", str(error), line=reader.line_num) from error
        if not first:
            raise LogFormatError(self.path, "a header line and a row", "no row")
        return {name: [row[n] for row in first] for n, name in enumerate(names)}

    def _peek_at(self, column: pl.Series) -> list[str]:
        try:
            return [str(value) for value in as_text(self.path, column)]
        except LogFormatError:
            return [""]  # a type that no column of a log has

    def _text_blocks(self, compressed: bool) -> Iterator[pl.DataFrame]:
        size = self.path.stat().st_size
        names, line = self.layout.names, 1
        columns: dict[str, int] | None = None
        with self.path.open("rb") as raw:
            binary = gzip.GzipFile(fileobj=raw) if compressed else raw
            for block in self._cut(binary):
                if columns is None:
                    first, rest, lines = self._first_row(block, line)
                    if first:  # else there were blank lines only
                        if names is None or (self.layout.header_optional and first == names):
                            names, block, line = first, rest, line + lines
                        columns = find_columns(self.path, names, list(self.fields), ())
                if block and names is not None and columns is not None:
                    yield self._parse(block, line, names, columns)
                line += block.count(b"\n")
                if self.progress:
                    self.progress(raw.tell() / size)
        if self.progress:
            self.progress(1.0)

    def _cut(self, binary: io.BufferedIOBase) -> Iterator[bytes]:
        """Blocks that end with a row, without a byte order mark."""
        line, rest = 1, self._next(binary, 3, 1).removeprefix(b"\xef\xbb\xbf")
        while chunk := self._next(binary, self.block_bytes, line):
            data = rest + chunk
            line += chunk.count(b"\n")
            end = self._rows_end(data)
            if not end and len(data) > max(4 * self.block_bytes, _LONGEST_ROW):
                end = len(data)  # nobody quotes that much: let the reader say what is wrong
            rest = data[end:]
            if end:
                yield data[:end]
        if rest:
            yield rest

    def _next(self, binary: io.BufferedIOBase, count: int, line: int) -> bytes:
        """So many bytes, or what is left of them; they begin in this line."""
        data = bytearray()
        try:
            while len(data) < count and (part := binary.read1(min(count - len(data), _PIECE))):
                data += part
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            received = f"one that is cut short or damaged ({error})"
            line += data.count(b"\n")
            raise LogFormatError(self.path, "a complete gzip file", received, line=line) from error
        return bytes(data)

    def _rows_end(self, data: bytes) -> int:
        """Where the last complete row of text that begins with a row ends."""
        if not self.layout.quoted or b'"' not in data:
            return data.rfind(b"\n") + 1
        delimiter = re.escape(self.layout.delimiter.encode())
        value = rb'(?:"(?:[^"]++|"")*+"[^%b\n]*+|[^"%b\n][^%b\n]*+|)' % (delimiter, delimiter, delimiter)
        rows = re.match(rb"(?:%b(?:%b%b)*+\n)*+" % (value, delimiter, value), data)
        return rows.end() if rows else 0

    def _first_row(self, block: bytes, line: int) -> tuple[tuple[str, ...], bytes, int]:
        """The first row that is not blank, what is behind it, and how many lines it and the blank ones take."""
        reader, end = self._reader(self._decode(block, line)), 0
        try:
            first: list[str] = next((row for row in reader if row), [])
        except csv.Error as error:
            raise LogFormatError(self.path, "a header line", str(error), line=line) from error
        for _ in range(reader.line_num):
            end = block.find(b"\n", end) + 1 or len(block)
        return tuple(first), block[end:], reader.line_num

    def _decode(self, block: bytes, line: int) -> str:
        try:
            return block.decode("utf-8")
        except UnicodeDecodeError as error:
            line += block.count(b"\n", 0, error.start)
            raise LogFormatError(self.path, "text in UTF-8", f"byte {block[error.start]:#04x}", line=line) from error

    def _reader(self, text: str) -> Any:
        delimiter = self.layout.delimiter
        if len(delimiter) > 1:
            text, delimiter = text.replace(delimiter, "\x1f"), "\x1f"
        return csv.reader(
            io.StringIO(text, newline="\n"),  # a line ends where `bytes.count` says so
            delimiter=delimiter,
            strict=True,
            quoting=csv.QUOTE_MINIMAL if self.layout.quoted else csv.QUOTE_NONE,
        )

    def _parse(self, block: bytes, line: int, names: Sequence[str], columns: Mapping[str, int]) -> pl.DataFrame:
        frame = self._parse_at_once(block, names, columns)
        if frame is None:
            return self._frame(self._parse_rows(self._decode(block, line), line, len(names), columns))
        self.rows += frame.height
        return frame

    def _parse_at_once(self, block: bytes, names: Sequence[str], columns: Mapping[str, int]) -> pl.DataFrame | None:
        """All of a block, or None where anything about it is for Python to judge."""
        if block.count(b"\r") != block.count(b"\r\n"):
            return None  # for Polars a lone one is part of a value
        if self.layout.quoted and block.count(b'"') % 2:
            return None  # Polars does not mind a quote that never closes
        delimiter = self.layout.delimiter
        if len(delimiter) > 1:
            block, delimiter = block.replace(delimiter.encode(), b"\x1f"), "\x1f"
        by_number = {f"{n}": pl.String for n in range(len(names))}
        try:
            raw = pl.read_csv(
                block, has_header=False, schema=by_number, separator=delimiter,
                quote_char='"' if self.layout.quoted else None,
            )  # fmt: skip
        except pl.exceptions.PolarsError:
            return None
        if raw[:, -1].null_count() and (
            b'"' in block or block.count(delimiter.encode()) != raw.height * (len(names) - 1)
        ):
            return None  # an empty last value, or a row that is too short
        frame = raw.select(
            self.fields[name].parse(pl.col(f"{at}")).cast(self.fields[name].kind).alias(name)
            for name, at in columns.items()
        )
        return None if any(frame.null_count().row(0)) else frame

    def _parse_rows(self, text: str, line: int, width: int, columns: Mapping[str, int]) -> Iterator[list[Any]]:
        """The good rows of a block, one by one; the first bad one is an error, or all of them are counted."""
        reader, first = self._reader(text), line
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise LogFormatError(self.path, "delimited values (RFC 4180)", str(error), line=line) from error
            if row:
                self.rows += 1
                values = self._convert(row, line, width, columns)
                if values is not None:
                    yield values
            line = first + reader.line_num

    def _convert(
        self, row: Sequence[str], line: int, width: int, columns: Mapping[str, int], unit: str = "line"
    ) -> list[Any] | None:
        if len(row) != width:
            if self.malformed == "error":
                raise LogFormatError(self.path, f"{width} values", str(len(row)), line=line, unit=unit)
            self._drop("rows with another number of values")
            return None
        values = []
        for name, at in columns.items():
            try:
                values.append(self.fields[name].convert(row[at]))
            except ValueError:
                if self.malformed == "error":
                    value = row[at]
                    received = repr(value if len(value) <= 60 else value[:60] + "…")
                    raise LogFormatError(
                        self.path, self.fields[name].expected, received, column=name, line=line, unit=unit
                    ) from None
                self._drop(f"rows whose {name} is not {self.fields[name].expected}")
                return None
        return values

    def _drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def _frame(self, rows: Iterator[list[Any]]) -> pl.DataFrame:
        schema = {name: f.kind for name, f in self.fields.items()}
        return pl.DataFrame(list(rows), schema=schema, orient="row")

    def _parquet_blocks(self) -> Iterator[pl.DataFrame]:
        try:
            lazy = pl.scan_parquet(self.path, glob=False)
            names = list(lazy.collect_schema())
            total = int(lazy.select(pl.len()).collect().item())
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self._damaged_parquet(error) from error
        columns = {name: n for n, name in enumerate(find_columns(self.path, names, list(self.fields), ()))}
        for start in range(0, total, PARQUET_ROWS):
            try:
                raw = lazy.select(list(columns)).slice(start, PARQUET_ROWS).collect()
            except (pl.exceptions.PolarsError, OSError) as error:
                raise self._damaged_parquet(error) from error
            for name, found in raw.schema.items():
                if str(found).startswith(self.fields[name].refused):
                    raise LogFormatError(self.path, self.fields[name].expected, str(found), column=name)
            texts = pl.DataFrame({name: as_text(self.path, raw[name]) for name in columns})
            frame = texts.select(self.fields[name].parse(pl.col(name)).cast(self.fields[name].kind) for name in columns)
            if any(frame.null_count().row(0)):
                rows = (
                    self._convert(row, start + n, len(columns), columns, "row")
                    for n, row in enumerate(texts.iter_rows(), start=1)
                )
                frame = self._frame(values for values in rows if values is not None)
            self.rows += raw.height
            yield frame
            if self.progress:
                self.progress(min(1.0, (start + raw.height) / total))

    def _damaged_parquet(self, error: Exception) -> LogFormatError:
        return LogFormatError(self.path, "a complete Parquet file", f"one that is cut short or damaged ({error})")


# How single columns are read.


def identifier() -> Field:
    """An id of 1 to 256 characters."""

    def parse(column: pl.Expr) -> pl.Expr:
        good = column.str.len_chars().is_between(1, MAX_ID_LENGTH) & ~column.str.contains("\0", literal=True)
        return pl.when(good).then(column)

    def convert(value: str) -> str:
        if not 0 < len(value) <= MAX_ID_LENGTH or "\0" in value:
            raise ValueError
        return value

    # A column of 12.0 most likely holds the id 12, of which a writer made a float.
    return Field(pl.String, parse, convert, f"an id of 1 to {MAX_ID_LENGTH} characters without NUL", ("Float", "Date"))


def text() -> Field:
    """Any text, an empty one too."""
    return Field(pl.String, lambda column: column.fill_null(""), str, "text")


def unreadable(expected: str) -> Field:
    """A column in which nothing is as expected."""

    def convert(value: str) -> int:
        raise ValueError

    return Field(pl.Int64, lambda column: pl.when(column != column).then(0), convert, expected)


def category_list() -> Field:
    """Categories of 1 to 256 characters, separated by `|`, as text; the empty text names none."""

    def parse(column: pl.Expr) -> pl.Expr:
        column = column.fill_null("")
        separator = LIST_SEPARATOR
        bad = column.str.len_chars() > MAX_ID_LENGTH
        for part in ("\0", 2 * separator):
            bad |= column.str.contains(part, literal=True)
        return pl.when(~(bad | column.str.starts_with(separator) | column.str.ends_with(separator))).then(column)

    def convert(value: str) -> str:
        for part in value.split(LIST_SEPARATOR) if value else ():
            if not 0 < len(part) <= MAX_ID_LENGTH or "\0" in part:
                raise ValueError
        return value

    expected = f"categories of 1 to {MAX_ID_LENGTH} characters, separated by {LIST_SEPARATOR!r}"
    return Field(pl.String, parse, convert, expected)


def whole_number(low: int, high: int) -> Field:
    """A whole number from `low` to `high`."""

    def parse(column: pl.Expr) -> pl.Expr:
        number = column.cast(pl.Int64, strict=False)
        return pl.when(number.is_between(low, high)).then(number)

    def convert(value: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", value, re.ASCII) or not low <= int(value) <= high:
            raise ValueError
        return int(value)

    return Field(pl.Int64, parse, convert, f"a whole number from {low} to {high}")


def rating(liked: float, low: float, high: float) -> Field:
    """The label of a rating: 1 from `liked` on."""

    def parse(column: pl.Expr) -> pl.Expr:
        plain = column.str.contains(r"^\d{1,3}(\.\d{1,9})?$")
        number = pl.when(plain).then(column).cast(pl.Float64, strict=False)
        return pl.when(number.is_between(low, high)).then(number >= liked)

    def convert(value: str) -> int:
        if not re.fullmatch(r"\d{1,3}(\.\d{1,9})?", value, re.ASCII) or not low <= float(value) <= high:
            raise ValueError
        return int(float(value) >= liked)

    return Field(pl.UInt8, parse, convert, f"a rating from {low:g} to {high:g}")


def labels() -> Field:
    """0 or 1."""

    def convert(value: str) -> int:
        if value not in LABELS:
            raise ValueError
        return LABELS[value]

    return Field(
        pl.UInt8,
        lambda column: column.replace_strict(LABELS, default=None, return_dtype=pl.UInt8),
        convert,
        "0 or 1",
    )


def numbered_moment(unit: Literal["s", "ms"]) -> Field:
    """Seconds, perhaps with a fraction, or milliseconds since 1970, read as milliseconds."""
    scale, pattern = (1000, r"\d{1,15}(\.\d{1,9})?") if unit == "s" else (1, r"\d{1,15}(\.0{1,9})?")

    def parse(column: pl.Expr) -> pl.Expr:
        plain = pl.when(column.str.contains(f"^{pattern}$")).then(column)
        milliseconds = (plain.cast(pl.Float64, strict=False) * scale).round(mode="half_to_even").cast(pl.Int64)
        return pl.when(milliseconds.is_between(EARLIEST_MS, LATEST_MS, closed="left")).then(milliseconds)

    def convert(value: str) -> int:
        if not re.fullmatch(pattern, value, re.ASCII):
            raise ValueError
        milliseconds = round(float(value) * scale)
        if not EARLIEST_MS <= milliseconds < LATEST_MS:
            raise ValueError
        return milliseconds

    name = "seconds" if unit == "s" else "milliseconds"
    return Field(pl.Int64, parse, convert, f"{name} since 1970, of the years 1990 to 2099")


def moment(*, zone: bool = False) -> Field:
    """A date and time (RFC 3339), read as milliseconds since 1970.

    Args:
        zone: whether it must have a time zone; without one it is UTC, and the time of day may be missing too.
    """
    given = "Z" if zone else "Z?"

    def parse(column: pl.Expr) -> pl.Expr:
        plain = pl.when(column.str.contains(rf"^\d{{4}}-\d\d-\d\dT\d\d:\d\d:[0-5]\d(\.\d{{1,6}})?{given}$")).then(
            column
        )
        time = plain.str.strip_suffix("Z").str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="ms", strict=False)
        if not zone:
            day = pl.when(column.str.contains(r"^\d{4}-\d\d-\d\d$")).then(column)
            time = pl.coalesce(time, day.str.to_datetime("%Y-%m-%d", time_unit="ms", strict=False))
        milliseconds = time.dt.epoch("ms")
        return pl.when(milliseconds.is_between(EARLIEST_MS, LATEST_MS, closed="left")).then(milliseconds)

    def convert(value: str) -> int:
        milliseconds = (parse_with_zone if zone else parse_utc)(value)
        if not EARLIEST_MS <= milliseconds < LATEST_MS:
            raise ValueError
        return milliseconds

    needed = " with a time zone" if zone else ""
    return Field(pl.Int64, parse, convert, f"a date and time (RFC 3339){needed} of the years 1990 to 2099")


def day_of_year_2014() -> Field:
    """MMDD of 2014, with or without a leading zero, read as that day's midnight (UTC) in milliseconds since 1970."""

    def parse(column: pl.Expr) -> pl.Expr:
        plain = pl.when(column.str.contains(r"^\d{3,4}$")).then(column)
        return ("2014" + plain.str.zfill(4)).str.to_date("%Y%m%d", strict=False).cast(pl.Datetime("ms")).dt.epoch("ms")

    def convert(value: str) -> int:
        if not re.fullmatch(r"\d{3,4}", value, re.ASCII):
            raise ValueError
        return parse_utc(f"2014-{value.zfill(4)[:2]}-{value.zfill(4)[2:]}")

    return Field(pl.Int64, parse, convert, "a day of 2014 as MMDD")
