"""How the values of a column are read: ids, labels, categories, ratings, numbers, fields. Times are in `times.py`."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from asmg.datasets.log import IdArray
from asmg.datasets.table import LIST_SEPARATOR, Column
from asmg.features import MAX_NUMBER, MAX_VALUE_LENGTH, MISSING, Field, check

__all__ = [
    "BLANKS",
    "MAX_ID_LENGTH",
    "Reading",
    "category_list",
    "click",
    "field_value",
    "identifier",
    "labels",
    "number_like",
    "rating",
    "read_ids",
    "split_values",
    "text",
    "whole_number",
]

MAX_ID_LENGTH = 256
"""Characters of an id or of a category."""

BLANKS = " \t"
"""Characters that mean nothing around a value."""


def _no_hint(value: str) -> str:
    return ""


@dataclass(frozen=True)
class Reading:
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
    hint: Callable[[str], str] = _no_hint
    """What is wrong with a bad value and which option may help, in a few words, or the empty text."""


_MISSING = ("nan", "NaN", "None", "null", "NULL")
# 12.0 and 1.2e+11 are the whole numbers 12 and 120000000000 after a float was made of them.
_FLOAT_ID = r"^[+-]?[0-9]+(\.0+|(\.[0-9]+)?[eE]\+[0-9]+)$"


def identifier() -> Reading:
    """An id of 1 to 256 characters, compared with others character by character.

    Refused is what writers of tables put for a missing id (nan, None, null …), and a whole number of which a writer
    made a float (12.0, 1.2e+11): 12 and 12.0 would be two users.
    """

    def parse(column: pl.Expr) -> pl.Expr:
        good = column.str.len_chars().is_between(1, MAX_ID_LENGTH) & ~column.str.contains("\0", literal=True)
        good &= ~column.is_in(_MISSING) & ~column.str.contains(_FLOAT_ID)
        return pl.when(good).then(column)

    def convert(value: str) -> str:
        if not 0 < len(value) <= MAX_ID_LENGTH or "\0" in value or hint(value):
            raise ValueError
        return value

    def hint(value: str) -> str:
        if not value or value in _MISSING:
            return "the id is missing; --malformed drop leaves such rows out and counts them"
        if re.fullmatch(_FLOAT_ID[1:-1], value):
            return "a float was made of the id: write whole numbers or text"
        return ""

    expected = f"an id of 1 to {MAX_ID_LENGTH} characters without NUL"
    return Reading(pl.String, parse, convert, expected, ("Float", "Date"), hint)


def read_ids(column: Column) -> IdArray:
    """[n] the ids of a column of a small file."""
    reading = identifier()
    ids = np.empty(len(column.values), np.object_)
    ids[:] = column.convert(reading.convert, reading.expected)
    return ids


def text() -> Reading:
    """Any text, an empty one too."""
    return Reading(pl.String, lambda column: column.fill_null(""), str, "text")


def category_list() -> Reading:
    """Categories of 1 to 256 characters, separated by `|`, read as that text without its empty parts."""

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
    """The parts of a text that are not empty, as often as they are there, without blanks around them."""
    return [part for part in (part.strip(BLANKS) for part in value.split(separator)) if part]


def whole_number(low: int, high: int) -> Reading:
    """A whole number from `low` to `high`."""

    def parse(column: pl.Expr) -> pl.Expr:
        number = column.cast(pl.Int64, strict=False)
        return pl.when(number.is_between(low, high)).then(number)

    def convert(value: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", value, re.ASCII) or not low <= int(value) <= high:
            raise ValueError
        return int(value)

    return Reading(pl.Int64, parse, convert, f"a whole number from {low} to {high}")


def rating(liked: float, low: float | None = None, high: float | None = None) -> Reading:
    """The label of a rating: 1 from `liked` on.

    Args:
        liked: the least rating that is a positive.
        low, high: the least and the greatest rating there are; None: any.
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
    """0 or 1, also as 1.0 or True."""

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
    """0 or 1, of a log that is not one's own: `labels` without a hint at options that it does not have."""
    return replace(labels(), hint=_no_hint)


_DECIMAL = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?"


def field_value(field: Field, separator: str = LIST_SEPARATOR) -> Reading:
    """A value of a field, which may be missing: nothing, or what writers of tables put for that (nan, None, null …).

    A number is read as a float, NaN where it is missing; all else as its text, "" where it is missing.

    Args:
        field: says what the column may hold.
        separator: one character, between the values of a multi field.
    """
    if field.kind == "numeric":
        return _field_number(field)

    def parse(column: pl.Expr) -> pl.Expr:
        bare = pl.when(column.is_null() | column.is_in(_MISSING)).then(pl.lit(MISSING)).otherwise(column)
        good = (bare.str.len_chars() <= MAX_VALUE_LENGTH) & ~bare.str.contains("\0", literal=True)
        if field.kind == "multi":
            good &= bare.str.count_matches(separator, literal=True) < field.most
        return pl.when(good).then(bare)

    def convert(value: str) -> str:
        bare = MISSING if value in _MISSING else value
        check(field, split_values(bare, separator) if field.kind == "multi" else bare)
        return bare

    one = f"text of at most {MAX_VALUE_LENGTH} characters without NUL"
    several = f"at most {field.most} values, separated by {separator!r}, each {one}"
    refused = ("Float",) if field.kind == "categorical" else ()
    return Reading(pl.String, parse, convert, several if field.kind == "multi" else one, refused)


def number_like(values: pl.Series) -> tuple[bool, bool]:
    """Whether all of the texts that are there are numbers, and whether one of them has a fraction."""
    there = values.filter((values != MISSING) & ~values.is_in(_MISSING))
    numbers = there.str.contains(f"^{_DECIMAL}$")
    return bool(numbers.all()), bool(there.str.contains(".", literal=True).any())


def _field_number(field: Field) -> Reading:
    def parse(column: pl.Expr) -> pl.Expr:
        missing = column.is_null() | (column == MISSING) | column.is_in(_MISSING)
        plain = pl.when(column.str.contains(f"^{_DECIMAL}$")).then(column)
        number = plain.cast(pl.Float64, strict=False)
        good = pl.when(number.abs() <= MAX_NUMBER).then(number)
        return pl.when(missing).then(pl.lit(float("nan"))).otherwise(good)

    def convert(value: str) -> float:
        if not value or value in _MISSING:
            return float("nan")
        if not re.fullmatch(_DECIMAL, value):
            raise ValueError
        check(field, float(value))
        return float(value)

    return Reading(pl.Float64, parse, convert, f"a number from {-MAX_NUMBER:g} to {MAX_NUMBER:g}, or nothing")
