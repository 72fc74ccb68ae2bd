"""Content-addressed artifacts, such as snapshots and training states.

Postgres holds all of them. Redis holds copies of the hot ones, and `fetch_file` brings one onto a host as a file that
can be mapped into memory. The worker stores artifacts; `service.serving.swap` fetches snapshots in api processes.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
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
"""After so long Redis drops a hot artifact."""
HOT_OF_A_KIND = 2
"""Artifacts of each kind that Redis keeps, the newest ones: what is served, and what is about to be."""
HOT_CHUNK_BYTES = 1024 * 1024
"""Bytes of one value in Redis. Its reply has to arrive within the socket timeout, and while a process takes it in
nothing else runs there."""
MOST_HOT_BYTES = 128 * 1024 * 1024
"""The largest artifact that is copied to Redis, which is small and has the histories to keep. Processes on the host of
the worker find the file anyway."""

PIECE_BYTES = 512 * 1024
"""Bytes that are fetched from Postgres at a time; taking them in blocks the event loop for a third of a millisecond."""

FILE_SUFFIX = ".safetensors"

NUMBER = "chunks"
"""Field of a hot artifact that says how many chunks it has; these are the fields "0", "1", …"""


class ArtifactStore:
    """Stores bytes under the digest of their content, so that a name never means two things.

    What Redis answers is compared with the digest; its failures are logged and never raised.
    """

    def __init__(self, database: Database, redis: Redis) -> None:
        self._database = database
        self._redis = redis

    async def put(self, data: bytes, kind: str, *, hot: bool = False) -> str:
        """Store the content durably and return its digest; the transaction that names it comes afterwards.

        Args:
            data: the content.
            kind: what it is, such as `serving`, for people who look at the table.
            hot: whether many processes will fetch it soon; then it goes to Redis too.
        """
        async with self._database.unit_of_work() as uow:
            digest = await uow.artifacts.put(data, kind)
            await uow.commit()
        if hot and len(data) <= MOST_HOT_BYTES:
            starts = range(0, len(data), HOT_CHUNK_BYTES)
            await self._copy_to_redis(digest, kind, (data[start : start + HOT_CHUNK_BYTES] for start in starts))
        return digest

    async def put_file(self, file: files.DigestedFile, kind: str, *, hot: bool = True) -> str:
        """Store the content of a complete file, in pieces, and return its digest.

        Args:
            file: the file.
            kind: what it is, such as `serving`.
            hot: whether many processes will fetch it soon; then it goes to Redis too.
        """
        digest, path = file.digest, file.path
        assert path is not None

        def chunks(size: int) -> Iterator[bytes]:
            with path.open("rb") as opened:
                while chunk := opened.read(size):
                    yield chunk

        async with self._database.unit_of_work() as uow:
            await uow.artifacts.put_chunks(digest, chunks(CHUNK_BYTES), file.size, kind)
            await uow.commit()
        if hot and file.size <= MOST_HOT_BYTES:
            await self._copy_to_redis(digest, kind, chunks(HOT_CHUNK_BYTES))
        return digest

    async def get(self, digest: str) -> bytes:
        """The content with this digest, from Redis where it has it.

        Raises:
            ArtifactMissing: there is none.
            ArtifactCorrupt: Postgres holds content with another digest.
        """
        data = b"".join([piece async for piece in self._hot_pieces(digest)])
        if await digest_of(data) == digest:
            return data
        await self._forget_hot(digest)
        async with self._database.read() as session:
            return await session.artifacts.get(digest)

    async def fetch_file(self, digest: str, folder: Path) -> Path:
        """The content as a file of a folder that all processes of a host share (`service.files`).

        One of them at a time fetches it, while the others wait. The content comes in pieces; the event loop takes each
        in within a third of a millisecond, and a thread hashes and writes it.

        Raises:
            ArtifactMissing: there is none.
            ArtifactCorrupt: Postgres holds content with another digest.
        """
        if path := await asyncio.to_thread(files.find, folder, digest, FILE_SUFFIX):
            return path
        async with files.only_one(folder, "fetch"):
            if path := await asyncio.to_thread(files.find, folder, digest, FILE_SUFFIX):
                return path
            try:
                return await self._write_file(self._hot_pieces(digest), digest, folder)
            except ArtifactCorrupt:
                await self._forget_hot(digest)
                async with self._database.read() as session:
                    return await self._write_file(session.artifacts.pieces(digest, PIECE_BYTES), digest, folder)

    async def _write_file(self, pieces: AsyncIterator[bytes], digest: str, folder: Path) -> Path:
        async with files.create_slowly(folder, FILE_SUFFIX) as file:
            async for piece in pieces:
                await asyncio.to_thread(file.write, piece)
            if file.digest != digest:
                raise ArtifactCorrupt(digest, file.digest)
        assert file.path is not None
        return file.path

    async def _copy_to_redis(self, digest: str, kind: str, chunks: Iterator[bytes]) -> None:
        """Copy the artifact to Redis, as a hash of its chunks and their number, and remove the oldest of its kind."""
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
            # The number is written last: who reads it finds all chunks.
            await self._put_hot(digest, NUMBER, count)
        except RedisError as error:
            logger.warning("artifact %s was not copied to Redis: %s", digest, error)

    async def _put_hot(self, digest: str, field: str, value: bytes | int) -> None:
        async with self._redis.pipeline() as pipeline:  # a transaction, so that no key is without expiry
            pipeline.hset(_key(digest), field, value)
            pipeline.expire(_key(digest), HOT_SECONDS)
            await pipeline.execute()

    async def _hot_pieces(self, digest: str) -> AsyncIterator[bytes]:
        """The chunks that Redis has of the artifact, from the first on; unchecked, and perhaps not all of them."""
        with suppress(RedisError, ValueError):  # the count is no number
            chunks = await self._redis.hget(_key(digest), NUMBER)
            for index in range(int(chunks or 0)):
                piece = await self._redis.hget(_key(digest), str(index))
                if piece is None:  # evicted or expired meanwhile
                    return
                yield cast(bytes, piece)  # the client does not decode

    async def _forget_hot(self, digest: str) -> None:
        """Remove the artifact from Redis, which does not hold all of it or holds something else."""
        with suppress(RedisError):
            if await self._redis.unlink(_key(digest)):
                logger.warning("artifact %s is not whole in Redis; it is read from Postgres", digest)


def _key(digest: str) -> str:
    return f"asmg:artifact:{digest}"
