"""Options that `asmg import` and `asmg experiment prepare` share: what the columns of a log are called and mean."""

from pathlib import Path
from typing import Annotated

import typer

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
    "TimeFormat",
    "TimestampColumn",
    "Timezone",
    "UserColumn",
    "UserFeatures",
    "field_columns",
]

UserColumn = Annotated[str, typer.Option(help="Column with the user ids.")]
ItemColumn = Annotated[str, typer.Option(help="Column with the item ids.")]
LabelColumn = Annotated[
    str | None,
    typer.Option(help="Column with 1 for a click and 0 for none; by default `label`, if there is such a column."),
]
TimestampColumn = Annotated[str, typer.Option(help="Column with the times.")]
CategoriesColumn = Annotated[
    str | None,
    typer.Option(
        help="Column with the item's categories, separated by |; by default `categories`, if there is such a column."
    ),
]
PositivesOnly = Annotated[
    bool | None,
    typer.Option(
        "--positives-only/--with-labels",
        help="Whether every row is a click; by default so if there is no label column.",
    ),
]
Negatives = Annotated[
    int, typer.Option(min=1, help="Negatives that are sampled for each row of a log of positives only.")
]
TimeFormat = Annotated[
    str | None,
    typer.Option(
        metavar="FORM",
        help="Form of the times: s, ms, us or ns since 1970; rfc3339; utc (rfc3339 without a zone); or a pattern of "
        "strptime, such as '%d-%m-%Y %H:%M'; by default each time is recognised.",
    ),
]
Timezone = Annotated[
    str | None, typer.Option(help="Zone of times that do not name one, such as Europe/Berlin.", metavar="NAME")
]
PositiveFrom = Annotated[
    float | None,
    typer.Option(help="Read the label column as ratings; this one and higher ones are positive.", metavar="RATING"),
]
Features = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Schema of the log's fields (TOML); each is a column of the field's name."),
]
ContextColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--context",
        metavar="NAMES",
        help="Columns with fields of the context, separated by commas or repeated; field=column if the names differ.",
    ),
]
UserFeatures = Annotated[
    list[str] | None,
    typer.Option("--user-feature", metavar="NAMES", help="Columns with fields of the user, written as for --context."),
]
ItemFeatures = Annotated[
    list[str] | None,
    typer.Option("--item-feature", metavar="NAMES", help="Columns with fields of the item, written as for --context."),
]
MalformedRows = Annotated[
    str,
    typer.Option("--malformed", help="What to do with a row that cannot be read: `error`, or `drop` and count it."),
]


def field_columns(option: str, given: list[str] | None) -> dict[str, str]:
    """Field → column, from the values of an option such as `--context hour,device=Device`.

    Args:
        option: its name, for the message.
        given: its values; None where it was not given.

    Raises:
        ValueError: a part names nothing, or a field is given twice.
    """
    found: dict[str, str] = {}
    for part in (part.strip() for value in given or () for part in value.split(",")):
        name, equals, column = part.partition("=")
        if not name or (equals and not column) or name in found:
            expected = "names, each once, such as hour,device=Device"
            raise ValueError(f"{option}: expected {expected}; received {','.join(given or ())!r}")
        found[name] = column or name
    return found
