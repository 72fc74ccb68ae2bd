"""Reads interaction logs from CSV and Parquet files, and says where a bad one is bad: file, line, column."""

import re
from datetime import datetime
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from asmg.datasets.log import IdArray, IndexArray, InteractionLog
from asmg.datasets.table import LIST_SEPARATOR, Column, read_table
from asmg.log_format import ColumnMap, TimestampFormat

MAX_ID_LENGTH = 256

_END_OF_TIME_MS = 253_402_300_800_000  # the year 10000
# From 1973 (1e8 s, 1e11 ms) to 5138 (1e11 s, 1e14 ms) a number makes sense in one of the units only.
_SECONDS, _MILLISECONDS = (10**8, 10**11), (10**11, 10**14)

_NUMBER = re.compile(r"\d{1,15}(\.\d+)?", re.ASCII)
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d([Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?([Zz]|[+-]\d\d:\d\d)?)?", re.ASCII)
LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


def read_log(
    path: str | Path,
    *,
    columns: ColumnMap | None = None,
    positives_only: bool | None = None,
    timestamp_format: TimestampFormat | None = None,
    delimiter: str | None = None,
) -> InteractionLog:
    """Reads a log of interactions, one a row, in any order.

    CSV (RFC 4180, UTF-8, a header line; also compressed by gzip) and Parquet are told apart by their content.

    - Labels are 0 or 1. `positives_only`: None: where there is no label column; True: a label column is not read, each
      row is a positive; False: there has to be one.
    - `timestamp_format`: None recognises seconds and milliseconds since 1970 (numbers; seconds may have a fraction) and
      RFC 3339, and refuses what could be two of them. `s`, `ms` and `rfc3339` say which it is; `utc` is RFC 3339 where
      the zone, or the time of day, may be missing.
    - Ids have 1 to 256 characters. Where rows disagree on an item's categories, the last that names any is believed.
    - `delimiter`: of CSV; None: a tab where the name ends in .tsv or .tsv.gz, else a comma.

    Raises LogFormatError for content that is not as said, and OSError for a file that cannot be opened.
    """
    path = Path(path)
    columns = columns or ColumnMap()
    if timestamp_format is not None and timestamp_format not in get_args(TimestampFormat):
        raise ValueError(f"timestamp_format: expected one of s, ms, rfc3339, utc; received {timestamp_format!r}")
    if delimiter is None:
        delimiter = "\t" if path.name.endswith((".tsv", ".tsv.gz")) else ","

    required = [columns.user_id, columns.item_id, columns.timestamp]
    required += [name for name in (columns.label, columns.categories, columns.period) if name is not None]
    label, categories = columns.label or "label", columns.categories or "categories"
    if positives_only is False and label not in required:
        required.append(label)
    if positives_only and label in required:
        required.remove(label)
    table = read_table(path, required, optional=[label, categories], delimiter=delimiter)

    has_labels = label in table and not positives_only
    item_ids = read_ids(table.column(columns.item_id))
    return InteractionLog(
        user_ids=read_ids(table.column(columns.user_id)),
        item_ids=item_ids,
        labels=read_labels(table.column(label)) if has_labels else np.ones(len(item_ids), np.uint8),
        timestamps_ms=read_timestamps(table.column(columns.timestamp), timestamp_format),
        categories=read_categories(table.column(categories), item_ids) if categories in table else {},
        period=None if columns.period is None else read_whole_numbers(table.column(columns.period)),
        positives_only=not has_labels,
    )


def read_ids(column: Column) -> IdArray:
    """[n] ids of 1 to 256 characters; equal ids are one object, because a log repeats them many times."""
    seen: dict[str, str] = {}

    def check(id_: str) -> str:
        # NUL is the one character that Postgres cannot store in a text.
        if not 0 < len(id_) <= MAX_ID_LENGTH or "\0" in id_:
            raise ValueError
        return seen.setdefault(id_, id_)

    if column.kind.startswith(("Float", "Date")):  # 12.0 is most likely the id 12, of which a writer made a float
        raise column.error(0, f"ids as text or whole numbers, not {column.kind}")
    expected = f"an id of 1 to {MAX_ID_LENGTH} characters without NUL"
    ids = np.empty(len(column.values), np.object_)
    ids[:] = column.convert(check, expected)
    return ids


def read_labels(column: Column) -> npt.NDArray[np.uint8]:
    """[n] labels 0 or 1."""
    return np.array(column.convert(LABELS.__getitem__, "0 or 1"), np.uint8)


def read_whole_numbers(column: Column) -> IndexArray:
    """[n] whole numbers."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
            raise ValueError
        return int(text)

    return np.array(column.convert(convert, "a whole number"), np.int64)


def read_categories(column: Column, item_ids: IdArray) -> dict[str, tuple[str, ...]]:
    """Item id → its categories, each once, as the last row that names any says."""

    def split(text: str) -> tuple[str, ...]:
        parts = tuple(dict.fromkeys(text.split(LIST_SEPARATOR)))
        if not all(0 < len(part) <= MAX_ID_LENGTH and "\0" not in part for part in parts):
            raise ValueError
        return parts

    splits: dict[str, tuple[str, ...]] = {"": ()}

    def split_once(text: str) -> tuple[str, ...]:
        if text not in splits:
            splits[text] = split(text)
        return splits[text]

    expected = f"categories of 1 to {MAX_ID_LENGTH} characters, separated by {LIST_SEPARATOR!r}"
    rows = column.convert(split_once, expected)
    return {item: categories for item, categories in zip(item_ids, rows, strict=True) if categories}


def read_timestamps(column: Column, timestamp_format: TimestampFormat | None) -> npt.NDArray[np.int64]:
    """[n] milliseconds since 1970, of values in the given format or, for None, in the one that the first value has."""
    if timestamp_format is None:
        timestamp_format = _recognise(column)
        first = f", like the first value {column.values[0]!r}"
    else:
        first = ""
    if timestamp_format in ("rfc3339", "utc"):
        zone = " with a time zone (2026-01-31T23:59:59Z)" if timestamp_format == "rfc3339" else ""
        convert = parse_with_zone if timestamp_format == "rfc3339" else parse_utc
        return np.array(column.convert(convert, f"a date and time{zone} from 1970 to 9999"), np.int64)
    unit, scale = ("seconds", 1000) if timestamp_format == "s" else ("milliseconds", 1)
    low, high = 0.0, _END_OF_TIME_MS / scale
    if first:  # a recognised unit holds for all rows, or it was no unit
        low, high = _SECONDS if timestamp_format == "s" else _MILLISECONDS

    def convert_number(text: str) -> float:
        number = _parse_number(text)
        if not low <= number < high or (scale == 1 and not number.is_integer()):
            raise ValueError
        return number

    numbers = column.convert(convert_number, f"{unit} since 1970{first}")
    return np.rint(np.array(numbers, np.float64) * scale).astype(np.int64)


def _recognise(column: Column) -> TimestampFormat:
    try:
        return recognise_timestamp(column.values[0])
    except ValueError as error:
        raise column.error(0, str(error)) from None


def recognise_timestamp(first: str) -> TimestampFormat:
    """The format of a log's first timestamp; a ValueError says what was expected where it is none or unclear."""
    if _DATE_TIME.fullmatch(first):
        return "rfc3339"
    try:
        number = _parse_number(first)
    except ValueError:
        raise ValueError("seconds or milliseconds since 1970, or a date and time as RFC 3339 has it") from None
    if _SECONDS[0] <= number < _SECONDS[1]:
        return "s"
    if _MILLISECONDS[0] <= number < _MILLISECONDS[1]:
        return "ms"
    raise ValueError(
        "a number that can only be seconds (from 1e8) or only milliseconds (from 1e11), or a timestamp format given"
    )


def _parse_number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError
    return float(text)


def parse_with_zone(text: str) -> int:
    """Milliseconds since 1970 of a date and time with a zone; ValueError for anything else."""
    moment = _parse_date_time(text)
    if moment.tzinfo is None:
        raise ValueError
    return _milliseconds(moment)


def parse_utc(text: str) -> int:
    """The same, with UTC where the zone, or the time of day, is missing."""
    moment = _parse_date_time(text)
    return _milliseconds(moment if moment.tzinfo is not None else moment.replace(tzinfo=_EPOCH.tzinfo))


def _parse_date_time(text: str) -> datetime:
    if not _DATE_TIME.fullmatch(text):
        raise ValueError
    return datetime.fromisoformat(text.upper())


_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00Z")


def _milliseconds(moment: datetime) -> int:
    # timestamp() is a float: exact to the microsecond until the year 2255 only.
    elapsed = moment - _EPOCH
    milliseconds = (elapsed.days * 86_400 + elapsed.seconds) * 1000 + elapsed.microseconds // 1000
    if not 0 <= milliseconds < _END_OF_TIME_MS:
        raise ValueError
    return milliseconds
