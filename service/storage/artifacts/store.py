"""Content-addressed artifacts, such as snapshots and training states.

Postgres knows all of them. It holds their contents too, or, where the installation has an object store, the keys of the
objects that do. Redis holds copies of the hot ones, and `fetch_file` brings one onto a host as a file that can be
mapped into memory. The worker stores artifacts; `service.serving.swap` fetches snapshots in api processes.

An object is uploaded before the transaction that names it. Its key is new each time, so an object that no row names
will never be named again once its upload is `ORPHAN_AGE` old: the sweep may remove it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import aclosing, suppress
from datetime import timedelta
from pathlib import Path
from typing import cast
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service import files
from service.errors import ArtifactCorrupt, NotReady
from service.storage.artifacts.contents import content, pieces
from service.storage.artifacts.objects import Objects
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import CHUNK_BYTES, digest_of

__all__ = ["FILE_SUFFIX", "ArtifactStore", "file_chunks", "object_key"]

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

ORPHAN_AGE = timedelta(days=1)
"""Age from which on an object that no row names is removed. It is twice the time after which an upload may not be named
any more (`repositories.artifacts.UPLOAD_AGE`)."""
SWEEP_SECONDS = 3600.0
"""Least time between two looks for such objects: each lists all objects of the installation."""

REMOVED_AT_ONCE = 100
"""Objects that are deleted in one transaction, for whose end those wait who store artifacts."""

FILE_SUFFIX = ".safetensors"

Pace = Callable[[float], Awaitable[None]]
"""Waits after a piece of work; receives the seconds that it took."""

NUMBER = "chunks"
"""Field of a hot artifact that says how many chunks it has; these are the fields "0", "1", …"""


class ArtifactStore:
    """Stores bytes under the digest of their content, so that a name never means two things.

    What Redis answers is compared with the digest; its failures are logged and never raised.

    Args:
        database: names all artifacts, and holds the contents that are not objects.
        redis: holds copies of the hot ones.
        objects: the object store of the installation; None where it has none.
        to_postgres: whether new contents go to Postgres although there is an object store.
    """

    def __init__(
        self, database: Database, redis: Redis, objects: Objects | None = None, *, to_postgres: bool = False
    ) -> None:
        self._database = database
        self._redis = redis
        self._objects = objects
        self._new = None if to_postgres else objects
        self._swept_at = -SWEEP_SECONDS

    @property
    def objects(self) -> Objects | None:
        """The object store of the installation; None where it has none."""
        return self._objects

    async def put(self, data: bytes, kind: str, *, hot: bool = False) -> str:
        """Store the content durably and return its digest; the transaction that names it comes afterwards.

        Args:
            data: the content.
            kind: what it is, such as `serving`, for people who look at the table.
            hot: whether many processes will fetch it soon; then it goes to Redis too.

        Raises:
            NotReady: Postgres or the object store does not take it.
        """
        if self._new is not None:
            digest = await digest_of(data)
            await self._put_object(self._new, digest, data, len(data), kind)
        else:
            async with self._database.unit_of_work() as uow:
                digest = await uow.artifacts.put(data, kind)
                await uow.commit()
        if hot and len(data) <= MOST_HOT_BYTES:
            starts = range(0, len(data), HOT_CHUNK_BYTES)
            await self._copy_to_redis(digest, kind, (data[start : start + HOT_CHUNK_BYTES] for start in starts))
        return digest

    async def put_file(self, file: files.DigestedFile | files.KnownFile, kind: str, *, hot: bool = True) -> str:
        """Store the content of a complete file, in pieces, and return its digest.

        Args:
            file: the content.
            kind: what it is, such as `serving`, for people who look at the table.
            hot: whether many processes will fetch it soon; then it goes to Redis too.

        Raises:
            NotReady: Postgres or the object store does not take it.
        """
        digest, path = file.digest, file.path
        assert path is not None
        if self._new is not None:
            await self._put_object(self._new, digest, path, file.size, kind)
        else:
            async with self._database.unit_of_work() as uow:
                await uow.artifacts.put_chunks(digest, file_chunks(path, CHUNK_BYTES), file.size, kind)
                await uow.commit()
        if hot and file.size <= MOST_HOT_BYTES:
            await self._copy_to_redis(digest, kind, file_chunks(path, HOT_CHUNK_BYTES))
        return digest

    async def _put_object(self, objects: Objects, digest: str, data: bytes | Path, size: int, kind: str) -> None:
        async with self._database.read() as session:
            if await session.artifacts.is_stored(digest):
                return
            upload = await session.artifacts.begin_upload()
        key = object_key(upload.owner, digest)
        await objects.put(key, data)
        async with self._database.unit_of_work() as uow:
            is_named = await uow.artifacts.name_object(digest, kind, size, key, upload)
            await uow.commit()
        if not is_named:  # another process has stored the same content meanwhile
            await self.remove_objects([key])

    async def is_stored(self, digest: str) -> bool:
        """Whether there is an artifact with this digest.

        Raises:
            NotReady: Postgres does not answer.
        """
        async with self._database.read() as session:
            return await session.artifacts.is_stored(digest)

    async def remove_objects(self, keys: Collection[str]) -> int:
        """Delete those of these objects that no artifact names; return their number.

        Where the object store does not answer, or a backup may be reading, they stay, and a sweep will find them.

        Raises:
            NotReady: Postgres does not answer.
        """
        removed, rest = 0, list(keys)
        while self._objects is not None and rest:
            some, rest = rest[:REMOVED_AT_ONCE], rest[REMOVED_AT_ONCE:]
            async with self._database.unit_of_work() as work:
                if not await work.artifacts.lock_names():
                    break
                unnamed = set(some) - await work.artifacts.named(some)
                try:
                    await self._objects.delete(unnamed)
                except NotReady as error:
                    logger.warning("%d objects are not removed yet: %s", len(unnamed) + len(rest), error)
                    break
            removed += len(unnamed)
        return removed

    async def sweep_objects(self) -> int:
        """Delete the objects of this installation that no artifact names and that are older than `ORPHAN_AGE`.

        They are left by processes that died between an upload and the transaction that names it, or between a
        transaction that deletes artifacts and the deletion of their objects. Nothing happens if it was called a short
        time ago, or the object store does not answer.

        Returns:
            the number of objects deleted.

        Raises:
            NotReady: Postgres does not answer.
        """
        if self._objects is None or time.monotonic() < self._swept_at + SWEEP_SECONDS:
            return 0
        self._swept_at = time.monotonic()
        async with self._database.read() as session:
            owner = (await session.artifacts.begin_upload()).owner
        try:
            old = await self._objects.older_than(ORPHAN_AGE, owner)
        except NotReady as error:
            logger.warning("not looked for objects without a name: %s", error)
            return 0
        return await self.remove_objects(old)

    async def get(self, digest: str) -> bytes:
        """The content with this digest, from Redis where it has it.

        Raises:
            ArtifactMissing: there is none.
            ArtifactCorrupt: Postgres or the object store holds content with another digest.
            NotReady: Postgres or the object store does not answer.
        """
        data = b"".join([piece async for piece in self._hot_pieces(digest)])
        if await digest_of(data) == digest:
            return data
        await self._forget_hot(digest)
        return await content(digest, pieces(self._database, self._objects, digest))

    async def fetch_file(self, digest: str, folder: Path, pace: Pace | None = None) -> Path:
        """The content as a file of a folder that all processes of a host share (`service.files`).

        One of them at a time fetches it, while the others wait. The content comes in pieces; the event loop takes each
        in within a third of a millisecond, and a thread hashes and writes it.

        Args:
            digest: of the content.
            folder: of the file.
            pace: awaited after each piece, with the seconds that the piece took.

        Raises:
            ArtifactMissing: there is none.
            ArtifactCorrupt: Postgres or the object store holds content with another digest.
            NotReady: Postgres or the object store does not answer.
        """
        if path := await asyncio.to_thread(files.find, folder, digest, FILE_SUFFIX):
            return path
        async with files.only_one(folder, "fetch"):
            if path := await asyncio.to_thread(files.find, folder, digest, FILE_SUFFIX):
                return path
            try:
                return await self._write_file(self._hot_pieces(digest), digest, folder, pace)
            except ArtifactCorrupt:
                await self._forget_hot(digest)
                async with aclosing(pieces(self._database, self._objects, digest, PIECE_BYTES)) as stored:
                    return await self._write_file(stored, digest, folder, pace)

    async def _write_file(
        self, pieces: AsyncIterator[bytes | memoryview], digest: str, folder: Path, pace: Pace | None
    ) -> Path:
        async with files.create_slowly(folder, FILE_SUFFIX) as file:
            began = time.monotonic()
            async for piece in pieces:
                await asyncio.to_thread(file.write, piece)
                if pace is not None:
                    await pace(time.monotonic() - began)
                    began = time.monotonic()
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
                logger.warning("artifact %s is not whole in Redis; it is read where it is stored", digest)


def object_key(owner: str, digest: str) -> str:
    """A new key for an object; the same content gets another one each time."""
    return f"{owner}/{digest}-{uuid4().hex[:16]}"


def file_chunks(path: Path, size: int) -> Iterator[bytes]:
    """The content of a file, `size` bytes at a time."""
    with path.open("rb") as opened:
        while chunk := opened.read(size):
            yield chunk


def _key(digest: str) -> str:
    return f"asmg:artifact:{digest}"
