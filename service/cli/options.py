"""Options that several commands have: how the columns of a log are called and what they mean."""

from typing import Annotated

import typer

from asmg.log_format import TimestampFormat

__all__ = [
    "CategoriesColumn",
    "ItemColumn",
    "LabelColumn",
    "Negatives",
    "PositivesOnly",
    "TimeFormat",
    "TimestampColumn",
    "UserColumn",
]

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
    TimestampFormat | None,
    typer.Option(help="Seconds or milliseconds since 1970, RFC 3339, or that without a zone; by default recognised."),
]
