"""How times are read: numbers since 1970 in any of four units, RFC 3339 and its relatives, and forms of strptime."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Literal

import polars as pl

from asmg.datasets.columns import Reading
from asmg.features import find_zone
from asmg.log_format import EARLIEST_MS, FUTURE_TOLERANCE_SECONDS, LATEST_MS

__all__ = ["DAY_MS", "TimeForm", "UnixUnit", "check_form", "day_of_year_2014", "time_of"]

DAY_MS = 86_400_000
_MINUTE_MS = 60_000
_EPOCH = datetime(1970, 1, 1)

UnixUnit = Literal["s", "ms", "us", "ns"]

TimeForm = str
"""A unit, `rfc3339`, `utc`, or a pattern of strptime, which has a %."""

_NAMES: dict[UnixUnit, str] = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_PER_SECOND: dict[UnixUnit, int] = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def time_of(
    form: TimeForm | None = None,
    zone: str | None = None,
    *,
    future_seconds: float = FUTURE_TOLERANCE_SECONDS,
    now_ms: int | None = None,
) -> Reading:
    """A time, read as milliseconds since 1970.

    Args:
        form: None: a number since 1970, whose size says its unit, or RFC 3339; each value is recognised by itself.
            `s`, `ms`, `us`, `ns`: such a number in that unit. `rfc3339`: that, with a time zone. `utc`: that, where the
            zone, or the time of day, may be missing. With a %: a pattern of strptime; UTC where neither it nor `zone`
            says otherwise.
        zone: name in the IANA database of the zone of times that do not say theirs, with None or a pattern. Of an hour
            that the clock of that zone shows twice the first is meant; times that it skips are refused.
        future_seconds: how far ahead of now a time may be.
        now_ms: now; by default what the clock says.

    Raises:
        ValueError: `form` or `zone` is none.
    """
    check_form(form, zone)
    now = round(time.time() * 1000) if now_ms is None else now_ms
    end = min(LATEST_MS, now + round(future_seconds * 1000) + 1)
    numbers = _Numbers(form if form in _NAMES else None)
    texts: _DateTimes | _Pattern | None = None
    if form is not None and "%" in form:
        texts, expected = _Pattern(form, _Local(zone or "UTC")), f"a time of the form {form!r}"
    elif form in _NAMES:
        expected = f"{_NAMES[form]} since 1970"
    else:
        local = "UTC" if form == "utc" else zone
        texts = _DateTimes(None if local is None else _Local(local))
        expected = "a date and time (RFC 3339)" + ("" if local else " with a time zone, as in 2026-01-31T23:59:59Z")
        if form is None:
            expected = f"seconds, milliseconds, microseconds or nanoseconds since 1970, or {expected}"
    ways = [way for way in (numbers if form is None or form in _NAMES else None, texts) if way is not None]

    def parse_all(column: pl.Series) -> pl.Series:
        found = ways[0].parse(column)
        for way in ways[1:]:
            if found.null_count():
                left = found.is_null()
                found = found.scatter(left.arg_true(), way.parse(column.filter(left)))
        return _only(found, found.is_between(EARLIEST_MS, end, closed="left"))

    def read(value: str) -> int:
        for way in ways[:-1]:
            try:
                return way.convert(value)
            except ValueError:
                continue
        return ways[-1].convert(value)

    def convert(value: str) -> int:
        milliseconds = read(value)
        if not EARLIEST_MS <= milliseconds < end:
            raise ValueError
        return milliseconds

    def hint(value: str) -> str:
        try:
            ahead = read(value) - end
        except ValueError:
            return _hint(value, form, zone)
        return f"it is more than {future_seconds:g} seconds ahead of the clock here" if ahead >= 0 else ""

    years = f"of the years {_year(EARLIEST_MS)} to {_year(LATEST_MS - 1)}"
    whole = f"{expected}, {years} and not ahead of now"
    return Reading(pl.Int64, _by_series(parse_all), convert, whole, hint=hint)


def check_form(form: TimeForm | None, zone: str | None) -> None:
    """Raise ValueError where these are no form and no zone of times."""
    if form is not None and "%" in form:
        sample = datetime(2003, 10, 21, 17, 48, 59, tzinfo=UTC)
        try:
            read = datetime.strptime(sample.strftime(form), form)
        except (ValueError, re.error) as error:
            raise ValueError(f"timestamp_format: expected a pattern of strptime; received {form!r} ({error})") from None
        if (read.year, read.month, read.day) != (sample.year, sample.month, sample.day):
            raise ValueError(f"timestamp_format: expected a pattern with year, month and day; received {form!r}")
    elif form is not None and form not in (*_NAMES, "rfc3339", "utc"):
        expected = f"one of {', '.join(_NAMES)}, rfc3339, utc, or a pattern of strptime such as '%d-%m-%Y %H:%M'"
        raise ValueError(f"timestamp_format: expected {expected}; received {form!r}")
    if zone is not None:
        if form is not None and "%" not in form:
            raise ValueError(f"timezone: expected none with the timestamp format {form}; received {zone!r}")
        find_zone(zone)


def _year(milliseconds: int) -> int:
    return (_EPOCH + timedelta(milliseconds=milliseconds)).year


def _only(column: pl.Series, good: pl.Series) -> pl.Series:
    """The column, null where it is not good."""
    return pl.select(pl.when(good).then(column).alias("x")).to_series()


def _by_series(parse: Callable[[pl.Series], pl.Series]) -> Callable[[pl.Expr], pl.Expr]:
    return lambda column: column.map_batches(parse, return_dtype=pl.Int64)


def _by_distinct_value(column: pl.Series, convert: Callable[[str], int]) -> pl.Series:
    """What Python reads, each distinct value once; null where that is nothing."""

    def one(value: str) -> int | None:
        try:
            return convert(value)
        except ValueError:
            return None

    distinct = column.drop_nulls().unique()
    read = pl.Series([one(value) for value in distinct.to_list()], dtype=pl.Int64)
    return column.replace_strict(distinct, read, default=None, return_dtype=pl.Int64)


class _Numbers:
    """Seconds, milliseconds, microseconds or nanoseconds since 1970.

    Between the bounds of years no number can be in two of the units. What is finer than a millisecond is cut off; of
    numbers with a fraction, which are binary and so a little beside what was meant, it is rounded.
    """

    _WHOLE = re.compile(r"\+?[0-9]{1,19}")
    _FRACTION = r"\+?[0-9]{1,19}(\.[0-9]{0,19})?([eE]\+?[0-9]{1,2})?"

    def __init__(self, unit: UnixUnit | None) -> None:
        self._units = [unit] if unit else list(_NAMES)

    def _range(self, unit: UnixUnit) -> tuple[int, int]:
        return EARLIEST_MS * _PER_SECOND[unit] // 1000, LATEST_MS * _PER_SECOND[unit] // 1000

    def parse(self, column: pl.Series) -> pl.Series:
        whole = column.cast(pl.Int64, strict=False)
        found = pl.select(
            self._scaled(whole, lambda number, per: number * 1000 if per == 1 else number // (per // 1000))
        )
        milliseconds = found.to_series()
        if milliseconds.null_count():
            plain = _only(column, column.str.contains(f"^{self._FRACTION}$") & whole.is_null())
            number = plain.cast(pl.Float64, strict=False)
            scaled = pl.select(self._scaled(number, lambda n, per: (n * 1000 / per).round(mode="half_to_even")))
            milliseconds = milliseconds.zip_with(milliseconds.is_not_null(), scaled.to_series())
        return milliseconds

    def _scaled(self, number: pl.Series, scale: Callable[[pl.Expr, int], pl.Expr]) -> pl.Expr:
        result, value = pl.lit(None, pl.Int64), pl.lit(number)
        for unit in self._units:
            low, high = self._range(unit)
            good = (value >= low) & (value < high)
            result = pl.when(good).then(scale(value, _PER_SECOND[unit])).otherwise(result)
        return result.cast(pl.Int64)

    def convert(self, value: str) -> int:
        whole = self._WHOLE.fullmatch(value)
        if not whole and not re.fullmatch(self._FRACTION, value):
            raise ValueError
        number = int(value) if whole else float(value)
        for unit in self._units:
            low, high = self._range(unit)
            if low <= number < high:
                per = _PER_SECOND[unit]
                if isinstance(number, int):
                    return number * 1000 if per == 1 else number // (per // 1000)
                return round(number * 1000 / per)
        raise ValueError


class _Local:
    """The clock of a zone: from the time that it shows to milliseconds since 1970."""

    def __init__(self, name: str) -> None:
        self._zone = None if name == "UTC" else find_zone(name)
        self._offsets: dict[int, int | None] = {}

    def to_utc(self, local_ms: pl.Series) -> pl.Series:
        """Null where the clock skips that time."""
        if self._zone is None:
            return local_ms
        # Python's own idea of the zone for every minute there is, so that it is the same one that `convert` has.
        minutes = local_ms // _MINUTE_MS
        distinct = minutes.drop_nulls().unique()
        offsets = pl.Series([self._offset(minute) for minute in distinct.to_list()], dtype=pl.Int64)
        return local_ms - minutes.replace_strict(distinct, offsets, default=None, return_dtype=pl.Int64)

    def convert(self, local_ms: int) -> int:
        """ValueError where the clock skips that time."""
        offset = self._offset(local_ms // _MINUTE_MS) if self._zone else 0
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
        if not EARLIEST_MS - DAY_MS <= minute * _MINUTE_MS <= LATEST_MS + DAY_MS:
            return None
        shown = _EPOCH + timedelta(minutes=minute)
        moment = shown.replace(tzinfo=self._zone)  # of an hour that comes twice, the first
        if moment.astimezone(UTC).astimezone(self._zone).replace(tzinfo=None) != shown:
            return None
        offset = moment.utcoffset()
        assert offset is not None, "a zone of the database has an offset"
        return offset // timedelta(milliseconds=1)


_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_OFFSET = r"[Zz]|UTC|[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9])?"


class _DateTimes:
    """RFC 3339, also with a blank for the T, without seconds, and with offsets such as +0100 and +01.

    Args:
        local: the clock of values without an offset, or a day alone; None refuses them.
    """

    _VALUE = re.compile(
        rf"({_DATE})(?:[Tt ]([0-9]{{2}}:[0-9]{{2}})(?::([0-9]{{2}})(?:\.([0-9]{{1,9}}))?)?(?: ?({_OFFSET}))?)?"
    )

    def __init__(self, local: _Local | None) -> None:
        self._local = local

    def parse(self, column: pl.Series) -> pl.Series:
        if self._local is not None:
            column = column.zip_with(column.str.len_bytes() != 10, column + "T00:00:00")
        column = column.zip_with(column.str.len_bytes() != 16, column + ":00")
        whole = rf"^{_DATE}[Tt ][0-9]{{2}}:[0-9]{{2}}:[0-5][0-9](\.[0-9]{{1,9}})?( ?({_OFFSET}))?$"
        plain = _only(column, column.str.contains(whole))
        clock = plain.str.slice(0, 10) + "T" + plain.str.slice(11, 8)
        shown = clock.str.to_datetime("%Y-%m-%dT%H:%M:%S", time_unit="ms", strict=False).dt.epoch("ms")
        rest = plain.str.slice(19)
        if not (rest.drop_nulls() != "").any():  # as most logs without a zone have it
            return shown.clear(len(shown)) if self._local is None else self._local.to_utc(shown)
        shown += rest.str.extract(r"^\.([0-9]{1,3})").str.pad_end(3, "0").cast(pl.Int64).fill_null(0)
        sign = rest.str.extract(r"([+-])[0-9:]+$").replace_strict({"+": 1, "-": -1}, default=0, return_dtype=pl.Int64)
        hours = rest.str.extract(r"[+-]([0-9]{2}):?[0-9]*$").cast(pl.Int64).fill_null(0)
        minutes = rest.str.extract(r"[+-][0-9]{2}:?([0-9]{2})$").cast(pl.Int64).fill_null(0)
        moment = shown - sign * (60 * hours + minutes) * _MINUTE_MS
        naive = ~rest.str.contains(r"[Zz+-]|UTC")
        if naive.any():
            aware = _only(moment, ~naive)
            moment = aware if self._local is None else self._local.to_utc(_only(shown, naive)).zip_with(naive, aware)
        return moment

    def convert(self, value: str) -> int:
        match = self._VALUE.fullmatch(value)
        if match is None:
            raise ValueError
        date, minute, second, fraction, offset = match.groups()
        shown = datetime.fromisoformat(f"{date}T{minute or '00:00'}:{second or '00'}")
        milliseconds = (shown - _EPOCH) // timedelta(milliseconds=1) + int((fraction or "")[:3].ljust(3, "0"))
        if offset is None:
            if self._local is None:
                raise ValueError
            return self._local.convert(milliseconds)
        if offset in ("Z", "z", "UTC"):
            return milliseconds
        ahead = 60 * int(offset[1:3]) + int(offset[3:].removeprefix(":") or 0)
        return milliseconds - (ahead if offset[0] == "+" else -ahead) * _MINUTE_MS


_DIGITS = {"Y": "[0-9]{4}", "m": "[0-9]{2}", "d": "[0-9]{2}", "H": "[0-9]{2}", "M": "[0-9]{2}", "S": "[0-5][0-9]"}


class _Pattern:
    """What strptime reads with a pattern."""

    def __init__(self, pattern: str, local: _Local) -> None:
        self._pattern, self._local = pattern, local
        directives, literals = re.findall(r"%(.)", pattern), re.split(r"%.", pattern)
        # Of digits and marks alone, a pattern means the same to Polars; else Python reads each distinct value.
        plain = set(directives) <= set(_DIGITS) and len(set(directives)) == len(directives)
        plain &= "H" not in directives or "M" in directives
        plain &= not re.search(r"\w", "".join(literals).replace("T", ""))
        digits = [*(_DIGITS.get(directive, "") for directive in directives), ""]
        parts = (re.escape(literal) + value for literal, value in zip(literals, digits, strict=True))
        self._plain = f"^{''.join(parts)}$" if plain else None

    def parse(self, column: pl.Series) -> pl.Series:
        if self._plain is None:
            return _by_distinct_value(column, self.convert)
        plain = _only(column, column.str.contains(self._plain))
        shown = plain.str.to_datetime(self._pattern, time_unit="ms", strict=False)
        return self._local.to_utc(shown.dt.epoch("ms"))

    def convert(self, value: str) -> int:
        moment = datetime.strptime(value, self._pattern)
        if moment.tzinfo is not None:
            return (moment - _EPOCH.replace(tzinfo=UTC)) // timedelta(milliseconds=1)
        return self._local.convert((moment - _EPOCH) // timedelta(milliseconds=1))


def _hint(value: str, form: TimeForm | None, zone: str | None) -> str:
    """What may help with a time that is none."""
    if zone is not None:
        match = re.match(rf"{_DATE}[Tt ][0-9]{{2}}:[0-9]{{2}}", value)
        return f"the clock of {zone} skips that time, or it is none" if match else ""
    if form in (None, "rfc3339") and re.fullmatch(rf"{_DATE}([Tt ][0-9]{{2}}:[0-9]{{2}}(:[0-9.]+)?)?", value):
        return "for times without a zone give --timestamp-format utc, or --timezone Europe/Berlin or another"
    if form is None and re.match(r"\d{1,4}[./ -](\d{1,2}|\w{3,9})[./ -]\d{1,4}\b", value):
        return "for another form give --timestamp-format with a pattern of strptime, such as '%d-%m-%Y %H:%M'"
    return ""


def day_of_year_2014() -> Reading:
    """MMDD of 2014, with or without a leading zero, read as that day's midnight (UTC) in milliseconds since 1970."""

    def parse(column: pl.Expr) -> pl.Expr:
        plain = pl.when(column.str.contains(r"^\d{3,4}$")).then(column)
        return ("2014" + plain.str.zfill(4)).str.to_date("%Y%m%d", strict=False).cast(pl.Datetime("ms")).dt.epoch("ms")

    def convert(value: str) -> int:
        if not re.fullmatch(r"[0-9]{3,4}", value):
            raise ValueError
        day = datetime.strptime(f"2014{value.zfill(4)}", "%Y%m%d")
        return (day - _EPOCH) // timedelta(milliseconds=1)

    return Reading(pl.Int64, parse, convert, "a day of 2014 as MMDD")
