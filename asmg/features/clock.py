"""The fields that are made of the timestamp, hour and weekday, in the time zone of a schema."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from asmg.log_format import EARLIEST_MS, LATEST_MS

if TYPE_CHECKING:
    from asmg.features.schema import Schema

__all__ = ["find_zone", "time_values"]

_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_NUMERALS = np.array([str(number) for number in range(24)])


def time_values(schema: "Schema", timestamps_ms: NDArray[np.int64]) -> dict[str, NDArray[np.str_]]:
    """Hour and weekday of timestamps in the schema's time zone.

    Args:
        schema: has the zone and the names of the wanted fields.
        timestamps_ms: int64 [n], milliseconds since 1970, in the years 1990 to 2099.

    Returns:
        str [n] for each wanted field: `hour` "0" to "23", `weekday` "0" (Monday) to "6".

    Raises:
        ValueError: a timestamp is in another year.
    """
    if not schema.time:
        return {}
    shown = timestamps_ms + _offsets(schema.timezone, timestamps_ms)
    numbered = {"hour": shown // _HOUR_MS % 24, "weekday": (shown // _DAY_MS + 3) % 7}  # 1970 began on a Thursday
    return {name: _NUMERALS[numbered[name]] for name in schema.time}


def _offsets(zone: str, timestamps_ms: NDArray[np.int64]) -> NDArray[np.int64]:
    """Offset of a zone from UTC at each timestamp, in milliseconds."""
    if len(timestamps_ms) == 0:
        return timestamps_ms
    first, last = int(timestamps_ms.min()), int(timestamps_ms.max())
    if not EARLIEST_MS <= first <= last < LATEST_MS:
        raise ValueError(f"timestamps: expected times of the years 1990 to 2099; received {first} to {last}")
    starts, offsets = _changes(zone)
    return offsets[np.searchsorted(starts, timestamps_ms, side="right") - 1]


@lru_cache(maxsize=16)
def _changes(zone: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The times at which a zone's offset changes, and the offset from then on; both in milliseconds.

    The offset is compared once a day; a change is then located to the second. No zone changes twice within a day.
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
    """A time zone of the IANA database.

    Raises:
        ValueError: the name is unknown.
    """
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # a missing name is a KeyError, a folder's an OSError
        raise ValueError(
            f"timezone: expected a name of the IANA database, such as Europe/Berlin; received {name!r}"
        ) from None
