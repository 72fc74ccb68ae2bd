"""Parquet files, written page by page, so that the memory holds one page and not the file."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from service.storage.postgres.repositories import ExportPage

__all__ = ["ParquetWriter"]

ROWS_OF_A_GROUP = 100_000
"""Rows of a row group, of which a reader holds one at a time."""

TYPES: Mapping[str, pl.DataType | type[pl.DataType]] = {
    "int8": pl.Int8,
    "int32": pl.Int32,
    "float32": pl.Float32,
    "boolean": pl.Boolean,
    "timestamp": pl.Datetime("us", "UTC"),
    "text": pl.String,
}
LIST = "list:"


class ParquetWriter:
    """Writes one file. Each page is a small file first; at the end polars streams them into one.

    Args:
        folder: for the small files; it is made.
        columns: name → kind (`repositories.exports.columns_of`).
    """

    def __init__(self, folder: Path, columns: Mapping[str, str]) -> None:
        folder.mkdir()
        self._folder = folder
        self._schema = {name: _type(kind) for name, kind in columns.items()}
        self.rows = 0
        """Rows written."""
        self._parts = 0
        self.write([[] for _ in columns])  # a file without rows has columns too

    def write(self, page: ExportPage) -> None:
        """Append rows, given column by column."""
        series = [
            pl.Series(name, values, kind, strict=True)
            for (name, kind), values in zip(self._schema.items(), page, strict=True)
        ]
        frame = pl.DataFrame(series)
        frame.write_parquet(self._part(self._parts))
        self.rows += len(frame)
        self._parts += 1

    def finish(self, path: Path) -> None:
        """Write the file, in a moment of disk and processor for each page, and remove the small ones."""
        parts = [self._part(n) for n in range(self._parts)]
        pl.scan_parquet(parts, schema=self._schema).sink_parquet(path, row_group_size=ROWS_OF_A_GROUP)
        shutil.rmtree(self._folder)

    def _part(self, number: int) -> Path:
        return self._folder / f"{number}.parquet"


def _type(kind: str) -> pl.DataType | type[pl.DataType]:
    return pl.List(TYPES[kind.removeprefix(LIST)]) if kind.startswith(LIST) else TYPES[kind]
