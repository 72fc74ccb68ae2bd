"""Content-addressed blobs in Postgres, written and read in pieces: none has to fit into memory, or into one message."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import timedelta

from sqlalchemy import func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing
from service.storage.postgres import tables
from service.storage.postgres.outages import damage

__all__ = ["CHUNK_BYTES", "Artifacts", "digest_of"]

CHUNK_BYTES = 8 * 1024 * 1024

# A digest counts as used wherever it stands in a state, also inside lists.
DELETE_UNUSED = text("""
    DELETE FROM artifacts
    WHERE digest = ANY (CAST(:digests AS text[]))
      AND NOT EXISTS (SELECT FROM model_versions WHERE serving_digest = artifacts.digest)
      AND digest NOT IN (
          SELECT value #>> '{}'
          FROM model_versions, jsonb_path_query(state, 'strict $.** ? (@.type() == "string")') AS value
      )
    RETURNING digest
""")


async def digest_of(data: bytes) -> str:
    """The SHA-256 of the content, in hex; computed in a thread, for large models take a while."""
    return (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()


class Artifacts:
    """Tables `artifacts` and `artifact_chunks`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def put(self, data: bytes, kind: str) -> str:
        """Store the content unless it is stored already; return its digest."""
        digest = await digest_of(data)
        starts = range(0, len(data), CHUNK_BYTES)
        await self.put_chunks(digest, (data[start : start + CHUNK_BYTES] for start in starts), len(data), kind)
        return digest

    async def put_chunks(self, digest: str, chunks: Iterable[bytes], size: int, kind: str) -> None:
        """Store content whose digest is known, unless it is stored already.

        Args:
            digest: of the whole content.
            chunks: the content, `CHUNK_BYTES` at a time.
            size: of the whole content, in bytes.
            kind: what it is.
        """
        statement = upsert(tables.artifacts).values(digest=digest, kind=kind, size=size).on_conflict_do_nothing()
        if (await self._connection.execute(statement.returning(tables.artifacts.c.digest))).first() is None:
            return
        for index, data in enumerate(chunks):
            chunk = {"digest": digest, "index": index, "data": data}
            await self._connection.execute(insert(tables.artifact_chunks).values(chunk))

    async def get(self, digest: str) -> bytes:
        """The content with this digest.

        Raises:
            ArtifactMissing: there is none.
            ArtifactCorrupt: what is stored is not what the digest was made of.
        """
        data = b"".join([piece async for piece in self.pieces(digest, CHUNK_BYTES)])
        if (actual := await digest_of(data)) != digest:
            raise ArtifactCorrupt(digest, actual)
        return data

    async def size(self, digest: str) -> int:
        """Bytes of the content.

        Raises:
            ArtifactMissing: there is none.
        """
        query = select(tables.artifacts.c.size).where(tables.artifacts.c.digest == digest)
        found = await self._connection.scalar(query)
        if found is None:
            raise ArtifactMissing(digest)
        return int(found)

    async def sizes(self) -> dict[str, int]:
        """All digests, with the bytes of each content."""
        query = select(tables.artifacts.c.digest, tables.artifacts.c.size).order_by(tables.artifacts.c.digest)
        return {digest: int(size) for digest, size in await self._connection.execute(query)}

    async def pieces(self, digest: str, size: int) -> AsyncIterator[bytes]:
        """What is stored under this digest, in pieces of at most `size` bytes, which nobody has compared with it.

        Raises:
            ArtifactMissing: there is none.
        """
        await self.size(digest)
        chunks = tables.artifact_chunks
        query = select(chunks.c.index, func.length(chunks.c.data)).where(chunks.c.digest == digest)
        for index, length in (await self._connection.execute(query.order_by(chunks.c.index))).all():
            for start in range(0, length, size):
                # The column is stored uncompressed, so Postgres reads the part that is asked for and no more.
                part = func.substring(chunks.c.data, start + 1, size)
                one = select(part).where(chunks.c.digest == digest, chunks.c.index == index)
                yield (await self._connection.execute(one)).scalar_one()

    async def stored_digest(self, digest: str) -> str:
        """The SHA-256, in hex, of what is stored under this digest: the same, where that is whole.

        One chunk of it is in memory at a time, and threads compute.

        Raises:
            ArtifactMissing: there is none.
            ArtifactError: Postgres itself finds it damaged.
        """
        found = hashlib.sha256()
        try:
            async for piece in self.pieces(digest, CHUNK_BYTES):
                await asyncio.to_thread(found.update, piece)
        except DBAPIError as error:
            if (reason := damage(error)) is None:
                raise
            raise ArtifactError(digest, reason) from error
        return found.hexdigest()

    async def older_than(self, age: timedelta) -> Sequence[str]:
        """Digests of all artifacts that were stored at least so long ago."""
        query = select(tables.artifacts.c.digest).where(tables.artifacts.c.created_at <= func.clock_timestamp() - age)
        return (await self._connection.execute(query)).scalars().all()

    async def delete(self, digests: Sequence[str]) -> set[str]:
        """Delete those of the artifacts that no model version names, as serving model or in its state; return them."""
        result = await self._connection.execute(DELETE_UNUSED, {"digests": list(digests)})
        return set(result.scalars())
