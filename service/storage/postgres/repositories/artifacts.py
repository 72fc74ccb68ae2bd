"""Content-addressed blobs: tables `artifacts` and `artifact_chunks`.

Chunks are written and read in pieces, so that no content has to fit into memory or into one message of the protocol.
Content of a single chunk is packed (`service.storage.postgres.packing`); digests and sizes are those of the content.
The content of some artifacts is an object in an object store (`service.storage.artifacts.objects`): then the row names
its key, and there are no chunks.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import ArtifactMissing, NotReady
from service.storage.postgres import tables
from service.storage.postgres.packing import MARK, pack, unpack

__all__ = ["CHUNK_BYTES", "Artifacts", "Stored", "Upload", "digest_of", "digests_in"]

CHUNK_BYTES = 8 * 1024 * 1024
"""Bytes of a chunk, one row: little enough to be held in memory a few times over."""

DIGEST = re.compile(r"[0-9a-f]{64}")
UPLOAD_AGE = timedelta(hours=12)
"""Time since an upload was begun after which no row may name its object any more, because a sweep may remove it. It is
half of `service.storage.artifacts.store.ORPHAN_AGE`."""

LOCK_NOT_AVAILABLE = "55P03"

OBJECTS_ARE_READ = 0x61736D67_00000007
"""Key of an advisory lock, beside those of `service.storage.postgres.sessions.Lock`: a lock of the table would ask for
more rights than a backup has."""

# The identifier of a cluster stays the same when a replica is promoted, and a restored database has another one.
OWNER = text("""
    SELECT to_hex(system_identifier) || '-' || oid AS owner, clock_timestamp() AS begun
    FROM pg_control_system(), pg_database WHERE datname = current_database()
""")

NAME = text("""
    INSERT INTO artifacts (digest, kind, size, key)
    SELECT CAST(:digest AS text), CAST(:kind AS text), CAST(:size AS bigint), CAST(:key AS text)
    WHERE clock_timestamp() < CAST(:begun AS timestamptz) + CAST(:age AS interval)
    ON CONFLICT DO NOTHING RETURNING digest
""")

# A digest counts as used wherever it stands in a state, also inside lists.
DELETE_UNUSED = text("""
    DELETE FROM artifacts
    WHERE digest = ANY (CAST(:digests AS text[]))
      AND NOT EXISTS (SELECT FROM model_versions WHERE serving_digest = artifacts.digest)
      AND NOT EXISTS (SELECT FROM period_samples WHERE period_samples.digest = artifacts.digest)
      AND digest NOT IN (
          SELECT value #>> '{}'
          FROM (SELECT state FROM model_versions UNION ALL SELECT state FROM shadows
                UNION ALL SELECT learned FROM shadow_periods) AS naming,
               jsonb_path_query(state, 'strict $.** ? (@.type() == "string")') AS value
      )
    RETURNING digest, key
""")


@dataclass(frozen=True, slots=True)
class Stored:
    """Where an artifact is."""

    size: int
    """Bytes of the content."""
    key: str | None
    """Of its object, relative to the URL of the object store; None where the content is in Postgres."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that is about to begin."""

    owner: str
    """Beginning of the keys of all objects that this database owns: no other one has it, unless it is a copy of the
    files of this one."""
    begun: datetime
    """The time now, by the clock of Postgres."""


async def digest_of(data: bytes) -> str:
    """The SHA-256 of the content, in hex; computed in a thread, for large models take a while."""
    return (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()


def digests_in(value: Any) -> Iterator[str]:
    """All digests of artifacts in a JSON value, at any depth."""
    if isinstance(value, str) and DIGEST.fullmatch(value):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from digests_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from digests_in(inner)


class Artifacts:
    """Tables `artifacts` and `artifact_chunks`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def put(self, data: bytes, kind: str) -> str:
        """Store content unless it is stored already; return its digest.

        Args:
            data: the content.
            kind: what it is, such as `serving` or `model`.
        """
        digest = await digest_of(data)
        starts = range(0, len(data), CHUNK_BYTES)
        await self.put_chunks(digest, (data[start : start + CHUNK_BYTES] for start in starts), len(data), kind)
        return digest

    async def sizes(self, digests: Sequence[str]) -> dict[str, int]:
        """The sizes of these artifacts in bytes, by digest; those that there are not are left out."""
        columns = tables.artifacts.c
        query = select(columns.digest, columns.size).where(columns.digest.in_(list(digests)))
        return {row.digest: int(row.size) for row in await self._connection.execute(query)}

    async def put_chunks(self, digest: str, chunks: Iterable[bytes], size: int, kind: str) -> None:
        """Store content whose digest is known, unless it is stored already.

        Args:
            digest: of the whole content.
            chunks: the content, `CHUNK_BYTES` at a time.
            size: of the whole content, in bytes.
            kind: what it is, such as `serving` or `model`.
        """
        statement = upsert(tables.artifacts).values(digest=digest, kind=kind, size=size).on_conflict_do_nothing()
        if (await self._connection.execute(statement.returning(tables.artifacts.c.digest))).first() is None:
            return
        await self._add_chunks(digest, chunks, size)

    async def _add_chunks(self, digest: str, chunks: Iterable[bytes], size: int) -> None:
        # Larger ones are the bases of tables and snapshots: api processes unpack while they answer requests.
        is_packed = size <= CHUNK_BYTES
        for index, data in enumerate(chunks):
            stored = await asyncio.to_thread(pack, data) if is_packed else data
            chunk = {"digest": digest, "index": index, "data": stored}
            await self._connection.execute(insert(tables.artifact_chunks).values(chunk))

    async def find(self, digest: str) -> Stored:
        """Where the content with this digest is.

        Raises:
            ArtifactMissing: there is none.
        """
        query = select(tables.artifacts.c.size, tables.artifacts.c.key).where(tables.artifacts.c.digest == digest)
        row = (await self._connection.execute(query)).first()
        if row is None:
            raise ArtifactMissing(digest)
        return Stored(int(row.size), row.key)

    async def all(self) -> dict[str, Stored]:
        """Digest → where it is, of all artifacts."""
        table = tables.artifacts
        query = select(table.c.digest, table.c.size, table.c.key).order_by(table.c.digest)
        return {row.digest: Stored(int(row.size), row.key) for row in await self._connection.execute(query)}

    async def pieces(self, digest: str, size: int) -> AsyncIterator[bytes]:
        """The content stored under this digest, in pieces of at most `size` bytes; not compared with the digest.

        What is damaged in its packing comes as it is stored, so that its digest is another.
        """
        chunks = tables.artifact_chunks
        mark = func.substring(chunks.c.data, 1, len(MARK))
        query = select(chunks.c.index, func.length(chunks.c.data), mark).where(chunks.c.digest == digest)
        for index, length, begin in (await self._connection.execute(query.order_by(chunks.c.index))).all():
            stored = []
            for start in range(0, length, size):
                # TOAST does not compress the column, so Postgres reads only this part of it.
                part = func.substring(chunks.c.data, start + 1, size)
                one = select(part).where(chunks.c.digest == digest, chunks.c.index == index)
                piece = (await self._connection.execute(one)).scalar_one()
                if begin == MARK:
                    stored.append(piece)
                else:
                    yield piece
            if stored:
                data = b"".join(stored)
                with suppress(ValueError):
                    data = await asyncio.to_thread(unpack, data)
                for start in range(0, len(data), size):
                    yield data[start : start + size]

    async def begin_upload(self) -> Upload:
        """What the key of a new object begins with, and when its upload begins."""
        row = (await self._connection.execute(OWNER)).one()
        return Upload(row.owner, row.begun)

    async def is_stored(self, digest: str) -> bool:
        """Whether there is content with this digest."""
        query = select(tables.artifacts.c.digest).where(tables.artifacts.c.digest == digest)
        return (await self._connection.execute(query)).first() is not None

    async def name_object(self, digest: str, kind: str, size: int, key: str, upload: Upload) -> bool:
        """Add an artifact whose content is an object; False where the artifact is stored already.

        Args:
            digest: of the content.
            kind: what it is, such as `serving` or `model`.
            size: of the content, in bytes.
            key: of the object, which was uploaded.
            upload: as `begin_upload` returned it before.

        Raises:
            NotReady: the upload took so long that the object may be removed as an orphan.
        """
        values = {"digest": digest, "kind": kind, "size": size, "key": key, "begun": upload.begun, "age": UPLOAD_AGE}
        if (await self._connection.execute(NAME, values)).first() is not None:
            return True
        if await self.is_stored(digest):
            return False
        raise NotReady(f"the upload of artifact {digest} took longer than {UPLOAD_AGE}")

    async def may_name(self, upload: Upload) -> bool:
        """Whether the objects of an upload can still be named, because no sweep removes them for hours."""
        return bool(await self._connection.scalar(select(func.clock_timestamp() < upload.begun + UPLOAD_AGE)))

    async def move(self, digest: str, key: str) -> None:
        """Name another object, or the first, that has the content of an artifact."""
        table = tables.artifacts
        await self._connection.execute(update(table).where(table.c.digest == digest).values(key=key))

    async def move_here(self, digest: str, chunks: Iterable[bytes], size: int) -> None:
        """Take the content of an artifact, `CHUNK_BYTES` at a time, into Postgres; its object is named no more.

        Args:
            digest: of the artifact.
            chunks: its content.
            size: of the whole content, in bytes.
        """
        table = tables.artifacts
        await self._connection.execute(update(table).where(table.c.digest == digest).values(key=None))
        await self._add_chunks(digest, chunks, size)

    async def lock_names(self) -> bool:
        """Let nobody name an object until the transaction ends; False where somebody is about to.

        Then a backup or a check may be reading objects too (`service.storage.postgres.structure.frozen`), or another
        transaction has changed artifacts and has not ended yet.
        """
        try:
            await self._connection.execute(text("LOCK TABLE artifacts IN EXCLUSIVE MODE NOWAIT"))
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            return False
        return bool(await self._connection.scalar(text(f"SELECT pg_try_advisory_xact_lock({OBJECTS_ARE_READ})")))

    async def keep_objects(self) -> None:
        """Keep the objects that are named now from being removed, until the transaction ends."""
        await self._connection.execute(text(f"SELECT pg_advisory_xact_lock_shared({OBJECTS_ARE_READ})"))

    async def named(self, keys: Collection[str]) -> set[str]:
        """Which of these objects artifacts name."""
        query = select(tables.artifacts.c.key).where(tables.artifacts.c.key.in_(keys))
        return set((await self._connection.execute(query)).scalars())

    async def any_object(self) -> bool:
        """Whether the content of any artifact is an object."""
        query = select(tables.artifacts.c.key).where(tables.artifacts.c.key.is_not(None)).limit(1)
        return (await self._connection.execute(query)).first() is not None

    async def older_than(self, age: timedelta) -> Sequence[str]:
        """Digests of the artifacts that were stored at least `age` ago."""
        query = select(tables.artifacts.c.digest).where(tables.artifacts.c.created_at <= func.clock_timestamp() - age)
        return (await self._connection.execute(query)).scalars().all()

    async def delete(self, digests: Sequence[str]) -> dict[str, str | None]:
        """Delete these artifacts, except those that a model version, a sample of a period or a shadow names.

        Returns:
            digest → key of its object, None where there was none, of the deleted ones. The objects are still there.
        """
        result = await self._connection.execute(DELETE_UNUSED, {"digests": list(digests)})
        return {row.digest: row.key for row in result}
