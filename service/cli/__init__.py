"""The program `asmg`."""

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from asmg.log_format import ColumnMap, CutBy
from service import __version__
from service.cli.backup import backup_command, restore_command, verify_command
from service.cli.console import make_console
from service.cli.deletions import deletions
from service.cli.errors import plain_errors, unusable_files
from service.cli.experiment import experiment
from service.cli.features import features
from service.cli.installation import DataDir, load_settings, with_database
from service.cli.models import models
from service.cli.options import (
    CategoriesColumn,
    ContextColumns,
    ItemColumn,
    ItemFeatures,
    LabelColumn,
    MalformedRows,
    Negatives,
    PositiveFrom,
    PositivesOnly,
    Rate,
    Reason,
    TimeFormat,
    TimestampColumn,
    Timezone,
    UserColumn,
    UserFeatures,
    columns_of,
    expiry_of,
)
from service.cli.periods import periods
from service.heartbeat import check_workers
from service.limits import MAX_KEY_DAYS
from service.processes.supervisor import configure_logging, installation, require_redis, run_worker, serve
from service.storage.postgres.database import Database
from service.use_cases.audit import AuditPage, list_audit
from service.use_cases.keys import SCOPES, create_key, limit_key, list_keys, revoke_key

__all__ = ["COMMANDS", "app"]

COMMANDS = "asmg.commands"
"""Entry-point group of further commands: functions and `typer.Typer` objects that other packages add to `asmg`."""

app = typer.Typer(
    name="asmg",
    help="A click-through-rate service that learns period by period.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
keys = typer.Typer(help="API keys: who may call what.", no_args_is_help=True)
app.add_typer(keys, name="keys")
app.add_typer(models, name="models")
app.add_typer(periods, name="periods")
app.add_typer(deletions, name="deletions")
app.add_typer(experiment, name="experiment")
app.add_typer(features, name="features")
app.command("backup")(backup_command)
app.command("restore")(restore_command)
app.command("verify")(verify_command)
for entry in entry_points(group=COMMANDS):
    command = entry.load()
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=entry.name)
    else:
        app.command(entry.name)(command)


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
    tls_cert: Annotated[
        Path | None, typer.Option(help="Serve HTTPS with this certificate chain (PEM). [ASMG_TLS_CERT]")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key (PEM), not encrypted. [ASMG_TLS_KEY]")] = None,
    root_path: Annotated[
        str | None, typer.Option(help="Path prefix that a proxy puts before all paths. [ASMG_ROOT_PATH]")
    ] = None,
    migrate: Annotated[bool, typer.Option("--migrate", help="Bring the schema of the database up to date.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Serve the API; without ASMG_POSTGRES_DSN and ASMG_REDIS_URL with servers of its own."""
    with plain_errors():
        settings = load_settings(
            host=host,
            port=port,
            api_workers=workers,
            tls_cert=tls_cert,
            tls_key=tls_key,
            root_path=root_path,
            data_dir=data_dir,
        )
        serve(settings, worker=worker, migrate_first=migrate)


@app.command("worker")
def worker_command(
    check: Annotated[
        bool, typer.Option("--check", help="Start none: fail unless one runs on this host and gets further.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Update the model on each period that was closed. Of several workers one works and the others wait."""
    if check:
        with plain_errors():
            settings = load_settings(data_dir=data_dir)
            age = check_workers(settings.worker_dir, settings.worker_stall_seconds)
            print(f"asmg: the worker got further {age:.1f} s ago")
        return
    with plain_errors(), installation(load_settings(data_dir=data_dir)) as settings:
        require_redis(settings)
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
    user_column: UserColumn = "user_id",
    item_column: ItemColumn = "item_id",
    label_column: LabelColumn = None,
    timestamp_column: TimestampColumn = "timestamp",
    categories_column: CategoriesColumn = None,
    period_column: Annotated[str | None, typer.Option(help="Whole numbers that grow with time.")] = None,
    positives_only: PositivesOnly = None,
    negatives: Negatives = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampled negatives.")] = 0,
    positive_from: PositiveFrom = None,
    timestamp_format: TimeFormat = None,
    timezone: Timezone = None,
    context: ContextColumns = None,
    user_feature: UserFeatures = None,
    item_feature: ItemFeatures = None,
    malformed: MalformedRows = "error",
    append: Annotated[
        bool, typer.Option("--append", help="Add to the open period even where it holds other interactions.")
    ] = False,
    no_worker: Annotated[
        bool, typer.Option("--no-worker", help="Start no worker: one runs already, here or elsewhere.")
    ] = False,
    data_dir: DataDir = None,
) -> None:
    """Backfill from a log of interactions, period by period; stopped and started again, it goes on where it was.

    Columns with the names of fields of ASMG_FEATURES are read as these; --context, --user-feature and --item-feature
    name others, field=column.
    """
    # With the training library, which takes seconds to import.
    from asmg.datasets.generic import LogOptions
    from service.cli.import_log.backfill import ImportOptions, run_import

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
                context=columns_of("context", context),
                user_features=columns_of("user-feature", user_feature),
                item_features=columns_of("item-feature", item_feature),
            ),
            malformed=malformed,  # type: ignore[arg-type] # checked by ImportOptions
            negatives=negatives,
            seed=seed,
            append=append,
            worker=not no_worker,
        )
        code = run_import(options, settings)
    raise typer.Exit(code)


@keys.command("create")
def create_key_command(
    name: Annotated[str, typer.Argument(help="What the key is for, or whose it is; the audit names it.")],
    scope: Annotated[
        list[str],
        typer.Option("--scope", "--scopes", help=f"One or more of {', '.join(SCOPES)}; with commas, or given again."),
    ],
    expires_in: Annotated[
        str | None, typer.Option(help=f"Refuse it after this time, such as 90d, 12h or 30m; {MAX_KEY_DAYS}d at most.")
    ] = None,
    expires_at: Annotated[
        str | None, typer.Option(help="Refuse it from this moment on: RFC 3339 with an offset.")
    ] = None,
    rate: Rate = None,
    reason: Reason = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, this once. Without an expiry it is good until it is revoked."""
    scopes = [part.strip() for value in scope for part in value.split(",")]
    with plain_errors():
        expiry = expiry_of(expires_in, expires_at)
        key_id, key = with_database(
            data_dir,
            lambda database: create_key(database, name, scopes, rate_limit=rate, expires_at=expiry, reason=reason),
        )
        print(f"asmg: key {key_id}; it is shown only now", file=sys.stderr)
        print(key)


@keys.command("list")
def list_keys_command(data_dir: DataDir = None) -> None:
    """List all keys ever made."""
    with plain_errors():
        table = Table("id", "name", "scopes", "rate", "created (UTC)", "expires", "revoked", "valid")
        for key in with_database(data_dir, list_keys):
            times = [f"{at:%Y-%m-%d %H:%M}" if at else "" for at in (key.created_at, key.expires_at, key.revoked_at)]
            rate = "" if key.rate_limit is None else f"{key.rate_limit:g}/s" if key.rate_limit else "any"
            table.add_row(key.key_id, key.name, " ".join(key.scopes), rate, *times, "yes" if key.valid else "no")
        make_console().print(table)


@keys.command("limit")
def limit_key_command(
    key_id: Annotated[str, typer.Argument(help="The id of `asmg keys list`.")],
    rate: Rate = None,
    reason: Reason = None,
    data_dir: DataDir = None,
) -> None:
    """Change how many requests a second a key may make; the api processes know a second later."""
    with plain_errors():
        if not with_database(data_dir, lambda database: limit_key(database, key_id, rate, reason=reason)):
            raise ValueError(f"there is no valid key {key_id}")
        print(f"asmg: key {key_id} has its new limit")


@keys.command("revoke")
def revoke_key_command(
    key_id: Annotated[str, typer.Argument(help="The id of `asmg keys list`.")],
    reason: Reason = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke a key for ever; the api processes refuse it a second later."""
    with plain_errors():
        if not with_database(data_dir, lambda database: revoke_key(database, key_id, reason=reason)):
            raise ValueError(f"there is no valid key {key_id}")
        print(f"asmg: key {key_id} is revoked")


@app.command("audit")
def audit_command(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Entries at most.")] = 50,
    actor: Annotated[str | None, typer.Option(help="Only what this one did, by the whole name.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action, such as rollback.")] = None,
    data_dir: DataDir = None,
) -> None:
    """List who did what, when and why, newest first."""

    async def entries(database: Database) -> AuditPage:
        return await list_audit(database, limit=limit, actor=actor, action=action)

    with plain_errors():
        table = Table("at (UTC)", "actor", "action", "detail", "reason", "request")
        for entry in with_database(data_dir, entries).entries:
            detail = " ".join(f"{name}={value}" for name, value in entry.detail.items())
            words = (f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.actor, entry.action, detail)
            # As text: what callers wrote is not to be taken for markup.
            table.add_row(*(Text(word) for word in (*words, entry.reason or "", entry.request_id or "")))
        make_console().print(table)
