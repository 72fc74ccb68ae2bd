"""Content-addressed artifacts: the truth in Postgres, the hot ones also in Redis and as memory-mappable files."""

import asyncio
import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.storage.database import Database
from service.storage.repositories import digest_of

__all__ = ["ArtifactStore"]

logger = logging.getLogger(__name__)

HOT_SECONDS = 24 * 3600
# Redis takes values of up to 512 MB, but one value is also one reply that has to fit the socket timeout.
HOT_CHUNK_BYTES = 64 * 1024 * 1024


class ArtifactStore:
    """Stores bytes under the digest of their content, so that a name can never mean two things.

    Redis holds a copy of what is hot; whatever it answers is checked against the digest, and its failures are logged
    and never raised.
    """

    def __init__(self, database: Database, redis: Redis) -> None:
        self._database = database
        self._redis = redis

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
        if hot:
            await self._warm(digest, data)
        return digest

    async def get(self, digest: str, *, hot: bool = False) -> bytes:
        """The content with this digest, from Redis where it has it.

        Args:
            digest: what `put` returned.
            hot: whether to refill Redis with what had to be read from Postgres.

        Raises:
            ArtifactMissing: there is none.
            ArtifactCorrupt: what Postgres holds is not what the digest was made of.
        """
        data = await self._fetch_hot(digest)
        if data is None:
            async with self._database.read() as session:
                data = await session.artifacts.get(digest)
            if hot:
                await self._warm(digest, data)
        return data

    async def fetch_file(self, digest: str, folder: Path) -> Path:
        """The content as the file `<digest>.safetensors` of a folder that all processes of a host share.

        A file of that name is whole and durable: it appears by one rename after its bytes have reached the disk.
        Processes that fetch at the same time write the same bytes, and the last rename wins.
        """
        path = folder / f"{digest}.safetensors"
        if not await asyncio.to_thread(path.exists):
            data = await self.get(digest, hot=True)
            await asyncio.to_thread(_write_whole, path, data)
        return path

    async def _warm(self, digest: str, data: bytes) -> None:
        starts = range(0, len(data), HOT_CHUNK_BYTES)
        try:
            for index, start in enumerate(starts):
                await self._redis.set(_key(digest, index), data[start : start + HOT_CHUNK_BYTES], ex=HOT_SECONDS)
            # The count comes last: whoever reads it finds the chunks.
            await self._redis.set(_key(digest, "chunks"), len(starts), ex=HOT_SECONDS)
        except RedisError as error:
            logger.warning("artifact %s was not copied to Redis: %s", digest, error)

    async def _fetch_hot(self, digest: str) -> bytes | None:
        try:
            chunks = await self._redis.get(_key(digest, "chunks"))
            if chunks is None:
                return None
            parts = [await self._redis.get(_key(digest, index)) for index in range(int(chunks))]
        except RedisError as error:
            logger.warning("artifact %s is read from Postgres, for Redis does not answer: %s", digest, error)
            return None
        if None in parts:  # evicted or expired
            return None
        data = b"".join(cast(list[bytes], parts))  # the client does not decode
        if await digest_of(data) == digest:
            return data
        logger.error("artifact %s is corrupt in Redis; it is read from Postgres", digest)
        with suppress(RedisError):
            await self._redis.delete(_key(digest, "chunks"))
        return None


def _key(digest: str, part: int | str) -> str:
    return f"asmg:artifact:{digest}:{part}"


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole, and on the disk, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
