"""Brings the objects of a backup into the object store of an installation, or into Postgres where it has none.

`service.use_cases.backup.restore` calls it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service.errors import BackupError
from service.storage.artifacts.objects import Objects
from service.storage.artifacts.store import file_chunks, object_key
from service.storage.backup.manifest import Manifest
from service.storage.postgres.database import Database, UnitOfWork
from service.storage.postgres.repositories import CHUNK_BYTES, Upload

__all__ = ["Uploaded", "place_objects", "upload"]


@dataclass(frozen=True)
class Uploaded:
    """Objects that no row names yet."""

    upload: Upload
    keys: Mapping[str, str]
    """Digest → key of the object."""


async def upload(database: Database, objects: Objects, folder: Path, manifest: Manifest) -> Uploaded:
    """Store every object of a backup under a new key.

    Args:
        database: the one that will name them.
        objects: where to store them.
        folder: of the backup.
        manifest: of the backup, whose files were compared with it.

    Raises:
        NotReady: Postgres or the object store does not answer.
    """
    async with database.read() as session:
        begun = await session.artifacts.begin_upload()
    keys = {file.sha256: object_key(begun.owner, file.sha256) for file in manifest.objects}
    for file in manifest.objects:
        await objects.put(keys[file.sha256], folder / file.name)
    return Uploaded(begun, keys)


async def place_objects(work: UnitOfWork, folder: Path, manifest: Manifest, uploaded: Uploaded | None) -> None:
    """Make the artifacts of a loaded backup name their new objects, or take their contents into Postgres.

    Args:
        work: the transaction that has loaded the tables; nobody else can use them until it ends.
        folder: of the backup.
        manifest: of the backup.
        uploaded: the objects; None for Postgres.

    Raises:
        BackupError: the upload was begun so long ago that the objects may be removed as orphans.
    """
    for file in manifest.objects:
        if uploaded is None:
            await work.artifacts.move_here(file.sha256, file_chunks(folder / file.name, CHUNK_BYTES), file.size)
        else:
            await work.artifacts.move(file.sha256, uploaded.keys[file.sha256])
    if uploaded is not None and not await work.artifacts.may_name(uploaded.upload):
        raise BackupError("the upload of the objects took so long that they may be removed; restore again")
