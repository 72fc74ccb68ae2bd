"""The forms of times: each parses a whole column by Polars, and a single value by Python with the same result."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Literal

import polars as pl

from asmg.features import find_zone
from asmg.log_format import EARLIEST_MS, LATEST_MS

__all__ = [
    "DATE",
    "DAY_MS",
    "EPOCH",
    "UNIT_NAMES",
    "DateTimes",
    "StrptimePattern",
    "UnixNumbers",
    "UnixUnit",
    "ZoneClock",
    "null_unless",
]

DAY_MS = 86_400_000
"""Milliseconds of a day."""

MINUTE_MS = 60_000
"""Milliseconds of a minute."""

EPOCH = datetime(1970, 1, 1)
"""Start of 1970, without a zone."""

UnixUnit = Literal["s", "ms", "us", "ns"]
"""Unit of a number since 1970."""

UNIT_NAMES: dict[UnixUnit, str] = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
"""Unit → its name in messages."""

PER_SECOND: dict[UnixUnit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Unit → how many of it make a second."""


def null_unless(column: pl.Series, good: pl.Series) -> pl.Series:
    """The column, with null where `good` is false."""
    return pl.select(pl.when(good).then(column).alias("x")).to_series()


def _by_distinct_value(column: pl.Series, convert: Callable[[str], int]) -> pl.Series:
    """The values converted by Python, each distinct one once; null on ValueError."""

    def one(value: str) -> int | None:
        try:
            return convert(value)
        except ValueError:
            return None

    distinct = column.drop_nulls().unique()
    read = pl.Series([one(value) for value in distinct.to_list()], dtype=pl.Int64)
    return column.replace_strict(distinct, read, default=None, return_dtype=pl.Int64)


class UnixNumbers:
    """Seconds, milliseconds, microseconds or nanoseconds since 1970.

    Between EARLIEST_MS and LATEST_MS no number is possible in two units. Whole numbers are truncated to milliseconds;
    numbers with a fraction are rounded, because binary fractions are inexact.
    """

    _WHOLE = re.compile(r"\+?[0-9]{1,19}")
    _FRACTION = r"\+?[0-9]{1,19}(\.[0-9]{0,19})?([eE]\+?[0-9]{1,2})?"

    def __init__(self, unit: UnixUnit | None) -> None:
        self._units = [unit] if unit else list(UNIT_NAMES)

    def _range(self, unit: UnixUnit) -> tuple[int, int]:
        return EARLIEST_MS * PER_SECOND[unit] // 1000, LATEST_MS * PER_SECOND[unit] // 1000

    def parse(self, column: pl.Series) -> pl.Series:
        """Text → milliseconds since 1970; null for a value that is not of this form."""
        whole = column.cast(pl.Int64, strict=False)
        found = pl.select(
            self._scaled(whole, lambda number, per: number * 1000 if per == 1 else number // (per // 1000))
        )
        milliseconds = found.to_series()
        if milliseconds.null_count():
            plain = null_unless(column, column.str.contains(f"^{self._FRACTION}$") & whole.is_null())
            number = plain.cast(pl.Float64, strict=False)
            scaled = pl.select(self._scaled(number, lambda n, per: (n * 1000 / per).round(mode="half_to_even")))
            milliseconds = milliseconds.zip_with(milliseconds.is_not_null(), scaled.to_series())
        return milliseconds

    def _scaled(self, number: pl.Series, scale: Callable[[pl.Expr, int], pl.Expr]) -> pl.Expr:
        result, value = pl.lit(None, pl.Int64), pl.lit(number)
        for unit in self._units:
            low, high = self._range(unit)
            good = (value >= low) & (value < high)
            result = pl.when(good).then(scale(value, PER_SECOND[unit])).otherwise(result)
        return result.cast(pl.Int64)

    def convert(self, value: str) -> int:
        """Text → milliseconds since 1970; ValueError for a value that is not of this form."""
        whole = self._WHOLE.fullmatch(value)
        if not whole and not re.fullmatch(self._FRACTION, value):
            raise ValueError
        number = int(value) if whole else float(value)
        for unit in self._units:
            low, high = self._range(unit)
            if low <= number < high:
                per = PER_SECOND[unit]
                if isinstance(number, int):
                    return number * 1000 if per == 1 else number // (per // 1000)
                return round(number * 1000 / per)
        raise ValueError


class ZoneClock:
    """The clock of a time zone: converts local times to milliseconds since 1970."""

    def __init__(self, name: str) -> None:
        self._zone = None if name == "UTC" else find_zone(name)
        self._offsets: dict[int, int | None] = {}

    def to_utc(self, local_ms: pl.Series) -> pl.Series:
        """The times in UTC; null for times that the clock skips."""
        if self._zone is None:
            return local_ms
        # Python's offset of every distinct minute, so that the result equals that of `convert`.
        minutes = local_ms // MINUTE_MS
        distinct = minutes.drop_nulls().unique()
        offsets = pl.Series([self._offset(minute) for minute in distinct.to_list()], dtype=pl.Int64)
        return local_ms - minutes.replace_strict(distinct, offsets, default=None, return_dtype=pl.Int64)

    def convert(self, local_ms: int) -> int:
        """The time in UTC; ValueError if the clock skips it."""
        offset = self._offset(local_ms // MINUTE_MS) if self._zone else 0
        if offset is None:
            raise ValueError
        return local_ms - offset

    def _offset(self, minute: int) -> int | None:
        if minute not in self._offsets:
            if len(self._offsets) > 1 << 20:
                self._offsets.clear()
            self._offsets[minute] = self._find_offset(minute)
        return self._offsets[minute]

    def _find_offset(self, minute: int) -> int | None:
        if not EARLIEST_MS - DAY_MS <= minute * MINUTE_MS <= LATEST_MS + DAY_MS:
            return None
        shown = EPOCH + timedelta(minutes=minute)
        moment = shown.replace(tzinfo=self._zone)  # the first of an hour that occurs twice
        if moment.astimezone(UTC).astimezone(self._zone).replace(tzinfo=None) != shown:
            return None
        offset = moment.utcoffset()
        assert offset is not None, "a zone of the database has an offset"
        return offset // timedelta(milliseconds=1)


DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
"""Pattern of a date in RFC 3339."""

_OFFSET = r"[Zz]|UTC|[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9])?"


class DateTimes:
    """RFC 3339, also with a blank instead of T, without seconds, and with offsets such as +0100 and +01.

    Args:
        local: the clock for values without an offset or without a time of day; None refuses such values.
    """

    _VALUE = re.compile(
        rf"({DATE})(?:[Tt ]([0-9]{{2}}:[0-9]{{2}})(?::([0-9]{{2}})(?:\.([0-9]{{1,9}}))?)?(?: ?({_OFFSET}))?)?"
    )

    def __init__(self, local: ZoneClock | None) -> None:
        self._local = local

    def parse(self, column: pl.Series) -> pl.Series:
        """Text → milliseconds since 1970; null for a value that is not of this form."""
        if self._local is not None:
            column = column.zip_with(column.str.len_bytes() != 10, column + "T00:00:00")
        column = column.zip_with(column.str.len_bytes() != 16, column + ":00")
        whole = rf"^{DATE}[Tt ][0-9]{{2}}:[0-9]{{2}}:[0-5][0-9](\.[0-9]{{1,9}})?( ?({_OFFSET}))?$"
        plain = null_unless(column, column.str.contains(whole))
        clock = plain.str.slice(0, 10) + "T" + plain.str.slice(11, 8)
        shown = clock.str.to_datetime("%Y-%m-%dT%H:%M:%S", time_unit="ms", strict=False).dt.epoch("ms")
        rest = plain.str.slice(19)
        if not (rest.drop_nulls() != "").any():  # as in most logs without a zone
            return shown.clear(len(shown)) if self._local is None else self._local.to_utc(shown)
        shown += rest.str.extract(r"^\.([0-9]{1,3})").str.pad_end(3, "0").cast(pl.Int64).fill_null(0)
        sign = rest.str.extract(r"([+-])[0-9:]+$").replace_strict({"+": 1, "-": -1}, default=0, return_dtype=pl.Int64)
        hours = rest.str.extract(r"[+-]([0-9]{2}):?[0-9]*$").cast(pl.Int64).fill_null(0)
        minutes = rest.str.extract(r"[+-][0-9]{2}:?([0-9]{2})$").cast(pl.Int64).fill_null(0)
        moment = shown - sign * (60 * hours + minutes) * MINUTE_MS
        naive = ~rest.str.contains(r"[Zz+-]|UTC")
        if naive.any():
            aware = null_unless(moment, ~naive)
            moment = (
                aware if self._local is None else self._local.to_utc(null_unless(shown, naive)).zip_with(naive, aware)
            )
        return moment

    def convert(self, value: str) -> int:
        """Text → milliseconds since 1970; ValueError for a value that is not of this form."""
        match = self._VALUE.fullmatch(value)
        if match is None:
            raise ValueError
        date, minute, second, fraction, offset = match.groups()
        shown = datetime.fromisoformat(f"{date}T{minute or '00:00'}:{second or '00'}")
        milliseconds = (shown - EPOCH) // timedelta(milliseconds=1) + int((fraction or "")[:3].ljust(3, "0"))
        if offset is None:
            if self._local is None:
                raise ValueError
            return self._local.convert(milliseconds)
        if offset in ("Z", "z", "UTC"):
            return milliseconds
        ahead = 60 * int(offset[1:3]) + int(offset[3:].removeprefix(":") or 0)
        return milliseconds - (ahead if offset[0] == "+" else -ahead) * MINUTE_MS


_DIGITS = {"Y": "[0-9]{4}", "m": "[0-9]{2}", "d": "[0-9]{2}", "H": "[0-9]{2}", "M": "[0-9]{2}", "S": "[0-5][0-9]"}


class StrptimePattern:
    """Times of a strptime pattern."""

    def __init__(self, pattern: str, local: ZoneClock) -> None:
        self._pattern, self._local = pattern, local
        directives, literals = re.findall(r"%(.)", pattern), re.split(r"%.", pattern)
        # Polars parses patterns of digits and punctuation alike; for others Python reads each distinct value.
        plain = set(directives) <= set(_DIGITS) and len(set(directives)) == len(directives)
        plain &= "H" not in directives or "M" in directives
        plain &= not re.search(r"\w", "".join(literals).replace("T", ""))
        digits = [*(_DIGITS.get(directive, "") for directive in directives), ""]
        parts = (re.escape(literal) + value for literal, value in zip(literals, digits, strict=True))
        self._plain = f"^{''.join(parts)}$" if plain else None

    def parse(self, column: pl.Series) -> pl.Series:
        """Text → milliseconds since 1970; null for a value that is not of this form."""
        if self._plain is None:
            return _by_distinct_value(column, self.convert)
        plain = null_unless(column, column.str.contains(self._plain))
        shown = plain.str.to_datetime(self._pattern, time_unit="ms", strict=False)
        return self._local.to_utc(shown.dt.epoch("ms"))

    def convert(self, value: str) -> int:
        """Text → milliseconds since 1970; ValueError for a value that is not of this form."""
        moment = datetime.strptime(value, self._pattern)
        if moment.tzinfo is not None:
            return (moment - EPOCH.replace(tzinfo=UTC)) // timedelta(milliseconds=1)
        return self._local.convert((moment - EPOCH) // timedelta(milliseconds=1))
