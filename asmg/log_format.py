"""How a log's file is described, and the error of one that is otherwise. Imports little: every command knows it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["EARLIEST_MS", "FUTURE_TOLERANCE_SECONDS", "LATEST_MS", "ColumnMap", "CutBy", "LogFormatError"]

EARLIEST_MS = 631_152_000_000
"""First moment that an event can have, milliseconds since 1970: 1990-01-01T00:00:00Z. The oldest public logs are of
the nineties."""

LATEST_MS = 4_102_444_800_000
"""First moment that no event can have any more: 2100-01-01T00:00:00Z. Between the two, a number since 1970 is of one
unit only: those of seconds, milliseconds, microseconds and nanoseconds do not overlap."""

FUTURE_TOLERANCE_SECONDS = 300
"""How far an event may be ahead of the clock that checks it: clocks differ, by less than this where anybody sets
them."""

CutBy = Literal["count", "periods", "hour", "day", "week", "column"]
"""Into what pieces a log is cut."""


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """What the columns of a file are called."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str = "timestamp"
    label: str | None = None
    """None: `label` where there is such a column, else the log holds positives only."""
    categories: str | None = None
    """None: `categories` where there is such a column. Values are separated by `|`, in Parquet they may be lists."""
    period: str | None = None
    """A column of whole numbers that says the period of each row; None: none is read."""


class LogFormatError(ValueError):
    """A log file is not what it should be; the message names the place, what was expected and what was received."""

    def __init__(
        self,
        path: Path,
        expected: str,
        received: str,
        *,
        column: str | None = None,
        line: int | None = None,
        unit: str = "line",
        hint: str = "",
    ) -> None:
        """`line` counts from 1, a header included; in Parquet files, which have no lines, it is a row (`unit`).

        `hint`: what may help.
        """
        self.path = path
        self.expected = expected
        self.received = received
        self.column = column
        self.line = line
        place = [str(path)]
        if line is not None:
            place.append(f"{unit} {line}")
        if column is not None:
            place.append(f"column {column!r}")
        super().__init__(
            f"{', '.join(place)}: expected {expected}; received {received}" + (f"; {hint}" if hint else "")
        )
