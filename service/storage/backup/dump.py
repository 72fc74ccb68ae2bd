"""Writes the files of a backup. `service.use_cases.backup.back_up` calls it."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service import __version__, files
from service.errors import ArtifactCorrupt, BackupError
from service.storage.artifacts.contents import object_pieces
from service.storage.artifacts.objects import Objects
from service.storage.backup.copy_protocol import binary_copy, copied_rows, refusals
from service.storage.backup.manifest import (
    MANIFEST,
    OBJECT_SUFFIX,
    SUFFIX,
    Manifest,
    ObjectFile,
    Serving,
    TableFile,
)
from service.storage.postgres.database import ReadSession
from service.storage.postgres.repositories import AliasName, Stored
from service.storage.postgres.structure import StoredTable, counters

__all__ = ["dump", "new_backup"]

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished"
"""Name of the file that marks a folder to which a backup is being written."""

PIECE_BYTES = 1024 * 1024
"""Bytes that are collected before they are written. A row is held in memory as a whole; the largest rows, chunks of
artifacts, have 8 MiB."""

ABOUT = text("""
    SELECT clock_timestamp() AS made_at, current_setting('server_version') AS postgres,
           (SELECT version_num FROM alembic_version) AS revision
""")


@contextmanager
def new_backup(folder: Path) -> Iterator[None]:
    """Claim a folder for the block. If the block fails, what it wrote is removed.

    Raises:
        BackupError: the folder is neither new nor empty.
    """
    made = not folder.exists()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark = folder / UNFINISHED
    if found := sorted(file.name for file in folder.iterdir()):
        what = "an unfinished backup" if mark.exists() else found[0]
        raise BackupError(f"{folder}: expected a folder that is new or empty; received one with {what}")
    mark.touch(exist_ok=False)
    try:
        yield
        mark.unlink()
    except BaseException:
        for pattern in (f"*{SUFFIX}", f"*{OBJECT_SUFFIX}", f"{files.UNFINISHED}*", MANIFEST, UNFINISHED):
            for file in folder.glob(pattern):
                file.unlink(missing_ok=True)
        if made:
            with suppress(OSError):
                folder.rmdir()
        raise


async def dump(
    session: ReadSession,
    tables: Sequence[StoredTable],
    folder: Path,
    journal: Path | None = None,
    objects: Objects | None = None,
) -> Manifest:
    """Write a file for each table and each object; return the manifest, which is not written yet.

    Args:
        session: whose snapshot the files show.
        tables: in an order in which they can be loaded.
        folder: of the backup.
        journal: of deletions, to be named in the manifest.
        objects: the object store of the installation; None where it has none.

    Raises:
        ArtifactError: an object is missing or damaged.
        BackupError: the folder cannot be written to, or Postgres cannot read a table.
        NotReady: Postgres or the object store does not answer.
    """
    with refusals("Postgres does not give what it holds"):
        about = (await session.connection.execute(ABOUT)).one()
        champion = await session.models.alias(AliasName.CHAMPION)
        version = None if champion is None else await session.models.get(champion.version)
        return Manifest(
            made_at=about.made_at,
            release=__version__,
            revision=about.revision,
            postgres=about.postgres,
            serving=None if version is None else Serving(version=version.version, digest=version.serving_digest),
            journal=None if journal is None else str(journal),
            counters=tuple(await counters(session.connection)),
            tables=tuple([await _write_table(session.connection, table, folder) for table in tables]),
            objects=tuple(
                [
                    await _write_object(objects, digest, stored, folder)
                    for digest, stored in (await session.artifacts.all()).items()
                    if stored.key is not None
                ]
            ),
        )


async def _write_table(connection: AsyncConnection, table: StoredTable, folder: Path) -> TableFile:
    try:
        async with files.create_slowly(folder, SUFFIX, stem=table.name) as file:
            output = _BufferedFile(file)
            async with binary_copy(connection, table.name) as driver:
                copied = await driver.copy_from_table(
                    table.name, columns=table.columns, output=output.write, format="binary"
                )
            await output.flush()
    except OSError as error:  # for example a full disk; its message does not name the file
        raise BackupError(f"{folder / table.name}{SUFFIX}: {error.strerror}") from error
    written = TableFile(table=table, rows=copied_rows(copied), size=file.size, sha256=file.digest)
    logger.debug("%s: %d rows, %d bytes", written.name, written.rows, written.size)
    return written


async def _write_object(objects: Objects | None, digest: str, stored: Stored, folder: Path) -> ObjectFile:
    try:
        async with files.create_slowly(folder, OBJECT_SUFFIX, stem=digest) as file:
            async for piece in object_pieces(objects, digest, stored):
                await asyncio.to_thread(file.write, piece)
            if file.digest != digest:
                raise ArtifactCorrupt(digest, file.digest)
    except OSError as error:
        raise BackupError(f"{folder / digest}{OBJECT_SUFFIX}: {error.strerror}") from error
    return ObjectFile(sha256=digest, size=stored.size)


class _BufferedFile:
    """Collects rows, and writes `PIECE_BYTES` at a time in a thread."""

    def __init__(self, file: files.DigestedFile) -> None:
        self._file, self._piece = file, bytearray()

    async def write(self, data: bytes) -> None:
        self._piece += data
        if len(self._piece) >= PIECE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        piece, self._piece = self._piece, bytearray()
        await asyncio.to_thread(self._file.write, memoryview(piece))
