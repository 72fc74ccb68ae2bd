"""`asmg import`."""

from pathlib import Path
from typing import Annotated

import typer

from asmg.log_format import ColumnMap, CutBy
from service.cli.errors import plain_errors, unusable_files
from service.cli.installation import DataDir, load_settings
from service.cli.log_columns import (
    CategoriesColumn,
    ContextColumns,
    ItemColumn,
    ItemFeatures,
    LabelColumn,
    MalformedRows,
    Negatives,
    PositiveFrom,
    PositivesOnly,
    TimeFormat,
    TimestampColumn,
    Timezone,
    UserColumn,
    UserFeatures,
    field_columns,
)

__all__ = ["import_command"]


def import_command(
    file: Annotated[Path, typer.Argument(help="CSV (also compressed by gzip) or Parquet.")],
    by: Annotated[
        CutBy | None,
        typer.Option(help="What the log is cut into periods by; by default column with --period-column, else day."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Interactions of a period (by count), number of periods (by periods), or hours, days, weeks of each.",
        ),
    ] = None,
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    label_column: LabelColumn = None,
    timestamp_column: TimestampColumn = "timestamp",
    categories_column: CategoriesColumn = None,
    period_column: Annotated[
        str | None, typer.Option(help="Column with the period: whole numbers that grow with time.")
    ] = None,
    positives_only: PositivesOnly = None,
    negatives: Negatives = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampled negatives.")] = 0,
    positive_from: PositiveFrom = None,
    timestamp_format: TimeFormat = None,
    timezone: Timezone = None,
    context: ContextColumns = None,
    user_feature: UserFeatures = None,
    item_feature: ItemFeatures = None,
    malformed: MalformedRows = "error",
    append: Annotated[
        bool, typer.Option("--append", help="Add to the open period even if it holds other interactions.")
    ] = False,
    no_worker: Annotated[
        bool, typer.Option("--no-worker", help="Start no worker, because one runs already, here or elsewhere.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Import a log of interactions, period by period; if it is stopped, the same command continues where it was.

    Columns with the names of fields of ASMG_FEATURES are read as these fields; --context, --user-feature and
    --item-feature name others, as field=column.
    """
    # With the training library, which takes seconds to import.
    from asmg.datasets.generic import LogOptions
    from service.cli.import_log.options import ImportOptions
    from service.cli.import_log.run import run_import

    by = by or ("column" if period_column else "day")
    if by == "column" and (period_column is None or size is not None):
        raise typer.BadParameter("expected --period-column, and no --size, with --by column")
    if by in ("count", "periods") and size is None:
        raise typer.BadParameter(f"expected --size with --by {by}; received none")
    columns = ColumnMap(
        user_id=user_column,
        item_id=item_column,
        timestamp=timestamp_column,
        label=label_column,
        categories=categories_column,
        period=period_column if by == "column" else None,
    )
    with plain_errors(), unusable_files():
        settings = load_settings(data_dir=data_dir)
        options = ImportOptions(
            file=file,
            by=by,
            size=size or 1,
            log=LogOptions(
                columns=columns,
                positives_only=positives_only,
                positive_from=positive_from,
                timestamp_format=timestamp_format,
                timezone=timezone,
                features=settings.read_features(),
                some_features=True,
                context=field_columns("context", context),
                user_features=field_columns("user-feature", user_feature),
                item_features=field_columns("item-feature", item_feature),
            ),
            malformed=malformed,  # type: ignore[arg-type] # checked by ImportOptions
            negatives=negatives,
            seed=seed,
            append=append,
            worker=not no_worker,
        )
        code = run_import(options, settings)
    raise typer.Exit(code)
