"""The values of fields: what a client may send, and the form in which a model reads them."""

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from asmg.features.field import Field

__all__ = [
    "MAX_NUMBER",
    "MAX_VALUE_LENGTH",
    "MISSING",
    "NUMBER",
    "Scalar",
    "Value",
    "ValueFault",
    "bucket_values",
    "check",
    "encode",
    "is_plain",
    "name_of_value",
    "number",
    "numbers",
]

Scalar = str | int | bool
"""One categorical value."""

Value = Scalar | float | Sequence[Scalar] | None
"""A value as a client sends it: text, a whole number or true/false for a categorical field; a list of these in any
order for a multi field; a number for a numeric field; None for a missing value."""

MAX_VALUE_LENGTH = 256
"""Maximum characters of a text value, the same as of an id."""

MAX_NUMBER = 1e30
"""Maximum absolute value of a number: far enough below the float32 limit (3e38) that sums stay finite."""

MISSING = ""
"""The encoded value of a missing field, also of a numeric one."""

NUMBER = "#"
"""In place of a value: the single row of a field whose weights are its numbers."""

MIN_WHOLE, MAX_WHOLE = -(2**63), 2**63 - 1
"""Range of whole numbers as categorical values (int64)."""

_CLEAN = re.compile("[^\0\ud800-\udfff]*")


def name_of_value(field: str, value: str) -> str:
    """The name of a value among those of all fields, such as `device=phone`. No field name contains `=`."""
    return f"{field}={value}"


class ValueFault(ValueError):
    """A value is not allowed for its field."""

    def __init__(self, name: str, expected: str, received: str) -> None:
        super().__init__(f"{name}: expected {expected}; received {received}")
        self.name = name
        self.expected = expected
        self.received = received


def encode(field: "Field", value: Any) -> tuple[str, ...]:
    """The encoded values of a field that enters by table; `("",)` if it is missing.

    3 and "3" encode to the same value, and so do true and "true". The values of a multi field are sorted and distinct.
    A bucket is encoded as its number, from "0".

    Raises:
        ValueFault: the value is not allowed for the field.
    """
    if field.kind == "numeric":
        found = _finite(field, value)
        return (MISSING,) if found is None else (str(bisect_right(field.buckets, found)),)
    if field.kind == "categorical":
        return (_text(field, value),)
    return tuple(sorted({_text(field, part) for part in _list(field, value)} - {MISSING})) or (MISSING,)


def number(field: "Field", value: Any) -> float:
    """The number of a field that enters as a number, not yet standardised; NaN if it is missing.

    Raises:
        ValueFault: the value is not allowed for the field.
    """
    found = _finite(field, value)
    if found is None:
        return math.nan
    return math.copysign(math.log1p(abs(found)), found) if field.enter == "log" else found


def numbers(field: "Field", values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`number` of each value, float64 [n]; missing ones are NaN in argument and result."""
    return np.copysign(np.log1p(np.abs(values)), values) if field.enter == "log" else values


def bucket_values(field: "Field", values: NDArray[np.float64]) -> NDArray[np.str_]:
    """The encoded bucket of each number (float64 [n]), as from `encode`; "" for NaN."""
    names = np.array([*(str(bucket) for bucket in range(len(field.buckets) + 1)), MISSING])
    buckets = np.searchsorted(np.array(field.buckets), values, side="right")
    return names[np.where(np.isnan(values), len(field.buckets) + 1, buckets)]


def check(field: "Field", value: Any) -> None:
    """Raise ValueFault if the value is not allowed for the field."""
    if field.by_table:
        encode(field, value)
    else:
        number(field, value)


def is_plain(field: "Field", value: Any) -> bool:
    """Whether the value is of the usual form, which is quick to test. `check` accepts all of these."""
    if field.kind == "categorical":
        return type(value) is str and len(value) <= MAX_VALUE_LENGTH and value.isprintable()
    if field.kind == "numeric":
        return type(value) is float and -MAX_NUMBER <= value <= MAX_NUMBER
    if type(value) is not list or len(value) > field.most:
        return False
    return all(type(part) is str and len(part) <= MAX_VALUE_LENGTH and part.isprintable() for part in value)


def _text(field: "Field", value: Any) -> str:
    """The text of a categorical value; "" if it is missing."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if len(value) > MAX_VALUE_LENGTH:
            raise ValueFault(field.name, f"at most {MAX_VALUE_LENGTH} characters", f"{len(value):,}")
        if not _CLEAN.fullmatch(value):
            raise ValueFault(field.name, "text of Unicode characters, without NUL", "another")
        return value
    if isinstance(value, int):
        if not MIN_WHOLE <= value <= MAX_WHOLE:
            raise ValueFault(field.name, f"a whole number from {MIN_WHOLE} to {MAX_WHOLE}, or text", "another")
        return str(value)
    raise ValueFault(field.name, "text, a whole number or true/false", _named(value))


def _list(field: "Field", value: Any) -> list[Any]:
    """The values of a multi field; empty if it is missing."""
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise ValueFault(field.name, "a list of text, whole numbers or true/false", _named(value))
    if len(value) > field.most:
        raise ValueFault(field.name, f"at most {field.most} values", f"{len(value):,}")
    if None in value:
        raise ValueFault(field.name, "a list of text, whole numbers or true/false", "one with null")
    return list(value)


def _finite(field: "Field", value: Any) -> float | None:
    """The number of a numeric field; None if it is missing."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueFault(field.name, "a number", _named(value))
    if not abs(value) <= MAX_NUMBER:  # so that NaN is refused too
        shown = str(value) if isinstance(value, float) else "a larger one"
        raise ValueFault(field.name, f"a number from {-MAX_NUMBER:g} to {MAX_NUMBER:g}", shown)
    return float(value)


def _named(value: Any) -> str:
    """The kind of a value in an error message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return f"the number {value}" if abs(value) < MAX_NUMBER else "a number"
    return "a list" if isinstance(value, list | tuple) else "an object"
