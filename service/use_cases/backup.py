"""Back up everything that Postgres holds to a folder of files, and restore it into an empty database."""

from collections.abc import Sequence
from pathlib import Path

from redis.asyncio import Redis

from service.storage.artifacts.objects import Objects
from service.storage.backup.dump import dump, new_backup
from service.storage.backup.journal import Entry
from service.storage.backup.load import load, require_empty
from service.storage.backup.manifest import Manifest, write_manifest
from service.storage.backup.objects import place_objects, upload
from service.storage.postgres.database import Database
from service.storage.postgres.structure import frozen
from service.storage.redis.connection import purge
from service.use_cases.replay_deletions import replay_all
from service.use_cases.webhooks.endpoints import switch_off_all

__all__ = ["back_up", "require_empty_database", "restore"]


async def back_up(
    database: Database, folder: Path, journal: Path | None = None, objects: Objects | None = None
) -> Manifest:
    """Write the contents of the database at one moment to a folder, while the service goes on working.

    What is in the object store is written to the folder too; no object is removed meanwhile.

    Args:
        database: nothing is changed in it, and only statements that drop or alter a table wait for the backup.
        folder: new or empty; after a failure it is emptied again.
        journal: path of the journal of deletions, which the backup names so that a restore finds it.
        objects: the object store of the installation; None where it has none.

    Raises:
        ArtifactError: an object is missing or damaged.
        BackupError: the folder is not empty, or cannot be written to.
        NotReady: Postgres or the object store does not answer, or others keep a table locked.
    """
    with new_backup(folder):
        async with frozen(database) as (session, tables):
            manifest = await dump(session, tables, folder, journal, objects)
        return write_manifest(folder, manifest)


async def require_empty_database(database: Database) -> None:
    """Make sure that a backup can be restored: the service has no tables there, or none with rows.

    Raises:
        BackupError: there are rows (it says in which tables), or the tables are another program's.
        NotReady: Postgres does not answer.
    """
    async with database.read() as session:
        await require_empty(session.connection)


async def restore(
    database: Database,
    redis: Redis,
    folder: Path,
    manifest: Manifest,
    *,
    actor: str,
    deletions: Sequence[Entry] = (),
    objects: Objects | None = None,
) -> int:
    """Load a backup and carry out the deletions that came after it, in one transaction.

    All webhooks are switched off, with an alert each, and what waits for them is given up: an operator says what is to
    be sent again. Redis is emptied first, because it belongs to another past; it is filled again from Postgres as it is
    used. Objects are uploaded before the transaction; if it fails, they belong to nothing and are removed as such.

    Args:
        database: with the schema of the backup, and no rows.
        redis: the installation's; its keys are removed.
        folder: of the backup.
        manifest: of the backup, as `read_backup` has read and checked it.
        actor: for the audit, which says that everything after the backup was lost, and when.
        deletions: the entries of the installation's journal; those that the backup knows are skipped.
        objects: the object store for what was in one; None puts it into Postgres.

    Returns:
        number of users and items in the backup that were deleted after it was made.

    Raises:
        BackupError: the database is not empty, or refuses the rows, or the objects took half a day.
        NotReady: Postgres, Redis or the object store does not answer, or others use the tables.
    """
    await purge(redis)
    uploaded = None if objects is None else await upload(database, objects, folder, manifest)
    async with database.unit_of_work() as work:
        await load(work.connection, folder, manifest)
        await place_objects(work, folder, manifest, uploaded)
        deleted = await replay_all(work, deletions)
        detail = {"made_at": manifest.made_at.isoformat(), "sha256": manifest.sha256, "rows": manifest.rows}
        await work.audit.add(actor, "restore", {**detail, "deletions_read": len(deletions), "deleted": deleted})
        # What waits was delivered since, most likely, and the copy may be one to try things on.
        reason = f"the database was restored from a backup of {manifest.made_at:%Y-%m-%d %H:%M} UTC"
        await switch_off_all(work, reason, actor=actor)
        await work.commit()
    return deleted
