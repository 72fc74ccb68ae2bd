"""The description of a log file's columns, and the error for a bad file. Imports little: every command loads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["EARLIEST_MS", "FUTURE_TOLERANCE_SECONDS", "LATEST_MS", "ColumnMap", "CutBy", "LogFormatError"]

EARLIEST_MS = 631_152_000_000
"""Earliest time of an event, in milliseconds since 1970: 1990-01-01T00:00:00Z. The oldest public logs are from the
nineties."""

LATEST_MS = 4_102_444_800_000
"""End of the time range of events (exclusive), in milliseconds since 1970: 2100-01-01T00:00:00Z. Between the two bounds
the numbers of seconds, milliseconds, microseconds and nanoseconds do not overlap, so a number's unit is certain."""

FUTURE_TOLERANCE_SECONDS = 300
"""Seconds that an event's time may be ahead of the clock that checks it. Synchronised clocks differ by less."""

CutBy = Literal["count", "periods", "hour", "day", "week", "column"]
"""How a log is cut into periods, see `asmg.datasets.cut`."""


@dataclass(frozen=True, kw_only=True)
class ColumnMap:
    """Names of the columns of a log file."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    timestamp: str = "timestamp"
    label: str | None = None
    """None: the column `label` if there is one, else the log holds only positives."""
    categories: str | None = None
    """None: the column `categories` if there is one. Values are separated by `|`; in Parquet they may be lists."""
    period: str | None = None
    """A column of whole numbers with the period of each row; None for no such column."""


class LogFormatError(ValueError):
    """A log file has unexpected content. The message names the place, what was expected and what was received."""

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
        """Build the message.

        Args:
            path: the file or folder.
            expected, received: in a few words.
            column: name of the column, if the fault is in one.
            line: from 1, the header included; a row of a Parquet file.
            unit: "line" or "row".
            hint: an advice, in a few words.
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
