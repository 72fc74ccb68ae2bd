"""`asmg deletions …`: export the journal of deletions, and repeat them on a database restored from an old copy."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from service.cli.errors import plain_errors, unusable_files
from service.cli.installation import DataDir, load_settings, with_database
from service.processes.installation import installation
from service.settings import Settings
from service.storage.backup.journal import Entry, entry_of, read_journal, write_journal
from service.storage.postgres.database import Database
from service.storage.redis.connection import connect
from service.storage.redis.histories import HistoryStore
from service.use_cases.audit import command_line
from service.use_cases.replay_deletions import replay

__all__ = ["deletions"]

deletions = typer.Typer(help="Journal of the users and items that were deleted.", no_args_is_help=True)


@deletions.command("export")
def export_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="New file to write.")],
    data_dir: DataDir = None,
) -> None:
    """Write all deletions that the database knows to a file, in the format of the journal."""

    async def export(database: Database) -> int:
        async with database.read() as session:
            found = await session.deletions.list()
        await write_journal(file, map(entry_of, found))
        return len(found)

    with plain_errors(), unusable_files():
        if file.exists():
            raise ValueError(f"{file}: expected a new file; received one that is there")
        print(f"asmg: {file} holds {with_database(data_dir, export):,} deletions")


@deletions.command("replay")
def replay_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE …", help="Journals, or files that `export` wrote.")],
    data_dir: DataDir = None,
) -> None:
    """Repeat deletions that are newer than the copy the database was restored from; the service may keep running."""
    with plain_errors(), unusable_files():
        entries = [entry for file in files for entry in read_journal(file)]
        with installation(load_settings(data_dir=data_dir)) as settings:
            found = asyncio.run(_replay(settings, entries))
        print(f"asmg: read {len(entries):,} deletions; deleted {found:,} users and items")


async def _replay(settings: Settings, entries: list[Entry]) -> int:
    assert settings.postgres_dsn is not None and settings.redis_url is not None
    database, redis = Database(settings.postgres_dsn, pool_size=1), connect(settings.redis_url)
    try:
        await write_journal(settings.journal, entries)
        histories = HistoryStore(redis, database)
        return await replay(database, histories, settings.journal, entries, actor=command_line())
    finally:
        await redis.aclose()
        await database.close()
