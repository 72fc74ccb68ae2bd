"""Content-addressed blobs in Postgres: tables `artifacts` and `artifact_chunks`.

They are written and read in pieces, so that none has to fit into memory or into one message of the protocol.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import ArtifactCorrupt, ArtifactError, ArtifactMissing
from service.storage.postgres import tables
from service.storage.postgres.outages import damage

__all__ = ["CHUNK_BYTES", "Artifacts", "digest_of", "digests_in"]

CHUNK_BYTES = 8 * 1024 * 1024
"""Bytes of a chunk, one row: little enough to be held in memory a few times over."""

DIGEST = re.compile(r"[0-9a-f]{64}")

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
        for index, data in enumerate(chunks):
            chunk = {"digest": digest, "index": index, "data": data}
            await self._connection.execute(insert(tables.artifact_chunks).values(chunk))

    async def get(self, digest: str) -> bytes:
        """The content with this digest.

        Raises:
            ArtifactMissing: there is none.
            ArtifactCorrupt: the stored content has another digest.
        """
        data = b"".join([piece async for piece in self.pieces(digest, CHUNK_BYTES)])
        if (actual := await digest_of(data)) != digest:
            raise ArtifactCorrupt(digest, actual)
        return data

    async def size(self, digest: str) -> int:
        """Number of bytes of the content with this digest.

        Raises:
            ArtifactMissing: there is none.
        """
        query = select(tables.artifacts.c.size).where(tables.artifacts.c.digest == digest)
        found = await self._connection.scalar(query)
        if found is None:
            raise ArtifactMissing(digest)
        return int(found)

    async def sizes(self) -> dict[str, int]:
        """Digest → number of bytes, of all artifacts."""
        query = select(tables.artifacts.c.digest, tables.artifacts.c.size).order_by(tables.artifacts.c.digest)
        return {digest: int(size) for digest, size in await self._connection.execute(query)}

    async def pieces(self, digest: str, size: int) -> AsyncIterator[bytes]:
        """The content stored under this digest, in pieces of at most `size` bytes; it is not compared with the digest.

        Raises:
            ArtifactMissing: there is none.
        """
        await self.size(digest)
        chunks = tables.artifact_chunks
        query = select(chunks.c.index, func.length(chunks.c.data)).where(chunks.c.digest == digest)
        for index, length in (await self._connection.execute(query.order_by(chunks.c.index))).all():
            for start in range(0, length, size):
                # The column is stored uncompressed, so Postgres reads only this part of it.
                part = func.substring(chunks.c.data, start + 1, size)
                one = select(part).where(chunks.c.digest == digest, chunks.c.index == index)
                yield (await self._connection.execute(one)).scalar_one()

    async def stored_digest(self, digest: str) -> str:
        """The SHA-256, in hex, of the content stored under this digest; another one if the content is damaged.

        One chunk at a time is in memory, and a thread computes the hash.

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
        """Digests of the artifacts that were stored at least `age` ago."""
        query = select(tables.artifacts.c.digest).where(tables.artifacts.c.created_at <= func.clock_timestamp() - age)
        return (await self._connection.execute(query)).scalars().all()

    async def delete(self, digests: Sequence[str]) -> set[str]:
        """Delete these artifacts, except those that a model version names in any way; return the deleted ones."""
        result = await self._connection.execute(DELETE_UNUSED, {"digests": list(digests)})
        return set(result.scalars())
