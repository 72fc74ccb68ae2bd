"""`asmg backup`, `asmg restore`, `asmg verify`; each imports what it needs, which other commands do without."""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import orjson
import typer

from service.cli.errors import plain_errors, unusable_files
from service.cli.installation import DataDir, load_settings
from service.processes.children import INTERRUPTED, Interrupted, StopRequest
from service.processes.supervisor import installation
from service.settings import Settings
from service.storage.postgres.database import Database

if TYPE_CHECKING:
    from service.storage.backup.journal import Entry
    from service.storage.backup.manifest import Manifest
    from service.use_cases.verify import Verification

__all__ = ["backup_command", "restore_command", "verify_command"]

T = TypeVar("T")

MEGABYTE = 1e6


def backup_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is new or empty.")],
    data_dir: DataDir = None,
) -> None:
    """Write all that Postgres holds at one moment to a folder, while the service works on."""
    from service.use_cases.backup import back_up

    with plain_errors(), unusable_files(), StopRequest() as stop:
        try:
            with installation(load_settings(data_dir=data_dir)) as settings:
                begun = time.perf_counter()
                manifest = stop.run(
                    lambda: _using(settings, lambda database: back_up(database, folder, settings.journal))
                )
        except Interrupted:
            print("asmg: interrupted; nothing is left of the backup")
            raise typer.Exit(INTERRUPTED) from None
        print(f"asmg: {folder} holds {_described(manifest)}; {_pace(manifest, begun)}")


def restore_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `asmg backup` has written.")],
    deletions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="A journal of deletions, beside the installation's own and the one that was backed up."
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Load a backup into an empty database, all of it or nothing, delete again who was deleted since, and verify it."""
    from service.storage.backup.journal import read_journals
    from service.storage.backup.manifest import read_backup
    from service.storage.postgres.migrate import migrate
    from service.use_cases.backup import require_empty_database

    with plain_errors(), unusable_files():
        print(f"asmg: comparing the files of {folder} with their digests", flush=True)
        manifest = read_backup(folder)
        with installation(load_settings(data_dir=data_dir), any_schema=True) as settings:
            assert settings.postgres_dsn is not None
            begun = time.perf_counter()
            asyncio.run(_using(settings, require_empty_database))
            journals = read_journals(
                deletions or (), [settings.journal, *([] if manifest.journal is None else [Path(manifest.journal)])]
            )
            migrate(settings.postgres_dsn)
            entries = [entry for journal in journals.values() for entry in journal]
            deleted = asyncio.run(
                _using(settings, lambda database: _restore(database, settings, folder, manifest, entries))
            )
            print(f"asmg: restored {_described(manifest)}; {_pace(manifest, begun)}", flush=True)
            if journals:
                print(f"asmg: deleted {deleted} users and items again, as {', '.join(map(str, journals))} says")
            else:
                print(
                    f"asmg: found no journal of deletions: whoever was deleted after {manifest.made_at:%Y-%m-%d %H:%M} "
                    f"UTC is there again; `asmg deletions replay FILE` reads one that you have elsewhere",
                    file=sys.stderr,
                )
            _say(asyncio.run(_verify(settings)), as_json=False)


def verify_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Check every digest, reference and alias; the exit code is 0 only if all is well. The service may work on."""
    with plain_errors(), installation(load_settings(data_dir=data_dir)) as settings:
        _say(asyncio.run(_verify(settings)), as_json=as_json)


async def _restore(
    database: Database, settings: Settings, folder: Path, manifest: "Manifest", entries: "list[Entry]"
) -> int:
    from service.storage.backup.journal import write_journal
    from service.storage.redis.connection import connect
    from service.use_cases.audit import command_line
    from service.use_cases.backup import restore

    assert settings.redis_url is not None
    redis = connect(settings.redis_url)
    try:
        if entries:  # from now on this installation's journal has them too
            await write_journal(settings.journal, entries)
        return await restore(database, redis, folder, manifest, actor=command_line(), deletions=entries)
    finally:
        await redis.aclose()


async def _verify(settings: Settings) -> "Verification":
    from service.use_cases.verify import verify

    return await _using(settings, lambda database: verify(database, settings.data_dir))


async def _using(settings: Settings, use: Callable[[Database], Awaitable[T]]) -> T:
    """What `use` returns, given the database."""
    assert settings.postgres_dsn is not None
    database = Database(settings.postgres_dsn, pool_size=1)
    try:
        return await use(database)
    finally:
        await database.close()


def _described(manifest: "Manifest") -> str:
    served = "no version yet" if manifest.serving is None else f"version {manifest.serving.version}"
    return f"{manifest.rows:,} rows of {manifest.made_at:%Y-%m-%d %H:%M:%S} UTC, serving {served}"


def _pace(manifest: "Manifest", begun: float) -> str:
    seconds = time.perf_counter() - begun
    megabytes = manifest.size / MEGABYTE
    return f"{megabytes:,.1f} MB in {seconds:.1f} s, {megabytes / seconds:,.0f} MB/s"


def _say(outcome: "Verification", *, as_json: bool) -> None:
    """Print what came out, and end the program with 1 where anything is wrong."""
    well = not outcome.findings
    if as_json:
        document = {"ok": well, "artifacts": outcome.artifacts, "bytes": outcome.bytes, "findings": outcome.findings}
        print(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
    else:
        for finding in outcome.findings:
            print(finding)
        what = f"{outcome.artifacts:,} artifacts ({outcome.bytes / MEGABYTE:,.1f} MB) and all tables were looked at"
        print(f"asmg: {what}; {'all is well' if well else f'{len(outcome.findings):,} findings'}")
    if not well:
        raise typer.Exit(1)
