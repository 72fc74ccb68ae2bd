"""How the values of a field are read."""

import re

import polars as pl

from asmg.datasets.columns import MISSING_MARKS, Reading, split_values
from asmg.datasets.table import LIST_SEPARATOR
from asmg.features import MAX_NUMBER, MAX_VALUE_LENGTH, MISSING, Field, check

__all__ = ["field_value", "number_like"]

_DECIMAL = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?"


def field_value(field: Field, separator: str = LIST_SEPARATOR) -> Reading:
    """A value of a field, or a missing one: empty text, or a mark such as nan, None or null.

    A number is read as a float, NaN if missing; any other value as its text, "" if missing.

    Args:
        field: the field.
        separator: the character between the values of a multi field.
    """
    if field.kind == "numeric":
        return _field_number(field)

    def parse(column: pl.Expr) -> pl.Expr:
        bare = pl.when(column.is_null() | column.is_in(MISSING_MARKS)).then(pl.lit(MISSING)).otherwise(column)
        good = (bare.str.len_chars() <= MAX_VALUE_LENGTH) & ~bare.str.contains("\0", literal=True)
        if field.kind == "multi":
            good &= bare.str.count_matches(separator, literal=True) < field.most
        return pl.when(good).then(bare)

    def convert(value: str) -> str:
        bare = MISSING if value in MISSING_MARKS else value
        check(field, split_values(bare, separator) if field.kind == "multi" else bare)
        return bare

    one = f"text of at most {MAX_VALUE_LENGTH} characters without NUL"
    several = f"at most {field.most} values, separated by {separator!r}, each {one}"
    refused = ("Float",) if field.kind == "categorical" else ()
    return Reading(pl.String, parse, convert, several if field.kind == "multi" else one, refused)


def number_like(values: pl.Series) -> tuple[bool, bool]:
    """Whether all non-missing texts are numbers, and whether any of them has a decimal point."""
    there = values.filter((values != MISSING) & ~values.is_in(MISSING_MARKS))
    numbers = there.str.contains(f"^{_DECIMAL}$")
    return bool(numbers.all()), bool(there.str.contains(".", literal=True).any())


def _field_number(field: Field) -> Reading:
    def parse(column: pl.Expr) -> pl.Expr:
        missing = column.is_null() | (column == MISSING) | column.is_in(MISSING_MARKS)
        plain = pl.when(column.str.contains(f"^{_DECIMAL}$")).then(column)
        number = plain.cast(pl.Float64, strict=False)
        good = pl.when(number.abs() <= MAX_NUMBER).then(number)
        return pl.when(missing).then(pl.lit(float("nan"))).otherwise(good)

    def convert(value: str) -> float:
        if not value or value in MISSING_MARKS:
            return float("nan")
        if not re.fullmatch(_DECIMAL, value):
            raise ValueError
        check(field, float(value))
        return float(value)

    return Reading(pl.Float64, parse, convert, f"a number from {-MAX_NUMBER:g} to {MAX_NUMBER:g}, or nothing")
