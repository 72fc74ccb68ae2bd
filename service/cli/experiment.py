"""`asmg experiment …`: the paper's experiments."""

import signal
import sys
from pathlib import Path
from typing import Annotated, get_args

import typer

from asmg.log_format import ColumnMap
from service.cli.console import StageBar, make_console
from service.cli.errors import plain_errors, unusable_files
from service.cli.options import (
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
    columns_of,
)

__all__ = ["experiment"]

experiment = typer.Typer(help="The paper's experiments, on public logs or on your own.", no_args_is_help=True)


@experiment.command("prepare")
def prepare_command(
    name: Annotated[
        str,
        typer.Argument(
            help="tmall, sobazaar, ml-25m, ml-latest, ml-1m, ml-100k, diginetica, yoochoose, kuairand, amazon, "
            "avazu, criteo, taobao-ad, mind; or log: one of your own, CSV (also compressed by gzip) or Parquet."
        ),
    ],
    raw: Annotated[Path, typer.Option(help="The file as it was published, or the folder that holds it.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    title: Annotated[
        str | None, typer.Option("--name", help="What your own log is called in the card and in reports.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sampled negatives.")] = 0,
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
                context=columns_of("context", context),
                user_features=columns_of("user-feature", user_feature),
                item_features=columns_of("item-feature", item_feature),
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
    data: Annotated[Path, typer.Option(help="A folder of `asmg experiment prepare`.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; one of an earlier run is gone on with.")],
    methods: Annotated[str | None, typer.Option(help="Separated by commas; by default all that are installed.")] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each method, seeds 0, 1, …")] = 5,
    periods: Annotated[int, typer.Option(help="Equal periods that the log is cut into.")] = 31,
    pretrain: Annotated[int, typer.Option(help="Of these, learned together beforehand.")] = 10,
    test_from: Annotated[int, typer.Option(help="First update after which the model counts.")] = 24,
    settings: Annotated[
        str, typer.Option(help="Ours, `default`, or those of the paper's authors, `paper`.")
    ] = "default",
    categories: Annotated[
        bool | None, typer.Option(help="Whether items have their categories; by default where the log has them.")
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option(help="Also run asmg-gru-multi with other sequence lengths and hidden sizes.")
    ] = True,
    statistics: Annotated[
        bool | None,
        typer.Option(help="Whether the base model reads statistics; by default with our settings it does."),
    ] = None,
    fields: Annotated[
        bool | None,
        typer.Option(
            help="Whether methods read the log's fields, hour and weekday too; by default with our settings they do."
        ),
    ] = None,
    drop_statistic: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A statistic in whose place every method reads zeros; may be repeated."),
    ] = None,
    dim: Annotated[
        int | None, typer.Option(help="Width of the base model's embeddings, if not as in settings.")
    ] = None,
    hidden: Annotated[
        str | None, typer.Option(help="Widths of its hidden layers, separated by commas, if not as in settings.")
    ] = None,
    dot: Annotated[
        bool | None, typer.Option(help="Whether it has the dot products; by default with our settings it has.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="Runs at a time; by default one for each core.")] = None,
) -> None:
    """Run methods over the periods of a log, with several seeds; stopped and started again, it goes on where it was."""
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
            raise typer.Exit(130) from None


def _widths(text: str) -> tuple[int, ...]:
    """The numbers of a list such as 32,16.

    Raises:
        ValueError: it is none.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise ValueError(f"hidden: expected whole numbers separated by commas, such as 32,16; received {text!r}")
    return tuple(map(int, parts))


@experiment.command("report")
def report_command(out: Annotated[Path, typer.Argument(help="A folder of `asmg experiment run`.")]) -> None:
    """Write the paper's tables and figures of a run: report.md, report.html and figures/ in its folder."""
    from asmg.experiments.report import write_report

    with plain_errors(), unusable_files():
        for path in write_report(out):
            if path.suffix in (".md", ".html"):
                print(path)
