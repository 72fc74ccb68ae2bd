"""How times are read from logs: numbers since 1970 in four units, RFC 3339 and similar, and patterns of strptime."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import polars as pl

from asmg.datasets.columns import Reading
from asmg.datasets.time_forms import (
    DATE,
    EPOCH,
    UNIT_NAMES,
    DateTimes,
    StrptimePattern,
    UnixNumbers,
    ZoneClock,
    null_unless,
)
from asmg.features import find_zone
from asmg.log_format import EARLIEST_MS, FUTURE_TOLERANCE_SECONDS, LATEST_MS

__all__ = ["TimeForm", "check_form", "day_of_year_2014", "time_of"]

TimeForm = str
"""A unit (`s`, `ms`, `us`, `ns`), `rfc3339`, `utc`, or a pattern of strptime, which contains %."""


def time_of(
    form: TimeForm | None = None,
    zone: str | None = None,
    *,
    future_seconds: float = FUTURE_TOLERANCE_SECONDS,
    now_ms: int | None = None,
) -> Reading:
    """How a time is read as milliseconds since 1970.

    Args:
        form: `s`, `ms`, `us` or `ns`, a number since 1970 in that unit; `rfc3339`, with a time zone; `utc`, RFC 3339 in
            which the zone or the time of day may be missing; a pattern of strptime, in UTC unless it or `zone` says
            otherwise. None: a number, whose size gives its unit, or RFC 3339; each value is recognised separately.
        zone: time zone (IANA) of times without one; only with None or a pattern. Of an hour that the zone's clock shows
            twice the first is meant; times that it skips are refused.
        future_seconds: seconds that a time may be ahead of now.
        now_ms: the current time; by default that of the clock.

    Raises:
        ValueError: `form` or `zone` is invalid.
    """
    check_form(form, zone)
    now = round(time.time() * 1000) if now_ms is None else now_ms
    end = min(LATEST_MS, now + round(future_seconds * 1000) + 1)
    numbers = UnixNumbers(form if form in UNIT_NAMES else None)
    texts: DateTimes | StrptimePattern | None = None
    if form is not None and "%" in form:
        texts, expected = StrptimePattern(form, ZoneClock(zone or "UTC")), f"a time of the form {form!r}"
    elif form in UNIT_NAMES:
        expected = f"{UNIT_NAMES[form]} since 1970"
    else:
        local = "UTC" if form == "utc" else zone
        texts = DateTimes(None if local is None else ZoneClock(local))
        expected = "a date and time (RFC 3339)" + ("" if local else " with a time zone, as in 2026-01-31T23:59:59Z")
        if form is None:
            expected = f"seconds, milliseconds, microseconds or nanoseconds since 1970, or {expected}"
    ways = [way for way in (numbers if form is None or form in UNIT_NAMES else None, texts) if way is not None]

    def parse_all(column: pl.Series) -> pl.Series:
        found = ways[0].parse(column)
        for way in ways[1:]:
            if found.null_count():
                left = found.is_null()
                found = found.scatter(left.arg_true(), way.parse(column.filter(left)))
        return null_unless(found, found.is_between(EARLIEST_MS, end, closed="left"))

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
    """Raise ValueError if the form or the zone is invalid, or they do not fit together."""
    if form is not None and "%" in form:
        sample = datetime(2003, 10, 21, 17, 48, 59, tzinfo=UTC)
        try:
            read = datetime.strptime(sample.strftime(form), form)
        except (ValueError, re.error) as error:
            raise ValueError(f"timestamp_format: expected a pattern of strptime; received {form!r} ({error})") from None
        if (read.year, read.month, read.day) != (sample.year, sample.month, sample.day):
            raise ValueError(f"timestamp_format: expected a pattern with year, month and day; received {form!r}")
    elif form is not None and form not in (*UNIT_NAMES, "rfc3339", "utc"):
        expected = f"one of {', '.join(UNIT_NAMES)}, rfc3339, utc, or a pattern of strptime such as '%d-%m-%Y %H:%M'"
        raise ValueError(f"timestamp_format: expected {expected}; received {form!r}")
    if zone is not None:
        if form is not None and "%" not in form:
            raise ValueError(f"timezone: expected none with the timestamp format {form}; received {zone!r}")
        find_zone(zone)


def _year(milliseconds: int) -> int:
    return (EPOCH + timedelta(milliseconds=milliseconds)).year


def _by_series(parse: Callable[[pl.Series], pl.Series]) -> Callable[[pl.Expr], pl.Expr]:
    return lambda column: column.map_batches(parse, return_dtype=pl.Int64)


def _hint(value: str, form: TimeForm | None, zone: str | None) -> str:
    """Advice for a value that is no time of the expected form."""
    if zone is not None:
        match = re.match(rf"{DATE}[Tt ][0-9]{{2}}:[0-9]{{2}}", value)
        return f"the clock of {zone} skips that time, or it is none" if match else ""
    if form in (None, "rfc3339") and re.fullmatch(rf"{DATE}([Tt ][0-9]{{2}}:[0-9]{{2}}(:[0-9.]+)?)?", value):
        return "for times without a zone give --timestamp-format utc, or --timezone Europe/Berlin or another"
    if form is None and re.match(r"\d{1,4}[./ -](\d{1,2}|\w{3,9})[./ -]\d{1,4}\b", value):
        return "for another form give --timestamp-format with a pattern of strptime, such as '%d-%m-%Y %H:%M'"
    return ""


def day_of_year_2014() -> Reading:
    """How MMDD of 2014, with or without a leading zero, is read: as midnight (UTC) in milliseconds since 1970."""

    def parse(column: pl.Expr) -> pl.Expr:
        plain = pl.when(column.str.contains(r"^\d{3,4}$")).then(column)
        return ("2014" + plain.str.zfill(4)).str.to_date("%Y%m%d", strict=False).cast(pl.Datetime("ms")).dt.epoch("ms")

    def convert(value: str) -> int:
        if not re.fullmatch(r"[0-9]{3,4}", value):
            raise ValueError
        day = datetime.strptime(f"2014{value.zfill(4)}", "%Y%m%d")
        return (day - EPOCH) // timedelta(milliseconds=1)

    return Reading(pl.Int64, parse, convert, "a day of 2014 as MMDD")
