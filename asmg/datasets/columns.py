"""How the values of a column are read: ids, labels, categories, ratings, numbers. For times see `times.py`, for fields
`field_values.py`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from asmg.datasets.log import IdArray
from asmg.datasets.table import LIST_SEPARATOR, Column

__all__ = [
    "BLANKS",
    "MAX_ID_LENGTH",
    "MISSING_MARKS",
    "Reading",
    "category_list",
    "click",
    "identifier",
    "labels",
    "rating",
    "read_ids",
    "split_values",
    "text",
    "whole_number",
]

MAX_ID_LENGTH = 256
"""Maximum characters of an id or a category."""

BLANKS = " \t"
"""Characters that are ignored around a value."""


def _no_hint(value: str) -> str:
    return ""


@dataclass(frozen=True)
class Reading:
    """How the text of a column is converted: a whole block by Polars, or a single value by Python.

    `parse` and `convert` agree on every value that `parse` accepts. `parse` may return null for a good value, which
    `convert` then reads.
    """

    kind: Any
    """Polars type of the values."""
    parse: Callable[[pl.Expr], pl.Expr]
    """Text → values; null if `convert` has to decide."""
    convert: Callable[[str], Any]
    """Text → value; ValueError for a bad one."""
    expected: str
    """Description of a good value, for errors."""
    refused: tuple[str, ...] = ()
    """Prefixes of the names of Parquet types that are refused."""
    hint: Callable[[str], str] = _no_hint
    """Advice for a bad value, in a few words; may be empty."""


MISSING_MARKS = ("nan", "NaN", "None", "null", "NULL")
"""What writers of tables put for a missing value."""

# 12.0 and 1.2e+11 are the whole numbers 12 and 120000000000 after conversion to a float.
_FLOAT_ID = r"^[+-]?[0-9]+(\.0+|(\.[0-9]+)?[eE]\+[0-9]+)$"


def identifier() -> Reading:
    """An id of 1 to 256 characters.

    Refused are marks of a missing id (nan, None, null …) and whole numbers that were converted to floats (12.0,
    1.2e+11), because 12 and 12.0 would count as two users.
    """

    def parse(column: pl.Expr) -> pl.Expr:
        good = column.str.len_chars().is_between(1, MAX_ID_LENGTH) & ~column.str.contains("\0", literal=True)
        good &= ~column.is_in(MISSING_MARKS) & ~column.str.contains(_FLOAT_ID)
        return pl.when(good).then(column)

    def convert(value: str) -> str:
        if not 0 < len(value) <= MAX_ID_LENGTH or "\0" in value or hint(value):
            raise ValueError
        return value

    def hint(value: str) -> str:
        if not value or value in MISSING_MARKS:
            return "the id is missing; --malformed drop leaves such rows out and counts them"
        if re.fullmatch(_FLOAT_ID[1:-1], value):
            return "a float was made of the id: write whole numbers or text"
        return ""

    expected = f"an id of 1 to {MAX_ID_LENGTH} characters without NUL"
    return Reading(pl.String, parse, convert, expected, ("Float", "Date"), hint)


def read_ids(column: Column) -> IdArray:
    """The ids [n] of a column of a small file."""
    reading = identifier()
    ids = np.empty(len(column.values), np.object_)
    ids[:] = column.convert(reading.convert, reading.expected)
    return ids


def text() -> Reading:
    """Any text, also empty."""
    return Reading(pl.String, lambda column: column.fill_null(""), str, "text")


def category_list() -> Reading:
    """Categories of 1 to 256 characters, separated by `|`; read as text without empty parts."""

    def parse(column: pl.Expr) -> pl.Expr:
        column = column.fill_null("").str.replace_all(rf"[{BLANKS}]*\|[|{BLANKS}]*", LIST_SEPARATOR)
        column = column.str.strip_chars(LIST_SEPARATOR + BLANKS)
        good = (column.str.len_chars() <= MAX_ID_LENGTH) & ~column.str.contains("\0", literal=True)
        return pl.when(good).then(column)

    def convert(value: str) -> str:
        parts = split_values(value)
        if any(len(part) > MAX_ID_LENGTH or "\0" in part for part in parts):
            raise ValueError
        return LIST_SEPARATOR.join(parts)

    expected = f"categories of 1 to {MAX_ID_LENGTH} characters, separated by {LIST_SEPARATOR!r}"
    return Reading(pl.String, parse, convert, expected)


def split_values(value: str, separator: str = LIST_SEPARATOR) -> list[str]:
    """The non-empty parts of a text without surrounding blanks, with repetitions."""
    return [part for part in (part.strip(BLANKS) for part in value.split(separator)) if part]


def whole_number(low: int, high: int) -> Reading:
    """A whole number from `low` to `high`."""

    def parse(column: pl.Expr) -> pl.Expr:
        # More digits than a single value may have: read singly, where they are refused.
        number = pl.when(column.str.contains(r"^[+-]?[0-9]{1,18}$")).then(column).cast(pl.Int64, strict=False)
        return pl.when(number.is_between(low, high)).then(number)

    def convert(value: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", value, re.ASCII) or not low <= int(value) <= high:
            raise ValueError
        return int(value)

    return Reading(pl.Int64, parse, convert, f"a whole number from {low} to {high}")


def rating(liked: float, low: float | None = None, high: float | None = None) -> Reading:
    """A rating, read as a label: 1 from `liked` on, else 0.

    Args:
        liked: the lowest rating of a positive.
        low, high: bounds of valid ratings; None for no bounds.
    """
    least, most = -1e9 if low is None else low, 1e9 if high is None else high

    def parse(column: pl.Expr) -> pl.Expr:
        plain = column.str.contains(r"^-?[0-9]{1,9}(\.[0-9]{1,9})?$")
        number = pl.when(plain).then(column).cast(pl.Float64, strict=False)
        return pl.when(number.is_between(least, most)).then(number >= liked)

    def convert(value: str) -> int:
        if not re.fullmatch(r"-?\d{1,9}(\.\d{1,9})?", value, re.ASCII) or not least <= float(value) <= most:
            raise ValueError
        return int(float(value) >= liked)

    bounds = "" if low is None or high is None else f" from {low:g} to {high:g}"
    return Reading(pl.UInt8, parse, convert, f"a rating{bounds}" if bounds else "a rating (a number such as 4.5)")


_LABELS = {
    text: value
    for value, texts in enumerate((("0", "false", "False", "FALSE"), ("1", "true", "True", "TRUE")))
    for text in texts
}


def labels() -> Reading:
    """A label: 0 or 1, also as 1.0 or True."""

    def parse(column: pl.Expr) -> pl.Expr:
        bare = column.str.replace(r"^([01])\.0+$", "${1}")
        return bare.replace_strict(_LABELS, default=None, return_dtype=pl.UInt8)

    def convert(value: str) -> int:
        bare = value[0] if re.fullmatch(r"[01]\.0+", value) else value
        if bare not in _LABELS:
            raise ValueError
        return _LABELS[bare]

    def hint(value: str) -> str:
        number = re.fullmatch(r"-?\d{1,9}(\.\d{1,9})?", value, re.ASCII)
        return "--positive-from 4 makes labels of ratings, 1 from 4 on" if number else ""

    return Reading(pl.UInt8, parse, convert, "0 or 1", hint=hint)


def click() -> Reading:
    """A label of a public log: `labels` without hints at options of `asmg import`."""
    return replace(labels(), hint=_no_hint)
