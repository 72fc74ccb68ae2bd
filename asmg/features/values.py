"""The values of fields: what a client may send, and what a model reads of it."""

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from asmg.log_format import EARLIEST_MS, LATEST_MS

if TYPE_CHECKING:
    from asmg.features.schema import Field, Schema

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
    "find_zone",
    "name_of_value",
    "number",
    "numbers",
    "time_values",
]

Scalar = str | int | bool
Value = Scalar | float | Sequence[Scalar] | None
"""What a client sends for a field: text, a whole number or true/false for a categorical one; a list of these, in any
order, for a multi one; a number for a numeric one; None, or nothing at all, where it is missing."""

MAX_VALUE_LENGTH = 256
"""Characters of a text value, as many as an id may have."""

MAX_NUMBER = 1e30
"""Largest absolute value of a number: far enough inside single precision (3e38) that sums of them are finite."""

MISSING = ""
"""The value of a field where it is missing, also of one that enters as a number."""

NUMBER = "#"
"""In the place of a value: the one row that all numbers of a field weigh."""

MIN_WHOLE, MAX_WHOLE = -(2**63), 2**63 - 1
"""Whole numbers that a categorical value can be."""

_CLEAN = re.compile("[^\0\ud800-\udfff]*")
_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMERALS = np.array([str(number) for number in range(24)])


def name_of_value(field: str, value: str) -> str:
    """What a value of a field is called among those of all fields: `device=phone`. No name of a field holds a `=`."""
    return f"{field}={value}"


class ValueFault(ValueError):
    """A value that its field cannot have."""

    def __init__(self, name: str, expected: str, received: str) -> None:
        super().__init__(f"{name}: expected {expected}; received {received}")
        self.name = name
        self.expected = expected
        self.received = received


def encode(field: "Field", value: Any) -> tuple[str, ...]:
    """The values under which a field enters that enters by table; `("",)` where it is missing.

    3 and "3" are the same value, true and "true" too. Those of a multi field are sorted, each once. A bucket is its
    number, from "0" on.

    Raises:
        ValueFault: the field cannot have this value.
    """
    if field.kind == "numeric":
        found = _finite(field, value)
        return (MISSING,) if found is None else (str(bisect_right(field.buckets, found)),)
    if field.kind == "categorical":
        return (_text(field, value),)
    return tuple(sorted({_text(field, part) for part in _list(field, value)} - {MISSING})) or (MISSING,)


def number(field: "Field", value: Any) -> float:
    """The number under which a field enters that enters as a number, not yet standardised; NaN where it is missing.

    Raises:
        ValueFault: the field cannot have this value.
    """
    found = _finite(field, value)
    if found is None:
        return math.nan
    return math.copysign(math.log1p(abs(found)), found) if field.enter == "log" else found


def numbers(field: "Field", values: NDArray[np.float64]) -> NDArray[np.float64]:
    """`number` of each value, float64[n]; those that are missing are NaN in both."""
    return np.copysign(np.log1p(np.abs(values)), values) if field.enter == "log" else values


def bucket_values(field: "Field", values: NDArray[np.float64]) -> NDArray[np.str_]:
    """The bucket of each number, float64[n], as `encode` names it; "" where it is NaN."""
    names = np.array([*(str(bucket) for bucket in range(len(field.buckets) + 1)), MISSING])
    buckets = np.searchsorted(np.array(field.buckets), values, side="right")
    return names[np.where(np.isnan(values), len(field.buckets) + 1, buckets)]


def check(field: "Field", value: Any) -> None:
    """Raise ValueFault where the field cannot have this value."""
    if field.by_table:
        encode(field, value)
    else:
        number(field, value)


def _text(field: "Field", value: Any) -> str:
    """The text of a categorical value; "" where it is missing."""
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
    """The values of a multi field; empty where it is missing."""
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
    """The number that is the value of a numeric field; None where it is missing."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueFault(field.name, "a number", _named(value))
    if not abs(value) <= MAX_NUMBER:  # so that NaN is refused too
        shown = str(value) if isinstance(value, float) else "a larger one"
        raise ValueFault(field.name, f"a number from {-MAX_NUMBER:g} to {MAX_NUMBER:g}", shown)
    return float(value)


def _named(value: Any) -> str:
    """The kind of a value, as an error names it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return f"the number {value}" if abs(value) < MAX_NUMBER else "a number"
    return "a list" if isinstance(value, list | tuple) else "an object"


def time_values(schema: "Schema", timestamps_ms: NDArray[np.int64]) -> dict[str, NDArray[np.str_]]:
    """The values of the fields that are made of the timestamp, as the clock of the schema's zone shows them.

    Args:
        schema: says which of them there are, and the zone.
        timestamps_ms: milliseconds since 1970, int64[n], of the years 1990 to 2099.

    Returns:
        str[n] for each of the fields: `hour` "0" to "23", `weekday` "0" (Monday) to "6".

    Raises:
        ValueError: a timestamp is of another year.
    """
    if not schema.time:
        return {}
    shown = timestamps_ms + _offsets(schema.timezone, timestamps_ms)
    numbered = {"hour": shown // _HOUR_MS % 24, "weekday": (shown // _DAY_MS + 3) % 7}  # 1970 began on a Thursday
    return {name: _NUMERALS[numbered[name]] for name in schema.time}


def _offsets(zone: str, timestamps_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """By how many milliseconds the clock of a zone is ahead of UTC at each timestamp."""
    if len(timestamps_ms) == 0:
        return timestamps_ms
    first, last = int(timestamps_ms.min()), int(timestamps_ms.max())
    if not EARLIEST_MS <= first <= last < LATEST_MS:
        raise ValueError(f"timestamps: expected times of the years 1990 to 2099; received {first} to {last}")
    starts, offsets = _changes(zone)
    return offsets[np.searchsorted(starts, timestamps_ms, side="right") - 1]


@lru_cache(maxsize=16)
def _changes(zone: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """When the clock of a zone changes, milliseconds since 1970, and by how many it is ahead of UTC from then on.

    Looked at once a day, and between two days that differ to the second: no zone changes twice within one.
    """
    clock = find_zone(zone)

    def offset_at(seconds: int) -> int:
        shown = (_EPOCH + timedelta(seconds=seconds)).astimezone(clock)
        return round((shown.utcoffset() or timedelta()) / timedelta(milliseconds=1))

    begin, end = EARLIEST_MS // 1000, LATEST_MS // 1000
    found = [(begin, offset_at(begin))]
    for day in range(begin, end, 86_400):
        low, high = day, day + 86_400
        after = offset_at(high)
        if after == found[-1][1]:
            continue
        while high - low > 1:  # low is before the change, high is not
            middle = (low + high) // 2
            low, high = (middle, high) if offset_at(middle) == found[-1][1] else (low, middle)
        found.append((high, after))
    starts, offsets = zip(*found, strict=True)
    return np.array(starts, dtype=np.int64) * 1000, np.array(offsets, dtype=np.int64)


def find_zone(name: str) -> ZoneInfo:
    """A zone of the IANA database.

    Raises:
        ValueError: it has none of this name.
    """
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # a missing name is a KeyError, a folder's an OSError
        raise ValueError(
            f"timezone: expected a name of the IANA database, such as Europe/Berlin; received {name!r}"
        ) from None
