"""Everything that Postgres holds, as files of a folder, and back into an empty database."""

from pathlib import Path

from redis.asyncio import Redis

from service.storage.backup import Manifest, dump, load, new_backup, require_empty, write_manifest
from service.storage.database import Database
from service.storage.redis_state import purge
from service.storage.structure import frozen

__all__ = ["back_up", "require_empty_database", "restore"]


async def back_up(database: Database, folder: Path) -> Manifest:
    """Write all that one moment of the database holds to a folder, while the service works on.

    Args:
        database: nothing is changed in it, and nothing waits for the backup but what drops or alters a table.
        folder: new or empty; what is written before a failure is removed again.

    Raises:
        BackupError: the folder holds something, or cannot be written to.
        NotReady: Postgres does not answer, or others keep a table locked.
    """
    with new_backup(folder):
        async with frozen(database) as (session, tables):
            manifest = await dump(session, tables, folder)
        return write_manifest(folder, manifest)


async def require_empty_database(database: Database) -> None:
    """Return where a backup can be restored: the service has no tables there, or no rows in them.

    Raises:
        BackupError: it has, and in which; or the tables are another program's.
        NotReady: Postgres does not answer.
    """
    async with database.read() as session:
        await require_empty(session.connection)


async def restore(database: Database, redis: Redis, folder: Path, manifest: Manifest, *, actor: str) -> None:
    """Load a backup, all of it or nothing.

    What Redis holds belongs to another past, so it is removed first; what the service needs of it comes again from
    Postgres, as it is asked for.

    Args:
        database: with the schema of the backup, and no rows.
        redis: of the same installation.
        folder, manifest: as `read_backup` has found them whole.
        actor: for the audit, which says when what came after the backup was lost.

    Raises:
        BackupError: the database is not empty, or does not take the rows.
        NotReady: Postgres or Redis does not answer, or others use the tables.
    """
    await purge(redis)
    async with database.unit_of_work() as work:
        await load(work.connection, folder, manifest)
        detail = {"made_at": manifest.made_at.isoformat(), "sha256": manifest.sha256, "rows": manifest.rows}
        await work.audit.add(actor, "restore", detail)
        await work.commit()
