"""Content-addressed artifacts: the truth in Postgres, the hot ones also in Redis and as memory-mappable files."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service import files
from service.errors import ArtifactCorrupt
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import CHUNK_BYTES, digest_of

__all__ = ["FILE_SUFFIX", "ArtifactStore"]

logger = logging.getLogger(__name__)

HOT_SECONDS = 24 * 3600
HOT_OF_A_KIND = 2
"""Newest artifacts of each kind that Redis keeps: what is served, and what is about to be."""
# One value is one reply: it has to fit the socket timeout, and while it is taken in nothing else runs in the process.
HOT_CHUNK_BYTES = 1024 * 1024
# Redis is small and has the histories to keep. Whoever shares a host with the worker has a file anyway.
MOST_HOT_BYTES = 128 * 1024 * 1024

PIECE_BYTES = 512 * 1024
"""Of a file that is fetched; the event loop does nothing else while it takes one in, a third of a millisecond."""

LARGE_BYTES = 16 * 1024 * 1024
"""More than this is fetched by a process of its own, where there is a way to."""

FILE_SUFFIX = ".safetensors"

NUMBER = "chunks"
"""Field of a hot artifact that says how many others it has: "0", "1", …"""

FetchApart = Callable[[str, Path], Awaitable[None]]


class ArtifactStore:
    """Stores bytes under the digest of their content, so that a name can never mean two things.

    Redis holds a copy of what is hot; whatever it answers is checked against the digest, and its failures are logged
    and never raised.
    """

    def __init__(self, database: Database, redis: Redis, *, fetch_apart: FetchApart | None = None) -> None:
        """`fetch_apart` brings a large artifact into a folder, in another process; None: this one does it."""
        self._database = database
        self._redis = redis
        self._fetch_apart = fetch_apart

    async def put(self, data: bytes, kind: str, *, hot: bool = False) -> str:
        """Store the content durably and return its digest; the transaction that names it comes afterwards.

        Args:
            data: the content.
            kind: what it is, for people who look at the table.
            hot: whether many processes will want it at once; if so it goes to Redis too.
        """
        async with self._database.unit_of_work() as uow:
            digest = await uow.artifacts.put(data, kind)
            await uow.commit()
        if hot and len(data) <= MOST_HOT_BYTES:
            starts = range(0, len(data), HOT_CHUNK_BYTES)
            await self._warm(digest, kind, (data[start : start + HOT_CHUNK_BYTES] for start in starts))
        return digest

    async def put_file(self, file: files.DigestedFile, kind: str) -> str:
        """The same for a complete file, which many processes will want at once; a piece at a time."""
        digest, path = file.digest, file.path
        assert path is not None

        def chunks(size: int) -> Iterator[bytes]:
            with path.open("rb") as opened:
                while chunk := opened.read(size):
                    yield chunk

        async with self._database.unit_of_work() as uow:
            await uow.artifacts.put_chunks(digest, chunks(CHUNK_BYTES), file.size, kind)
            await uow.commit()
        if file.size <= MOST_HOT_BYTES:
            await self._warm(digest, kind, chunks(HOT_CHUNK_BYTES))
        return digest

    async def get(self, digest: str) -> bytes:
        """The content with this digest, from Redis where it has it.

        Raises:
            ArtifactMissing: there is none.
            ArtifactCorrupt: what Postgres holds is not what the digest was made of.
        """
        data = b"".join([piece async for piece in self._hot_pieces(digest)])
        if await digest_of(data) == digest:
            return data
        await self._forget_hot(digest)
        async with self._database.read() as session:
            return await session.artifacts.get(digest)

    async def fetch_file(self, digest: str, folder: Path) -> Path:
        """The content as a file of a folder that all processes of a host share (`service.files`).

        It is fetched by one of them at a time, while the others wait for it.

        Raises:
            ArtifactMissing: there is none.
            ArtifactCorrupt: what Postgres holds is not what the digest was made of.
        """
        if path := await asyncio.to_thread(files.find, folder, digest, FILE_SUFFIX):
            return path
        async with files.only_one(folder, "fetch"):
            if path := await asyncio.to_thread(files.find, folder, digest, FILE_SUFFIX):
                return path
            if self._fetch_apart is not None:
                async with self._database.read() as session:
                    size = await session.artifacts.size(digest)
                if size > LARGE_BYTES:
                    await self._fetch_apart(digest, folder)
                    if path := await asyncio.to_thread(files.find, folder, digest, FILE_SUFFIX):
                        return path
            return await self.download(digest, folder)

    async def download(self, digest: str, folder: Path) -> Path:
        """The content as a file of the folder, fetched by this process; raises as `fetch_file` does."""
        try:
            return await self._download(self._hot_pieces(digest), digest, folder)
        except ArtifactCorrupt:
            await self._forget_hot(digest)
            async with self._database.read() as session:
                return await self._download(session.artifacts.pieces(digest, PIECE_BYTES), digest, folder)

    async def _download(self, pieces: AsyncIterator[bytes], digest: str, folder: Path) -> Path:
        async with files.create_slowly(folder, FILE_SUFFIX) as file:
            async for piece in pieces:
                await asyncio.to_thread(file.write, piece)
            if file.digest != digest:
                raise ArtifactCorrupt(digest, file.digest)
        assert file.path is not None
        return file.path

    async def _warm(self, digest: str, kind: str, chunks: Iterator[bytes]) -> None:
        """Copy the artifact, a hash of its chunks and their number, and let go of the oldest of its kind."""
        newest = f"asmg:hot:{kind}"
        try:
            async with self._redis.pipeline() as pipeline:
                pipeline.lrem(newest, 0, digest)
                pipeline.lpush(newest, digest)
                pipeline.lrange(newest, HOT_OF_A_KIND, -1)
                pipeline.ltrim(newest, 0, HOT_OF_A_KIND - 1)
                pipeline.expire(newest, HOT_SECONDS)
                _, _, old, *_ = await pipeline.execute()
            if old:
                await self._redis.unlink(*(_key(gone.decode()) for gone in old))
            count = 0
            for count, chunk in enumerate(chunks, 1):
                await self._put_hot(digest, str(count - 1), chunk)
            # The number comes last: whoever reads it finds the chunks.
            await self._put_hot(digest, NUMBER, count)
        except RedisError as error:
            logger.warning("artifact %s was not copied to Redis: %s", digest, error)

    async def _put_hot(self, digest: str, field: str, value: bytes | int) -> None:
        async with self._redis.pipeline() as pipeline:  # both or neither, so that nothing stays for ever
            pipeline.hset(_key(digest), field, value)
            pipeline.expire(_key(digest), HOT_SECONDS)
            await pipeline.execute()

    async def _hot_pieces(self, digest: str) -> AsyncIterator[bytes]:
        """What Redis has of the artifact, from its beginning, which nobody has compared with the digest."""
        with suppress(RedisError, ValueError):  # a count that is no number
            chunks = await self._redis.hget(_key(digest), NUMBER)
            for index in range(int(chunks or 0)):
                piece = await self._redis.hget(_key(digest), str(index))
                if piece is None:  # evicted or expired meanwhile
                    return
                yield cast(bytes, piece)  # the client does not decode

    async def _forget_hot(self, digest: str) -> None:
        """Redis has not all of the artifact, or not what it should be: nobody shall try again."""
        with suppress(RedisError):
            if await self._redis.unlink(_key(digest)):
                logger.warning("artifact %s is not whole in Redis; it is read from Postgres", digest)


def _key(digest: str) -> str:
    return f"asmg:artifact:{digest}"
