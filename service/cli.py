"""The program `asmg`."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from asmg.datasets import ColumnMap, CutBy, LogFormatError, TimestampFormat
from service import __version__
from service.errors import ServiceError
from service.settings import Settings
from service.storage.database import Database
from service.supervisor import configure_logging, installation, run_worker, serve
from service.use_cases.auth import SCOPES, create_key, list_keys, revoke_key

__all__ = ["app"]

T = TypeVar("T")

app = typer.Typer(
    name="asmg",
    help="A click-through-rate service that learns period by period.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
keys = typer.Typer(help="API keys: who may call what.", no_args_is_help=True)
app.add_typer(keys, name="keys")
bench = typer.Typer(help="What the update methods cost on this machine.", no_args_is_help=True)
app.add_typer(bench, name="bench")

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of the embedded servers and the snapshots. [ASMG_DATA_DIR]")
]


def load_settings(**overrides: Any) -> Settings:
    """The settings of the environment; those of `overrides` that are not None win."""
    return Settings(**{name: value for name, value in overrides.items() if value is not None})


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the program with one line for what a user can set right; anything else keeps its trace."""
    try:
        yield
    except ValidationError as error:
        for fault in error.errors(include_url=False, include_input=False):
            name = "_".join(("ASMG", *(str(part).upper() for part in fault["loc"])))
            print(f"asmg: {name if fault['loc'] else 'settings'}: {fault['msg']}", file=sys.stderr)
        raise typer.Exit(2) from None
    except (ServiceError, ValueError) as error:
        print(f"asmg: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


@contextmanager
def unusable_files() -> Iterator[None]:
    """End the program with one line for a file that is not there or not as it should be."""
    try:
        yield
    except LogFormatError as error:
        print(f"asmg: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except OSError as error:
        if error.filename is None:  # not a file that the user named
            raise
        print(f"asmg: {error.filename}: {error.strerror}", file=sys.stderr)
        raise typer.Exit(2) from None


def _with_database(data_dir: Path | None, use: Callable[[Database], Awaitable[T]]) -> T:
    """What `use` returns, given the database of the installation."""

    async def run(dsn: str) -> T:
        database = Database(dsn, pool_size=1)
        try:
            return await use(database)
        finally:
            await database.close()

    with installation(load_settings(data_dir=data_dir)) as settings:
        assert settings.postgres_dsn is not None
        return asyncio.run(run(settings.postgres_dsn))


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def asmg(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """A click-through-rate service that learns period by period."""
    configure_logging()


@app.command("demo")
def demo_command(
    periods: Annotated[
        int | None,
        typer.Option(min=1, help="How many to play: 8 of the synthetic stream, all of DIGINETICA, 31 of MovieLens."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Replay the log in this folder (DIGINETICA or MovieLens 100k) instead.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write all numbers to this file, as JSON.")] = None,
    leave: Annotated[bool, typer.Option("--exit", help="End after the story instead of staying up.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Api processes.")] = 2,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Another one is taken where it is in use.")] = 8000,
) -> None:
    """Watch a service learn from period to period without dropping a request; it lives in a temporary folder."""
    from service.demo import DemoOptions, run_demo  # with the training library, which takes seconds to import

    options = DemoOptions(periods=periods, data=data, report=report, exit=leave, seed=seed, workers=workers, port=port)
    with plain_errors(), unusable_files():
        code = run_demo(options)
    raise typer.Exit(code)


@app.command("serve")
def serve_command(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [ASMG_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 for any that is free. [ASMG_PORT]")] = None,
    workers: Annotated[int | None, typer.Option(help="Api processes. [ASMG_API_WORKERS]")] = None,
    worker: Annotated[
        bool | None,
        typer.Option("--worker/--no-worker", help="Also run the worker. By default with embedded servers only."),
    ] = None,
    migrate: Annotated[bool, typer.Option("--migrate", help="Bring the schema of the database up to date.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Serve the API; without ASMG_POSTGRES_DSN and ASMG_REDIS_URL with servers of its own."""
    with plain_errors():
        settings = load_settings(host=host, port=port, api_workers=workers, data_dir=data_dir)
        serve(settings, worker=worker, migrate_first=migrate)


@app.command("worker")
def worker_command(data_dir: DataDir = None) -> None:
    """Update the model on each period that was closed. Of several workers one works and the others wait."""
    with plain_errors(), installation(load_settings(data_dir=data_dir)) as settings:
        run_worker(settings)


@app.command("migrate")
def migrate_command(data_dir: DataDir = None) -> None:
    """Bring the schema of the database up to date."""
    with plain_errors(), installation(load_settings(data_dir=data_dir), migrate_first=True):
        print("asmg: the schema is up to date")


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="CSV (also compressed by gzip) or Parquet.")],
    by: Annotated[
        CutBy | None,
        typer.Option(help="How it is cut into periods; by day, or where --period-column is given by that."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Interactions of a period (count), periods (periods), or hours, days, weeks of each."),
    ] = None,
    user_column: Annotated[str, typer.Option(help="Ids of the users.")] = "user_id",
    item_column: Annotated[str, typer.Option(help="Ids of the items.")] = "item_id",
    label_column: Annotated[
        str | None, typer.Option(help="1 for a click, 0 for none. By default `label`, where there is such a column.")
    ] = None,
    timestamp_column: Annotated[str, typer.Option(help="When it happened.")] = "timestamp",
    categories_column: Annotated[
        str | None,
        typer.Option(help="Separated by |. By default `categories`, where there is such a column."),
    ] = None,
    period_column: Annotated[str | None, typer.Option(help="Whole numbers that grow with time.")] = None,
    positives_only: Annotated[
        bool | None,
        typer.Option("--positives-only/--with-labels", help="By default: whether there is no label column."),
    ] = None,
    negatives: Annotated[int, typer.Option(min=1, help="Sampled for each row of a log of positives only.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampled negatives.")] = 0,
    timestamp_format: Annotated[
        TimestampFormat | None,
        typer.Option(
            help="Seconds or milliseconds since 1970, RFC 3339, or that without a zone; by default recognised."
        ),
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add to the open period even where it holds other interactions.")
    ] = False,
    no_worker: Annotated[
        bool, typer.Option("--no-worker", help="Start no worker: one runs already, here or elsewhere.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Backfill from a log of interactions, period by period; stopped and started again, it goes on where it was."""
    from service.backfill import ImportOptions, run_import  # with the training library, which takes seconds to import

    by = by or ("column" if period_column else "day")
    if by == "column" and (period_column is None or size is not None):
        raise typer.BadParameter("expected --period-column, and no --size, with --by column")
    if by in ("count", "periods") and size is None:
        raise typer.BadParameter(f"expected --size with --by {by}; received none")
    options = ImportOptions(
        file=file,
        by=by,
        size=size or 1,
        columns=ColumnMap(
            user_id=user_column,
            item_id=item_column,
            timestamp=timestamp_column,
            label=label_column,
            categories=categories_column,
            period=period_column if by == "column" else None,
        ),
        positives_only=positives_only,
        negatives=negatives,
        seed=seed,
        timestamp_format=timestamp_format,
        append=append,
        worker=not no_worker,
    )
    with plain_errors(), unusable_files():
        code = run_import(options, load_settings(data_dir=data_dir))
    raise typer.Exit(code)


Users = Annotated[int | None, typer.Option(help="Of a synthetic stream: users that its traffic knows. [20,000]")]
Items = Annotated[int | None, typer.Option(help="Items that its traffic knows. [5,000]")]
Rows = Annotated[int | None, typer.Option(help="Interactions a period. [50,000]")]
History = Annotated[int | None, typer.Option(help="Earlier items of each interaction, 30 at most. [10]")]
Repeats = Annotated[int, typer.Option(help="Of every measurement; medians are printed.")]
BenchSeed = Annotated[int, typer.Option(help="Of everything random.")]
BenchReport = Annotated[Path | None, typer.Option(help="Write all numbers to this file, as JSON.")]


@bench.command("update")
def bench_update_command(
    data: Annotated[
        Path | None, typer.Option(help="The log in this folder (DIGINETICA or MovieLens 100k), not a synthetic stream.")
    ] = None,
    periods: Annotated[
        int | None, typer.Option(help="Of equal row counts, that this log is cut into; the last is measured. [31]")
    ] = None,
    users: Users = None,
    items: Items = None,
    rows: Rows = None,
    history: History = None,
    idle: Annotated[int | None, typer.Option(help="Tables so many times as large as that, 1, 10 or 100. [1]")] = None,
    methods: Annotated[str | None, typer.Option(help="Separated by commas; all by default.")] = None,
    repeats: Repeats = 5,
    reference_batches: Annotated[
        int, typer.Option(help="That the whole-table reference is timed on; scaled to all of the period.")
    ] = 5,
    threads: Annotated[int | None, typer.Option(help="Of torch, at most; by default as many as it takes.")] = None,
    seed: BenchSeed = 0,
    settings: Annotated[
        str, typer.Option(help="What we train with against the reference: as the `paper`, or our `default`.")
    ] = "paper",
    report: BenchReport = None,
) -> None:
    """Time one period's update: against a plain whole-table implementation, and of every method."""
    from benchmarks.update import UpdateOptions, run_update  # with the training library, which takes seconds to import
    from benchmarks.workload import StreamSizes

    sizes = _given(users=users, items=items, rows=rows, history=history, idle=idle)
    with plain_errors(), unusable_files():
        if data is not None and sizes:
            raise ValueError(
                f"expected --data or the sizes of a stream; received both, --data and --{next(iter(sizes))}"
            )
        if data is None and periods is not None:
            raise ValueError("expected --periods with --data; a synthetic stream has as many as are needed")
        options = UpdateOptions(
            data=data,
            sizes=StreamSizes(**sizes),
            methods=None if methods is None else tuple(name.strip() for name in methods.split(",")),
            repeats=repeats,
            reference_batches=reference_batches,
            threads=threads,
            seed=seed,
            settings=settings,  # type: ignore[arg-type] # checked by UpdateOptions
            report=report,
            **_given(periods=periods),
        )
        code = run_update(options)
    raise typer.Exit(code)


@bench.command("scaling")
def bench_scaling_command(
    idle: Annotated[
        str, typer.Option(help="How many times as large as the traffic needs the tables are.")
    ] = "1,10,100",
    users: Users = None,
    items: Items = None,
    rows: Rows = None,
    history: History = None,
    repeats: Repeats = 9,
    threads: Annotated[int | None, typer.Option(help="Of torch. [1]")] = None,
    seed: BenchSeed = 0,
    report: BenchReport = None,
    chart: Annotated[Path | None, typer.Option(help="Draw it into this file, .svg or .png; needs matplotlib.")] = None,
) -> None:
    """Time one period's update on tables with more and more ids that no batch touches."""
    from benchmarks.scaling import ScalingOptions, run_scaling
    from benchmarks.workload import StreamSizes

    with plain_errors(), unusable_files():
        if not all(part.strip().isdecimal() for part in idle.split(",")):
            raise ValueError(f"idle: expected whole numbers separated by commas; received {idle!r}")
        options = ScalingOptions(
            sizes=StreamSizes(**_given(users=users, items=items, rows=rows, history=history)),
            factors=tuple(int(part) for part in idle.split(",")),
            repeats=repeats,
            seed=seed,
            report=report,
            chart=chart,
            **_given(threads=threads),
        )
        code = run_scaling(options)
    raise typer.Exit(code)


def _given(**values: int | None) -> dict[str, int]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


@keys.command("create")
def create_key_command(
    name: Annotated[str, typer.Argument(help="What the key is for, or whose it is; the audit names it.")],
    scope: Annotated[
        list[str],
        typer.Option("--scope", "--scopes", help=f"One or more of {', '.join(SCOPES)}; with commas, or given again."),
    ],
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, this once."""
    scopes = [part.strip() for value in scope for part in value.split(",")]
    with plain_errors():
        key_id, key = _with_database(data_dir, lambda database: create_key(database, name, scopes))
        print(f"asmg: key {key_id}; it is shown only now", file=sys.stderr)
        print(key)


@keys.command("list")
def list_keys_command(data_dir: DataDir = None) -> None:
    """List all keys ever made."""
    with plain_errors():
        table = Table("id", "name", "scopes", "created", "revoked")
        for key in _with_database(data_dir, list_keys):
            created, revoked = (f"{at:%Y-%m-%d %H:%M}" if at else "" for at in (key.created_at, key.revoked_at))
            table.add_row(key.key_id, key.name, " ".join(key.scopes), created, revoked)
        Console().print(table)


@keys.command("revoke")
def revoke_key_command(
    key_id: Annotated[str, typer.Argument(help="The id of `asmg keys list`.")], data_dir: DataDir = None
) -> None:
    """Revoke a key for ever; the api processes refuse it a second later."""
    with plain_errors():
        if not _with_database(data_dir, lambda database: revoke_key(database, key_id)):
            raise ValueError(f"there is no valid key {key_id}")
        print(f"asmg: key {key_id} is revoked")


if __name__ == "__main__":
    app()
