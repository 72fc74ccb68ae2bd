"""`asmg features …`: check a schema of fields."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from asmg.features import Field, Schema
from service.cli.console import make_console
from service.cli.errors import plain_errors, unusable_files

__all__ = ["features"]

features = typer.Typer(help="Schema of the fields of context, users and items.", no_args_is_help=True)


@features.command("check")
def check_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Schema file (TOML), as in ASMG_FEATURES.")],
) -> None:
    """List the fields of a schema file, those computed from the timestamp first, or its errors."""
    with plain_errors(), unusable_files():
        schema = Schema.read(file)
        table = Table("name", "of", "kind", "enters as")
        for field in schema.all:
            table.add_row(field.name, field.of, field.kind, _input_form(field, schema))
        make_console().print(table)


def _input_form(field: Field, schema: Schema) -> str:
    """How the model reads the field, in a few words."""
    if field.name in schema.time:
        return f"one row of the table; made of the timestamp, {schema.timezone}"
    if field.kind == "multi":
        entry = f"at most {field.most} rows of the table"
    elif field.by_table:
        entry = "one row of the table" + (f" for each of {len(field.buckets) + 1} buckets" if field.buckets else "")
    else:
        entry = "a number, standardised" + (" after log" if field.enter == "log" else "")
    return entry + ("; missing when predicting" if field.training_only else "")
