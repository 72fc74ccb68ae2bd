"""Columns of Parquet files as the text that they would be in a CSV file."""

from pathlib import Path

import polars as pl

from asmg.datasets.table import LIST_SEPARATOR
from asmg.log_format import LogFormatError

_PLAIN_KINDS = (pl.String, pl.Boolean, pl.Date, pl.Categorical, pl.Enum)

_NO_TEXT = r"[\x00-\x1f\x7f]"

_UUID_BYTES = 16


def as_text(path: Path, series: pl.Series) -> pl.Series:
    """A Parquet column as the text that it would be in a CSV file.

    Raises:
        LogFormatError: the column's type is not supported.
    """
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
    """Binary values as text: UTF-8 text as it is, otherwise values of 16 bytes as UUIDs."""
    try:
        text = series.cast(pl.String)
        if not text.str.contains(_NO_TEXT).any():
            return text
    except pl.exceptions.PolarsError:
        pass  # some values are not UTF-8
    if not (series.drop_nulls().bin.size() == _UUID_BYTES).all():
        expected = f"text in UTF-8, or UUIDs of {_UUID_BYTES} bytes"
        raise LogFormatError(path, expected, "other bytes", column=series.name)
    digits = series.bin.encode("hex")
    parts = pl.select(pl.concat_str([digits.str.slice(*part) for part in _UUID_PARTS], separator="-"))
    return parts.to_series().alias(series.name)


_UUID_PARTS = ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))
