"""Objects in an object store: S3 and what speaks its protocol, Google Cloud Storage, Azure, or a folder.

The library obstore does the work (extra `objects`). It takes credentials and endpoints from the environment variables
that the tools of each provider use, such as `AWS_ACCESS_KEY_ID` and `AWS_ENDPOINT_URL`. It tries again by itself while
the store answers with an error of the server, or not at all.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from service.errors import ArtifactCorrupt, ArtifactMissing, ConfigurationError, NotReady
from service.settings import Settings

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["Objects", "configured_exports", "configured_objects"]

PART_BYTES = 8 * 1024 * 1024
"""Bytes that are uploaded at a time. S3 allows 10,000 parts, so the largest object has 80 GB."""
PARTS_AT_ONCE = 4
"""Parts that are under way, and in memory, at a time."""
RANGE_BYTES = 4 * 1024 * 1024
"""Bytes that one request fetches."""
RANGES_AT_ONCE = 4
"""Requests that fetch parts of an object at a time; their answers are in memory."""

MAX_RETRIES = 8
"""How often a request is repeated. The pauses are random, of at most 0.1 s at first and 2 s in the end, some 4 s in
all."""
RETRY_SECONDS = 30.0
"""Time since its first attempt after which a request is not repeated."""

LISTED_AT_ONCE = 1000
"""Objects that a store lists in one answer."""

PROBES = "probes"
"""Beginning of the keys of objects that `check` and `now` write and delete at once."""

QUERY = re.compile(r"\?\S*")
"""The query of a URL, which for Azure can hold a signature."""
MOST_SHOWN = 600
"""Characters of the library's messages that are shown; the rest describes its own structures."""


def configured_objects(settings: Settings) -> "Objects | None":
    """The object store that the settings name; None where they name none.

    Raises:
        ConfigurationError: the library is not installed, or cannot use the URL.
    """
    return None if settings.artifacts_url is None else Objects(settings.artifacts_url)


def configured_exports(settings: Settings) -> "Objects | None":
    """Where the worker exports to; None where the settings name nothing. Raises as `configured_objects` does."""
    return None if settings.export_url is None else Objects(settings.export_url, name="ASMG_EXPORT_URL")


class Objects:
    """The objects below a URL, by keys relative to it.

    Args:
        url: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or `file:///FOLDER`. A folder is made,
            for this user alone, where it does not exist.
        name: of what the user gave the URL as, for messages.

    Raises:
        ConfigurationError: the library is not installed, or cannot use the URL.
    """

    def __init__(self, url: str, *, name: str = "ASMG_ARTIFACTS_URL") -> None:
        try:
            from obstore.store import LocalStore, from_url
        except ImportError:
            raise ConfigurationError(
                f"{name}={url} needs the package obstore: pip install 'asmg-service[objects]'"
            ) from None
        self.url, self._name = url, name
        self._folder: Path | None = None
        """Where the objects are files; None where they are not."""
        self._store: ObjectStore
        try:
            if url.startswith("file:"):
                self._folder = Path(unquote(urlsplit(url).path))
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._store = LocalStore(self._folder)
            else:
                pauses = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2)}
                retry = {"max_retries": MAX_RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)}
                self._store = from_url(url, retry_config={**retry, "backoff": pauses})  # type: ignore[call-overload]
        except Exception as error:
            raise ConfigurationError(f"{name}={url}: {_reason(error)}") from error

    async def check(self) -> None:
        """Write an object, read it, list it and delete it.

        Raises:
            ConfigurationError: one of these failed.
        """
        import obstore

        key, content = f"{PROBES}/{uuid4().hex}", b"asmg"
        doing = "written to"
        try:
            await obstore.put_async(self._store, key, content)
            doing = "read"
            if bytes(await (await obstore.get_async(self._store, key)).bytes_async()) != content:
                raise ValueError("an object has other content than was written")
            doing = "listed"
            if key not in [found["path"] for found in await obstore.list(self._store, PROBES).collect_async()]:
                raise ValueError("an object that was written is not listed")
            doing = "deleted from"
            await obstore.delete_async(self._store, [key])
        except Exception as error:
            raise ConfigurationError(
                f"the object store of {self._name}={self.url} cannot be {doing}: {_reason(error)}"
            ) from error

    async def put(self, key: str, content: bytes | Path) -> None:
        """Store an object durably, in parts where it is large; others see all of it or nothing.

        Args:
            key: of the object, which takes the place of one that may be there.
            content: its content, or the file with it, of which a few parts at a time are in memory.

        Raises:
            NotReady: the store does not take it.
        """
        import obstore

        with self._reaching():
            await obstore.put_async(self._store, key, content, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
            if self._folder is not None:
                await asyncio.to_thread(_sync, self._folder, self._folder / key)

    async def has(self, key: str) -> bool:
        """Whether there is such an object.

        Raises:
            NotReady: the store does not answer.
        """
        import obstore

        with self._reaching():
            try:
                await obstore.head_async(self._store, key)
            except FileNotFoundError:
                return False
        return True

    async def pieces(self, key: str, digest: str, size: int) -> AsyncIterator[memoryview]:
        """The content of an object, in pieces of at most `RANGE_BYTES`; it is not compared with the digest.

        Args:
            key: of the object.
            digest: of the artifact, for messages.
            size: that the object should have, in bytes.

        Raises:
            ArtifactMissing: there is no such object.
            ArtifactCorrupt: it has another size.
            NotReady: the store does not answer.
        """
        import obstore

        with self._reaching(digest, key):
            if (found := (await obstore.head_async(self._store, key))["size"]) != size:
                raise ArtifactCorrupt(digest, f"{found} bytes instead of {size}, in the object {key}")
        for window in range(0, size, RANGE_BYTES * RANGES_AT_ONCE):
            starts = range(window, min(size, window + RANGE_BYTES * RANGES_AT_ONCE), RANGE_BYTES)
            ends = [min(size, start + RANGE_BYTES) for start in starts]
            with self._reaching(digest, key):
                ranges = await obstore.get_ranges_async(self._store, key, starts=starts, ends=ends, coalesce=0)
            for piece in ranges:
                yield memoryview(piece)

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; keys without an object are skipped.

        Raises:
            NotReady: the store does not answer, or refuses; some of the objects may be deleted.
        """
        import obstore

        with self._reaching():
            for key in keys:
                with suppress(FileNotFoundError):
                    if self._folder is None:
                        await obstore.delete_async(self._store, [key])
                    else:  # the library refuses the names of files that it has not written to their end
                        await asyncio.to_thread((self._folder / key).unlink)

    async def older_than(self, age: timedelta, owner: str) -> Sequence[str]:
        """Keys of the objects of an owner, and of left probes, that the store has had for longer than `age`.

        Both times are of the store's clock, so it may differ from all others.

        Args:
            age: since the upload was begun or has ended, depending on the store.
            owner: beginning of the keys, up to the first `/`.

        Raises:
            NotReady: the store does not answer.
        """
        import obstore

        oldest = await self._now() - age
        found = []
        with self._reaching():
            for prefix in (owner, PROBES):
                async for listed in obstore.list(self._store, prefix, chunk_size=LISTED_AT_ONCE):
                    found += [entry["path"] for entry in listed if entry["last_modified"] < oldest]
        if self._folder is not None:  # the library lists no file that was not written to its end
            found += await asyncio.to_thread(_unfinished, self._folder, owner, oldest)
        return found

    async def _now(self) -> datetime:
        """The time on the store's clock."""
        import obstore

        key = f"{PROBES}/{uuid4().hex}"
        with self._reaching():
            await obstore.put_async(self._store, key, b"now")
            now = (await obstore.head_async(self._store, key))["last_modified"]
            await obstore.delete_async(self._store, [key])
        return now

    @contextmanager
    def _reaching(self, digest: str | None = None, key: str = "") -> Iterator[None]:
        """A block that calls the store, about this artifact and its object; every failure of the store is `NotReady`.

        So it counts as no attempt of a period: keys that have expired and folders that are not mounted come back.
        """
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError) as error:
            if digest is not None and isinstance(error, FileNotFoundError):
                raise ArtifactMissing(digest, f"the object {key} of {self.url}") from error
            raise NotReady(f"the object store {self.url} does not do it: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line of a message of the library, without what may be secret in a URL."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    hint = " (AWS_ALLOW_HTTP=true allows an endpoint without TLS)" if lines[0].endswith("builder error") else ""
    return QUERY.sub("", lines[0])[:MOST_SHOWN] + hint


def _sync(root: Path, file: Path) -> None:
    """Make a file that was just renamed, and the folders that may be new, durable."""
    for path in (file, file.parent, root):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _unfinished(root: Path, owner: str, oldest: datetime) -> list[str]:
    """Keys of files to which a process that has died was writing; the library adds `#` and a number to their names."""
    files = (path for path in (root / owner).glob("*#*") if path.stat().st_mtime < oldest.timestamp())
    return [str(path.relative_to(root)) for path in files]
