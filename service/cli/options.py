"""Options that several commands have: where the installation is, how the columns of a log are called."""

from pathlib import Path
from typing import Annotated, Any

import typer

from asmg.log_format import TimestampFormat
from service.settings import Settings

__all__ = [
    "CategoriesColumn",
    "DataDir",
    "ItemColumn",
    "LabelColumn",
    "Negatives",
    "PositivesOnly",
    "TimeFormat",
    "TimestampColumn",
    "UserColumn",
    "load_settings",
]

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of the embedded servers and the snapshots. [ASMG_DATA_DIR]")
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


def load_settings(**overrides: Any) -> Settings:
    """The settings of the environment; those of `overrides` that are not None win."""
    return Settings(**{name: value for name, value in overrides.items() if value is not None})
