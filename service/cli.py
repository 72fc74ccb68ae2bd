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


@keys.command("create")
def create_key_command(
    name: Annotated[str, typer.Argument(help="What the key is for, or whose it is; the audit names it.")],
    scope: Annotated[list[str], typer.Option(help=f"One or more of {', '.join(SCOPES)}; give the option again.")],
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, this once."""
    with plain_errors():
        key_id, key = _with_database(data_dir, lambda database: create_key(database, name, scope))
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
