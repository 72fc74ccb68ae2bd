"""Everything that Postgres holds, as files of a folder, and back into an empty database."""

from collections.abc import Sequence
from pathlib import Path

from redis.asyncio import Redis

from service.storage.backup.dump import dump, new_backup
from service.storage.backup.journal import Entry
from service.storage.backup.load import load, require_empty
from service.storage.backup.manifest import Manifest, write_manifest
from service.storage.postgres.database import Database
from service.storage.postgres.structure import frozen
from service.storage.redis.connection import purge
from service.use_cases.forget import replay_all

__all__ = ["back_up", "require_empty_database", "restore"]


async def back_up(database: Database, folder: Path, journal: Path | None = None) -> Manifest:
    """Write all that one moment of the database holds to a folder, while the service works on.

    Args:
        database: nothing is changed in it, and nothing waits for the backup but what drops or alters a table.
        folder: new or empty; what is written before a failure is removed again.
        journal: of the installation's deletions; whoever restores the backup looks for it there.

    Raises:
        BackupError: the folder holds something, or cannot be written to.
        NotReady: Postgres does not answer, or others keep a table locked.
    """
    with new_backup(folder):
        async with frozen(database) as (session, tables):
            manifest = await dump(session, tables, folder, journal)
        return write_manifest(folder, manifest)


async def require_empty_database(database: Database) -> None:
    """Return where a backup can be restored: the service has no tables there, or no rows in them.

    Raises:
        BackupError: it has, and in which; or the tables are another program's.
        NotReady: Postgres does not answer.
    """
    async with database.read() as session:
        await require_empty(session.connection)


async def restore(
    database: Database, redis: Redis, folder: Path, manifest: Manifest, *, actor: str, deletions: Sequence[Entry] = ()
) -> int:
    """Load a backup, all of it or nothing, and with it carry out the deletions that came after it.

    What Redis holds belongs to another past, so it is removed first; what the service needs of it comes again from
    Postgres, as it is asked for.

    Args:
        database: with the schema of the backup, and no rows.
        redis: of the same installation.
        folder, manifest: as `read_backup` has found them whole.
        actor: for the audit, which says when what came after the backup was lost.
        deletions: of the installation, as its journal has them; those that the backup knows are done already.

    Returns:
        how many users and items were deleted after the backup, of which it had something.

    Raises:
        BackupError: the database is not empty, or does not take the rows.
        NotReady: Postgres or Redis does not answer, or others use the tables.
    """
    await purge(redis)
    async with database.unit_of_work() as work:
        await load(work.connection, folder, manifest)
        deleted = await replay_all(work, deletions)
        detail = {"made_at": manifest.made_at.isoformat(), "sha256": manifest.sha256, "rows": manifest.rows}
        await work.audit.add(actor, "restore", {**detail, "deletions_read": len(deletions), "deleted": deleted})
        await work.commit()
    return deleted
