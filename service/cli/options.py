"""Options that several commands have, and what they mean: the columns of a log, reasons, and when something ends."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from service.http.schemas import parse_timestamp
from service.limits import MAX_KEY_DAYS, MAX_REASON_LENGTH

__all__ = [
    "CategoriesColumn",
    "ContextColumns",
    "Features",
    "ItemColumn",
    "ItemFeatures",
    "LabelColumn",
    "MalformedRows",
    "Negatives",
    "PositiveFrom",
    "PositivesOnly",
    "Rate",
    "Reason",
    "TimeFormat",
    "TimestampColumn",
    "Timezone",
    "UserColumn",
    "UserFeatures",
    "columns_of",
    "expiry_of",
]

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
DURATION = re.compile(r"([1-9]\d{0,8})([smhdw])", re.ASCII)

UserColumn = Annotated[str, typer.Option(help="Ids of the users.")]
ItemColumn = Annotated[str, typer.Option(help="Ids of the items.")]
LabelColumn = Annotated[
    str | None, typer.Option(help="1 for a click, 0 for none. By default `label`, where there is such a column.")
]
TimestampColumn = Annotated[str, typer.Option(help="When it happened.")]
CategoriesColumn = Annotated[
    str | None, typer.Option(help="Separated by |. By default `categories`, where there is such a column.")
]
PositivesOnly = Annotated[
    bool | None,
    typer.Option("--positives-only/--with-labels", help="By default: whether there is no label column."),
]
Negatives = Annotated[int, typer.Option(min=1, help="Sampled for each row of a log of positives only.")]
TimeFormat = Annotated[
    str | None,
    typer.Option(
        metavar="FORM",
        help="s, ms, us or ns since 1970; rfc3339; utc: that without a zone; or a pattern of strptime, such as "
        "'%d-%m-%Y %H:%M'. By default each time is recognised.",
    ),
]
Timezone = Annotated[
    str | None, typer.Option(help="Of times that do not say their zone, such as Europe/Berlin.", metavar="NAME")
]
PositiveFrom = Annotated[
    float | None,
    typer.Option(help="The label column holds ratings, and one from here on is a positive.", metavar="RATING"),
]
Features = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The schema of the log's fields, TOML; each is a column of the field's name."),
]
ContextColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--context",
        metavar="NAMES",
        help="Columns that are fields of the context, with commas or given again; name=column where the field is "
        "called otherwise.",
    ),
]
UserFeatures = Annotated[
    list[str] | None, typer.Option("--user-feature", metavar="NAMES", help="The same of what is known of users.")
]
ItemFeatures = Annotated[
    list[str] | None, typer.Option("--item-feature", metavar="NAMES", help="The same of what is known of items.")
]
MalformedRows = Annotated[
    str, typer.Option("--malformed", help="What becomes of a row that cannot be read: `error`, or `drop` (counted).")
]


def columns_of(option: str, given: list[str] | None) -> dict[str, str]:
    """The names of fields, and the columns that hold them, of an option such as --context hour,device=Device.

    Raises:
        ValueError: a part names nothing, or a name is given twice.
    """
    found: dict[str, str] = {}
    for part in (part.strip() for value in given or () for part in value.split(",")):
        name, equals, column = part.partition("=")
        if not name or (equals and not column) or name in found:
            expected = "names, each once, such as hour,device=Device"
            raise ValueError(f"{option}: expected {expected}; received {','.join(given or ())!r}")
        found[name] = column or name
    return found


def _check_reason(value: str | None) -> str | None:
    if value is not None and not (0 < len(value) <= MAX_REASON_LENGTH and "\0" not in value):
        raise typer.BadParameter(f"expected 1 to {MAX_REASON_LENGTH} characters; received {len(value)}")
    return value


Rate = Annotated[
    float | None,
    typer.Option(help="Requests a second that the key may make; 0 for any number. Not given: as ASMG_RATE_LIMIT says."),
]
Reason = Annotated[str | None, typer.Option(help="Why; the audit keeps it.", callback=_check_reason)]


def expiry_of(after: str | None, moment: str | None) -> datetime | None:
    """The moment that `--expires-in` and `--expires-at` mean; None where neither is given.

    Raises:
        ValueError: both are given, or one is not understood.
    """
    if after is not None and moment is not None:
        raise ValueError("expected --expires-in or --expires-at; received both")
    if after is not None:
        match = DURATION.fullmatch(after)
        if match is None:
            raise ValueError(f"expected a time such as 90d, 12h or 30m with --expires-in; received {after!r}")
        seconds = int(match[1]) * UNIT_SECONDS[match[2]]
        if seconds > MAX_KEY_DAYS * UNIT_SECONDS["d"]:
            raise ValueError(f"expected at most {MAX_KEY_DAYS}d with --expires-in; received {after!r}")
        return datetime.now(UTC) + timedelta(seconds=seconds)
    if moment is None:
        return None
    try:
        return parse_timestamp(moment)
    except ValueError:
        raise ValueError(
            f"expected RFC 3339 with an offset, such as 2030-01-31T12:00:00Z, with --expires-at; received {moment!r}"
        ) from None
