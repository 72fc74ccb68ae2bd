"""A log of one's own, CSV or Parquet, of any size: the streaming counterpart of `asmg.datasets.read_log`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

from asmg.datasets.gathering import Events, Gathering
from asmg.datasets.reading import recognise_timestamp
from asmg.datasets.scan import (
    Field,
    Layout,
    Scan,
    category_list,
    identifier,
    labels,
    moment,
    numbered_moment,
    text,
    unreadable,
)
from asmg.datasets.table import LIST_SEPARATOR
from asmg.log_format import ColumnMap, LogFormatError, TimestampFormat

__all__ = ["LogOptions", "read_generic"]


_TRIED = 1_000
"""Rows of which, where bad ones are left out, the first may tell the format of the timestamps."""


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What the columns of the file are called, and what they mean: see `asmg.datasets.read_log`."""

    columns: ColumnMap = field(default_factory=ColumnMap)
    positives_only: bool | None = None
    timestamp_format: TimestampFormat | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if self.timestamp_format is not None and self.timestamp_format not in get_args(TimestampFormat):
            raise ValueError(
                f"timestamp_format: expected one of s, ms, rfc3339, utc; received {self.timestamp_format!r}"
            )


def read_generic(gathering: Gathering, options: LogOptions) -> Events:
    """The log; where rows disagree on an item's categories, the last that names any is believed."""
    path, columns = gathering.raw, options.columns
    if not path.is_file():
        raise LogFormatError(path, "a CSV or Parquet file", "a folder" if path.is_dir() else "nothing there")
    gathering.read(path)
    delimiter = options.delimiter or ("\t" if path.name.endswith((".tsv", ".tsv.gz")) else ",")
    layout = Layout(delimiter=delimiter, quoted=True)
    first = Scan(path, layout, {}, block_bytes=1 << 16).peek(1 if gathering.malformed == "error" else _TRIED)
    label = columns.label or "label"
    has_labels = not options.positives_only and (label in first or columns.label is not None)
    if options.positives_only is False:
        has_labels = True
    categories = columns.categories or "categories"
    has_categories = categories in first or columns.categories is not None
    fields = {columns.user_id: identifier(), columns.item_id: identifier(), columns.timestamp: text()}
    fields |= {label: labels()} if has_labels else {}
    fields |= {categories: category_list()} if has_categories else {}
    if len(fields) != 3 + has_labels + has_categories:
        raise ValueError(f"columns: expected a column of its own for each; received {columns}")
    if columns.timestamp in first:  # gather says so where it is not
        fields[columns.timestamp] = _moment(first[columns.timestamp], options.timestamp_format)
    return gathering.gather(
        path,
        layout,
        fields,
        (columns.user_id, columns.item_id, columns.timestamp),
        label=label if has_labels else None,
        category=categories if has_categories else None,
        believed="last",
        split=lambda value: tuple(dict.fromkeys(value.split(LIST_SEPARATOR))),
    )


def _moment(first: Sequence[str], given: TimestampFormat | None) -> Field:
    """How timestamps are read, as was said or as the first one that looks like any does."""
    expected = ""
    for value in first if given is None else ():
        try:
            given = recognise_timestamp(value)
            break
        except ValueError as error:
            expected = expected or str(error)
    if given is None:
        return unreadable(expected)  # so that the place is named, or the rows are counted
    if given in ("s", "ms"):
        return numbered_moment(given)
    return moment(zone=given == "rfc3339")
