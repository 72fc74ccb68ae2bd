"""The contents of artifacts, wherever they are: in Postgres, or in the object store."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager

from sqlalchemy.exc import DBAPIError

from service.errors import ArtifactCorrupt, ArtifactError, NotReady
from service.storage.artifacts.objects import Objects
from service.storage.postgres.database import Database, ReadSession, UnitOfWork
from service.storage.postgres.outages import damage
from service.storage.postgres.repositories import CHUNK_BYTES, Stored, digest_of

__all__ = ["content", "digest_of_pieces", "object_pieces", "pieces", "pieces_in"]


async def pieces(
    database: Database, objects: Objects | None, digest: str, size: int = CHUNK_BYTES
) -> AsyncGenerator[bytes | memoryview]:
    """The content of an artifact, in pieces; it is not compared with the digest.

    A connection to Postgres is held only while it is read from there. Close the generator (`contextlib.aclosing`).

    Args:
        database: names the place of the artifact, or holds it.
        objects: the object store of the installation, if there is one.
        digest: of the artifact.
        size: most bytes of a piece from Postgres.

    Raises:
        ArtifactMissing: there is none.
        ArtifactCorrupt: its object has another size.
        ArtifactError: Postgres itself finds it damaged.
        NotReady: Postgres or the object store does not answer, or the artifact is in a store that is not configured.
    """
    async with database.read() as session:
        stored = await session.artifacts.find(digest)
        if stored.key is None:
            # Here, for outside of the session a damaged disk counts as an outage of Postgres.
            with _naming_damage(digest):
                async for chunk in session.artifacts.pieces(digest, size):
                    yield chunk
            return
    async for piece in object_pieces(objects, digest, stored):
        yield piece


async def pieces_in(
    session: ReadSession | UnitOfWork, objects: Objects | None, digest: str, stored: Stored
) -> AsyncGenerator[bytes | memoryview]:
    """`pieces`, as one transaction sees the artifact; it may be idle for as long as the object store takes.

    Args:
        session: holds the artifact, if no object does.
        objects: the object store of the installation, if there is one.
        digest: of the artifact.
        stored: where the session has found it.

    Raises:
        See `pieces`.
    """
    if stored.key is None:
        with _naming_damage(digest):
            async for chunk in session.artifacts.pieces(digest, CHUNK_BYTES):
                yield chunk
    else:
        async for piece in object_pieces(objects, digest, stored):
            yield piece


async def object_pieces(objects: Objects | None, digest: str, stored: Stored) -> AsyncIterator[memoryview]:
    """The content of an artifact that is in the object store, in pieces.

    Raises:
        ArtifactMissing: there is no such object.
        ArtifactCorrupt: it has another size.
        NotReady: the store does not answer, or is not configured.
    """
    assert stored.key is not None
    if objects is None:
        raise NotReady(f"artifact {digest} is in an object store: expected its ASMG_ARTIFACTS_URL; received none")
    async for piece in objects.pieces(stored.key, digest, stored.size):
        yield piece


async def content(digest: str, pieces: AsyncGenerator[bytes | memoryview]) -> bytes:
    """The content in these pieces.

    Raises:
        ArtifactCorrupt: it has another digest; and what `pieces` raises.
    """
    async with aclosing(pieces):
        data = b"".join([piece async for piece in pieces])
    if (actual := await digest_of(data)) != digest:
        raise ArtifactCorrupt(digest, actual)
    return data


async def digest_of_pieces(digest: str, pieces: AsyncGenerator[bytes | memoryview]) -> str:
    """The SHA-256, in hex, of the content in these pieces; another one than `digest` if the content is damaged.

    A few pieces at a time are in memory, and a thread computes the hash.

    Raises:
        ArtifactError: see `pieces`.
    """
    found = hashlib.sha256()
    async with aclosing(pieces):
        async for piece in pieces:
            await asyncio.to_thread(found.update, piece)
    return found.hexdigest()


@contextmanager
def _naming_damage(digest: str) -> Iterator[None]:
    """Raise ArtifactError, with the digest, where Postgres finds what it reads damaged."""
    try:
        yield
    except DBAPIError as error:
        if (reason := damage(error)) is None:
            raise
        raise ArtifactError(digest, reason) from error
