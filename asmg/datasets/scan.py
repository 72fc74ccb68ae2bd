"""Reads large delimited files and Parquet files block by block.

A block ends with a complete row. Polars parses it at once; only if something is unexpected, Python reads the same block
row by row, and either accepts it or reports the line and the column of the fault. So a file of any size needs the
memory of one block, and errors are exact.
"""

import csv
import gzip
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from asmg.datasets.columns import BLANKS, Reading
from asmg.datasets.damage import GZIP_ERRORS, damaged_gzip, damaged_parquet, not_utf8, quoted
from asmg.datasets.parquet_text import as_text
from asmg.datasets.table import find_columns
from asmg.log_format import LogFormatError

__all__ = ["BLOCK_BYTES", "PARQUET_ROW_BYTES", "Layout", "Malformed", "Scan"]

BLOCK_BYTES = 1 << 26
"""Bytes of a block: large enough for Polars to be fast, small enough for any host's memory."""

_PIECE = 1 << 20  # bytes read at once, so that the line of a damage in a gzip file is known

PARQUET_ROW_BYTES = 64
"""Assumed bytes of a Parquet row, to convert block sizes to rows."""

Malformed = Literal["error", "drop"]
"""Treatment of a bad row: raise an error, or drop and count it."""

_LONGEST_ROW = 1 << 24  # maximum bytes of a row, or four blocks if that is more


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The format of a delimited file."""

    delimiter: str = ","
    """One character, or several that never occur within a value."""
    quoted: bool = False
    """Whether values may be quoted (RFC 4180)."""
    names: tuple[str, ...] | None = None
    """Names of the columns of a file without a header line; None with a header."""
    header_optional: bool = False
    """Whether a first line with just these names is skipped as a header."""
    blanks: bool = False
    """Whether blanks and tabs around names and values are ignored."""


@dataclass
class Scan:
    """One pass over a file."""

    path: Path
    layout: Layout
    readings: Mapping[str, Reading]
    """Wanted column → how it is read."""
    malformed: Malformed = "error"
    """Treatment of bad rows."""
    block_bytes: int = BLOCK_BYTES
    """Bytes of a block; the result does not depend on it."""
    progress: Callable[[float], None] | None = None
    """Called with the fraction of the file that has been read."""
    rows: int = 0
    """Number of rows read so far, dropped ones included."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason → number of rows dropped so far."""

    def blocks(self) -> Iterator[pl.DataFrame]:
        """The wanted columns, block by block, in the order of `readings`.

        Raises:
            LogFormatError: the file is damaged or empty, lacks a column, or has a bad row and `malformed` is "error".
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

    def header(self) -> tuple[str, ...]:
        """The names of the file's columns; `readings` is ignored.

        Raises:
            LogFormatError: there is no header.
        """
        with self.path.open("rb") as raw:
            start = raw.read(4)
            raw.seek(0)
            if start == b"PAR1":
                try:
                    return tuple(pl.scan_parquet(self.path, glob=False).collect_schema())
                except (pl.exceptions.PolarsError, OSError) as error:
                    raise damaged_parquet(self.path, error) from error
            binary = gzip.GzipFile(fileobj=raw) if start[:2] == b"\x1f\x8b" else raw
            line = 1
            for block in self._cut_blocks(binary):
                names, _, _ = self._first_row(block, line)
                if names:
                    return names
                line += block.count(b"\n")
        raise LogFormatError(self.path, "a header line and rows", "blank lines" if start else "an empty file")

    def _text_blocks(self, compressed: bool) -> Iterator[pl.DataFrame]:
        size = self.path.stat().st_size
        names, line = self.layout.names, 1
        columns: dict[str, int] | None = None
        with self.path.open("rb") as raw:
            binary = gzip.GzipFile(fileobj=raw) if compressed else raw
            for block in self._cut_blocks(binary):
                if columns is None:
                    first, rest, lines = self._first_row(block, line)
                    if first:  # otherwise all lines were blank
                        if names is None or (self.layout.header_optional and first == names):
                            names, block, line = first, rest, line + lines
                        columns = find_columns(self.path, names, list(self.readings))
                if block and names is not None and columns is not None:
                    yield self._parse(block, line, names, columns)
                line += block.count(b"\n")
                if self.progress:
                    self.progress(raw.tell() / size)
        if self.progress:
            self.progress(1.0)

    def _cut_blocks(self, binary: io.BufferedIOBase) -> Iterator[bytes]:
        """Cut the file into blocks that end with a row, without a byte order mark."""
        line, rest = 1, self._read_bytes(binary, 3, 1).removeprefix(b"\xef\xbb\xbf")
        while chunk := self._read_bytes(binary, self.block_bytes, line):
            data = rest + chunk
            line += chunk.count(b"\n")
            end = self._rows_end(data)
            if not end and len(data) > max(4 * self.block_bytes, _LONGEST_ROW):
                end = len(data)  # too long for a quoted value: let the csv reader report the fault
            rest = data[end:]
            if end:
                yield data[:end]
        if rest:
            yield rest

    def _read_bytes(self, binary: io.BufferedIOBase, count: int, line: int) -> bytes:
        """The next `count` bytes, or what is left; they start in `line`."""
        data = bytearray()
        try:
            while len(data) < count and (part := binary.read1(min(count - len(data), _PIECE))):
                data += part
        except GZIP_ERRORS as error:
            raise damaged_gzip(self.path, error, line + data.count(b"\n")) from error
        return bytes(data)

    def _rows_end(self, data: bytes) -> int:
        """End of the last complete row of text that starts with a row."""
        if not self.layout.quoted or b'"' not in data:
            return data.rfind(b"\n") + 1
        delimiter = re.escape(self.layout.delimiter.encode())
        value = rb'(?:"(?:[^"]++|"")*+"[^%b\n]*+|[^"%b\n][^%b\n]*+|)' % (delimiter, delimiter, delimiter)
        rows = re.match(rb"(?:%b(?:%b%b)*+\n)*+" % (value, delimiter, value), data)
        return rows.end() if rows else 0

    def _first_row(self, block: bytes, line: int) -> tuple[tuple[str, ...], bytes, int]:
        """The first non-blank row, the text after it, and the number of lines up to its end."""
        reader, end = self._reader(self._decode(block, line)), 0
        try:
            first: list[str] = next((row for row in reader if row), [])
        except csv.Error as error:
            raise LogFormatError(self.path, "a header line", str(error), line=line) from error
        for _ in range(reader.line_num):
            end = block.find(b"\n", end) + 1 or len(block)
        return tuple(map(self._stripped, first)), block[end:], reader.line_num

    def _stripped(self, value: str) -> str:
        return value.strip(BLANKS) if self.layout.blanks else value

    def _decode(self, block: bytes, line: int) -> str:
        try:
            return block.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(self.path, error, line + block.count(b"\n", 0, error.start)) from error

    def _reader(self, text: str) -> Any:
        delimiter = self.layout.delimiter
        if len(delimiter) > 1:
            text, delimiter = text.replace(delimiter, "\x1f"), "\x1f"
        return csv.reader(
            io.StringIO(text, newline="\n"),  # lines end as `bytes.count` counts them
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
        """A whole block parsed by Polars; None if Python has to judge it."""
        if block.count(b"\r") != block.count(b"\r\n"):
            return None  # Polars takes a lone one as part of a value
        if self.layout.quoted and block.count(b'"') % 2:
            return None  # Polars accepts a quote that never closes
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
        values = {name: pl.col(f"{at}") for name, at in columns.items()}
        if self.layout.blanks and (b" " in block or b"\t" in block):
            values = {name: value.str.strip_chars(BLANKS) for name, value in values.items()}
        frame = raw.select(
            self.readings[name].parse(value).cast(self.readings[name].kind).alias(name)
            for name, value in values.items()
        )
        return None if any(frame.null_count().row(0)) else frame

    def _parse_rows(self, text: str, line: int, width: int, columns: Mapping[str, int]) -> Iterator[list[Any]]:
        """The good rows of a block, one by one; bad ones raise an error or are counted."""
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
                values = self._convert([*map(self._stripped, row)] if self.layout.blanks else row, line, width, columns)
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
            reading, value = self.readings[name], row[at]
            try:
                values.append(reading.convert(value))
            except ValueError:
                if self.malformed == "error":
                    received, hint = quoted(value), reading.hint(value)
                    raise LogFormatError(
                        self.path, reading.expected, received, column=name, line=line, unit=unit, hint=hint
                    ) from None
                self._drop(f"rows whose {name} is not {reading.expected}")
                return None
        return values

    def _drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def _frame(self, rows: Iterator[list[Any]]) -> pl.DataFrame:
        schema = {name: reading.kind for name, reading in self.readings.items()}
        return pl.DataFrame(list(rows), schema=schema, orient="row")

    def _parquet_blocks(self) -> Iterator[pl.DataFrame]:
        try:
            lazy = pl.scan_parquet(self.path, glob=False)
            names = list(lazy.collect_schema())
            total = int(lazy.select(pl.len()).collect().item())
        except (pl.exceptions.PolarsError, OSError) as error:
            raise damaged_parquet(self.path, error) from error
        columns = {name: n for n, name in enumerate(find_columns(self.path, names, list(self.readings)))}
        rows_at_once = max(1, self.block_bytes // PARQUET_ROW_BYTES)
        for start in range(0, total, rows_at_once):
            try:
                raw = lazy.select(list(columns)).slice(start, rows_at_once).collect()
            except (pl.exceptions.PolarsError, OSError) as error:
                raise damaged_parquet(self.path, error) from error
            for name, found in raw.schema.items():
                if str(found).startswith(self.readings[name].refused):
                    hint = "text or whole numbers are read as ids"
                    raise LogFormatError(self.path, self.readings[name].expected, str(found), column=name, hint=hint)
            texts = pl.DataFrame({name: as_text(self.path, raw[name]) for name in columns})
            frame = texts.select(
                self.readings[name].parse(pl.col(name)).cast(self.readings[name].kind).alias(name) for name in columns
            )
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
