"""`asmg experiment …`: prepare a log, run update methods over its periods, and report the results."""

import signal
import sys
from pathlib import Path
from typing import Annotated, get_args

import typer

from asmg.log_format import ColumnMap
from service.cli.console import StageBar, make_console
from service.cli.errors import plain_errors, unusable_files
from service.cli.log_columns import (
    CategoriesColumn,
    ContextColumns,
    Features,
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
from service.processes.stop_request import INTERRUPTED

__all__ = ["experiment"]

experiment = typer.Typer(help="The paper's experiments, on public logs or on your own.", no_args_is_help=True)


@experiment.command("prepare")
def prepare_command(
    name: Annotated[
        str,
        typer.Argument(
            help="One of tmall, sobazaar, ml-25m, ml-latest, ml-1m, ml-100k, diginetica, yoochoose, kuairand, amazon, "
            "avazu, criteo, taobao-ad, mind; or log for your own: CSV (also compressed by gzip) or Parquet."
        ),
    ],
    raw: Annotated[Path, typer.Option(help="File as it was published, or the folder that holds it.")],
    out: Annotated[Path, typer.Option(help="New folder to write.")],
    title: Annotated[
        str | None, typer.Option("--name", help="Name of your own log in the card and in reports.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampled negatives.")] = 0,
    negatives: Negatives = 1,
    malformed: MalformedRows = "error",
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    label_column: LabelColumn = None,
    timestamp_column: TimestampColumn = "timestamp",
    categories_column: CategoriesColumn = None,
    positives_only: PositivesOnly = None,
    positive_from: PositiveFrom = None,
    timestamp_format: TimeFormat = None,
    timezone: Timezone = None,
    features: Features = None,
    context: ContextColumns = None,
    user_feature: UserFeatures = None,
    item_feature: ItemFeatures = None,
) -> None:
    """Prepare a public log by the paper's rules, or one of your own, for `asmg experiment run`.

    The options of columns, timestamps and fields are for a log of your own. Without --features, fields of text and
    whole numbers are categorical, those of numbers with fractions numeric, and lists multi.
    """
    from asmg.datasets.generic import LogOptions
    from asmg.datasets.prepare import PrepareOptions, prepare
    from asmg.features import Of, Schema

    columns = ColumnMap(
        user_id=user_column,
        item_id=item_column,
        label=label_column,
        timestamp=timestamp_column,
        categories=categories_column,
    )
    with plain_errors(), unusable_files(), StageBar(make_console()) as bar:
        options = PrepareOptions(
            name=name,
            raw=raw,
            out=out,
            title=title,
            seed=seed,
            negatives=negatives,
            malformed=malformed,  # type: ignore[arg-type] # checked by PrepareOptions
            log=LogOptions(
                columns=columns,
                positives_only=positives_only,
                positive_from=positive_from,
                timestamp_format=timestamp_format,
                timezone=timezone,
                features=None if features is None else Schema.read(features),
                context=field_columns("context", context),
                user_features=field_columns("user-feature", user_feature),
                item_features=field_columns("item-feature", item_feature),
            ),
        )
        bar.begin("reading")
        card = prepare(options, progress=bar.show)
    print(
        f"{card.dataset}: {card.rows:,} rows, {card.positives:,} of them positives; {card.users:,} users, "
        f"{card.items:,} items, {card.categories:,} categories; {card.first} to {card.last}"
    )
    for reason, count in card.dropped.items():
        print(f"  left out: {count:,} {reason}")
    schema = Schema.from_json(card.features or {"time": []})
    for of in get_args(Of):
        if fields := schema.of(of):
            print(f"  fields of the {of}: {', '.join(f'{field.name} ({field.kind})' for field in fields)}")
    print(f"  {out / 'card.json'}")


@experiment.command("run")
def run_command(
    data: Annotated[Path, typer.Option(help="Folder that `asmg experiment prepare` has written.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; that of an earlier run is continued.")],
    methods: Annotated[
        str | None, typer.Option(help="Methods, separated by commas; by default all installed ones.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of runs of each method, with seeds 0, 1, …")] = 5,
    periods: Annotated[int, typer.Option(help="Number of equal periods that the log is cut into.")] = 31,
    pretrain: Annotated[int, typer.Option(help="Number of periods that are learned together first.")] = 10,
    test_from: Annotated[int, typer.Option(help="First update whose model is part of the result.")] = 24,
    settings: Annotated[
        str, typer.Option(help="`default` for ours, `paper` for those of the paper's authors.")
    ] = "default",
    categories: Annotated[
        bool | None, typer.Option(help="Whether models read the items' categories; by default if the log has any.")
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option(help="Whether to run asmg-gru-multi with other sequence lengths and hidden sizes too.")
    ] = True,
    statistics: Annotated[
        bool | None,
        typer.Option(help="Whether the base model reads statistics; by default with our settings only."),
    ] = None,
    fields: Annotated[
        bool | None,
        typer.Option(
            help="Whether methods read the log's fields, hour and weekday; by default with our settings only."
        ),
    ] = None,
    drop_statistic: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Statistic that every method reads as zero; may be repeated."),
    ] = None,
    dim: Annotated[
        int | None, typer.Option(help="Width of the base model's embeddings; by default as in the settings.")
    ] = None,
    hidden: Annotated[
        str | None,
        typer.Option(help="Widths of its hidden layers, separated by commas; by default as in the settings."),
    ] = None,
    dot: Annotated[
        bool | None, typer.Option(help="Whether the base model has dot products; by default with our settings only.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="Number of parallel runs; by default one per core.")] = None,
) -> None:
    """Run methods over the periods of a log, with several seeds; if it is stopped, the same command continues."""
    # With the training library, which takes seconds to import.
    from asmg.datasets.card import read_card
    from asmg.experiments.options import ExperimentOptions, default_methods
    from asmg.experiments.protocol import Protocol
    from asmg.experiments.run import ExperimentError, run_experiment
    from asmg.yardsticks import LIGHTGBM_MISSING

    with plain_errors(), unusable_files():
        names = default_methods() if methods is None else tuple(name.strip() for name in methods.split(","))
        if methods is None and "lightgbm" not in names:
            print(f"without lightgbm: {LIGHTGBM_MISSING}", flush=True)
        card = read_card(data)
        protocol = Protocol(
            periods=periods,
            pretrain=pretrain,
            test_from=test_from,
            settings=settings,  # type: ignore[arg-type] # checked by Protocol
            categories=card.categories > 0 if categories is None else categories,
            statistics=statistics,
            fields=settings == "default" and card.features is not None if fields is None else fields,
            dropped=tuple(drop_statistic or ()),
            dim=dim,
            hidden=None if hidden is None else _widths(hidden),
            dot=dot,
        )
        options = ExperimentOptions(
            methods=names, seeds=seeds, protocol=protocol, sensitivity=sensitivity, processes=processes
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        try:
            run_experiment(data, out, options, say=lambda line: print(line, flush=True))
        except ExperimentError as error:
            print(f"asmg: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", flush=True)
            raise typer.Exit(INTERRUPTED) from None


def _widths(text: str) -> tuple[int, ...]:
    """Parse a list of numbers such as 32,16.

    Raises:
        ValueError: the text is not such a list.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise ValueError(f"hidden: expected whole numbers separated by commas, such as 32,16; received {text!r}")
    return tuple(map(int, parts))


@experiment.command("report")
def report_command(out: Annotated[Path, typer.Argument(help="Folder that `asmg experiment run` has written.")]) -> None:
    """Write the paper's tables and figures for a run: report.md, report.html and figures/ in its folder."""
    from asmg.experiments.report import write_report

    with plain_errors(), unusable_files():
        for path in write_report(out):
            if path.suffix in (".md", ".html"):
                print(path)
