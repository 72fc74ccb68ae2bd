"""`asmg backup`, `asmg restore` and `asmg verify`."""

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from service.cli.errors import plain_errors, unusable_files
from service.cli.installation import DataDir, load_settings, use_database
from service.processes.installation import installation
from service.processes.stop_request import INTERRUPTED, Interrupted, StopRequest
from service.settings import Settings
from service.storage.postgres.database import Database

if TYPE_CHECKING:
    from service.storage.backup.journal import Entry
    from service.storage.backup.manifest import Manifest
    from service.use_cases.verify import Verification

__all__ = ["backup_command", "restore_command", "verify_command"]

MEGABYTE = 1e6
"""Bytes."""


def backup_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the backup, new or empty.")],
    data_dir: DataDir = None,
) -> None:
    """Write one consistent copy of the database, and of its objects, to a folder; the service may keep running."""
    from service.storage.artifacts.objects import configured_objects
    from service.use_cases.backup import back_up

    with plain_errors(), unusable_files(), StopRequest() as stop:
        try:
            with installation(load_settings(data_dir=data_dir)) as settings:
                begun = time.perf_counter()
                manifest = stop.run(
                    lambda: use_database(
                        settings,
                        lambda database: back_up(database, folder, settings.journal, configured_objects(settings)),
                    )
                )
        except Interrupted:
            print("asmg: interrupted; nothing is left of the backup")
            raise typer.Exit(INTERRUPTED) from None
        print(f"asmg: {folder} holds {_summary(manifest)}; {_speed(manifest, begun)}")


def restore_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `asmg backup` has written.")],
    deletions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Further journal of deletions, beside the installation's own and that of the backup.",
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Load a backup into an empty database in one transaction, repeat later deletions, and verify the result."""
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
            asyncio.run(use_database(settings, require_empty_database))
            journals = read_journals(
                deletions or (), [settings.journal, *([] if manifest.journal is None else [Path(manifest.journal)])]
            )
            migrate(settings.postgres_dsn)
            entries = [entry for journal in journals.values() for entry in journal]
            deleted = asyncio.run(
                use_database(settings, lambda database: _restore(database, settings, folder, manifest, entries))
            )
            print(f"asmg: restored {_summary(manifest)}; {_speed(manifest, begun)}", flush=True)
            if journals:
                print(f"asmg: deleted {deleted} users and items again, as {', '.join(map(str, journals))} says")
            else:
                print(
                    f"asmg: found no journal of deletions: whoever was deleted after {manifest.made_at:%Y-%m-%d %H:%M} "
                    f"UTC is there again; `asmg deletions replay FILE` reads one that you have elsewhere",
                    file=sys.stderr,
                )
            _report(asyncio.run(_verify(settings)), as_json=False)


def verify_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Check every digest, reference and alias, also while the service runs; exit with 1 if one is wrong."""
    with plain_errors(), installation(load_settings(data_dir=data_dir)) as settings:
        _report(asyncio.run(_verify(settings)), as_json=as_json)


async def _restore(
    database: Database, settings: Settings, folder: Path, manifest: "Manifest", entries: "list[Entry]"
) -> int:
    from service.storage.artifacts.objects import configured_objects
    from service.storage.backup.journal import write_journal
    from service.storage.redis.connection import connect
    from service.use_cases.audit import command_line
    from service.use_cases.backup import restore

    assert settings.redis_url is not None
    redis = connect(settings.redis_url)
    try:
        if entries:  # this installation's journal keeps them from now on
            await write_journal(settings.journal, entries)
        return await restore(
            database,
            redis,
            folder,
            manifest,
            actor=command_line(),
            deletions=entries,
            objects=None if settings.artifacts_to_postgres else configured_objects(settings),
        )
    finally:
        await redis.aclose()


async def _verify(settings: Settings) -> "Verification":
    from service.storage.artifacts.objects import configured_objects
    from service.use_cases.verify import verify

    objects = configured_objects(settings)
    return await use_database(settings, lambda database: verify(database, settings.data_dir, objects))


def _summary(manifest: "Manifest") -> str:
    """What a backup holds, in a few words."""
    served = "no version yet" if manifest.serving is None else f"version {manifest.serving.version}"
    return f"{manifest.rows:,} rows of {manifest.made_at:%Y-%m-%d %H:%M:%S} UTC, serving {served}"


def _speed(manifest: "Manifest", begun: float) -> str:
    """Size, duration and rate; `begun` is a time of `time.perf_counter`."""
    seconds = time.perf_counter() - begun
    megabytes = manifest.size / MEGABYTE
    return f"{megabytes:,.1f} MB in {seconds:.1f} s, {megabytes / seconds:,.0f} MB/s"


def _report(outcome: "Verification", *, as_json: bool) -> None:
    """Print the result, and exit with 1 if anything is wrong."""
    ok = not outcome.findings
    if as_json:
        document = {"ok": ok, "artifacts": outcome.artifacts, "bytes": outcome.bytes, "findings": outcome.findings}
        print(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
    else:
        for finding in outcome.findings:
            print(finding)
        what = f"{outcome.artifacts:,} artifacts ({outcome.bytes / MEGABYTE:,.1f} MB) and all tables were looked at"
        print(f"asmg: {what}; {'all is well' if ok else f'{len(outcome.findings):,} findings'}")
    if not ok:
        raise typer.Exit(1)
