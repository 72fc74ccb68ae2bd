"""Files named by what they hold, which are there whole or not at all.

A file's name is `<SHA-256>.<XXH3-128>.<suffix>`. The first is who it is: the digest under which the content is known
everywhere. The second says in a fraction of the time whether the bytes on this disk are still those that were written
(23 GB/s on the machine where SHA-256 does 1.7), so it is looked at every time that a file is opened.
"""

import asyncio
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO

import xxhash

__all__ = ["DigestedFile", "check_of", "create", "create_slowly", "find", "is_whole", "keep_newest", "only_one"]

KEPT_FILES = 3
UNFINISHED = ".new-"
UNFINISHED_SECONDS = 3600.0
"""After so long without a write whoever began a file has died."""
LOCK_POLL_SECONDS = 0.05
PIECE_BYTES = 4 * 1024 * 1024


class DigestedFile:
    """A binary file that is being written, with the digests of what was written so far."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._xxh3 = xxhash.xxh3_128()
        self.size = 0
        """Bytes written."""
        self.path: Path | None = None
        """Where the file is; None until it is complete."""

    def write(self, data: bytes | memoryview) -> None:
        """Append."""
        self._file.write(data)
        self._sha256.update(data)
        self._xxh3.update(data)
        self.size += len(data)

    @property
    def digest(self) -> str:
        """SHA-256 of what was written, in hex."""
        return self._sha256.hexdigest()

    def name(self, suffix: str) -> str:
        """What a file with this content is called."""
        return f"{self.digest}.{self._xxh3.hexdigest()}{suffix}"


@contextmanager
def create(folder: Path, suffix: str, *, stem: str | None = None) -> Iterator[DigestedFile]:
    """Write a file into `folder`; it appears under its name, durable, when the block has ended without an error.

    It is named by what it holds, unless a `stem` is given. Processes that create the same content at the same time
    write the same bytes, and the last rename wins.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=UNFINISHED)
    try:
        with os.fdopen(descriptor, "wb") as file:
            written = DigestedFile(file)
            yield written
            file.flush()
            os.fsync(file.fileno())
        path = folder / (written.name(suffix) if stem is None else stem + suffix)
        Path(temporary).replace(path)
        written.path = path
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


@asynccontextmanager
async def create_slowly(folder: Path, suffix: str, *, stem: str | None = None) -> AsyncIterator[DigestedFile]:
    """`create` for an event loop, which does not wait for the disk; `write` is to be called in a thread as well."""
    creating = create(folder, suffix, stem=stem)
    file = await asyncio.to_thread(creating.__enter__)
    try:
        yield file
    except BaseException as error:
        await asyncio.to_thread(creating.__exit__, type(error), error, error.__traceback__)
        raise
    await asyncio.to_thread(creating.__exit__, None, None, None)


def find(folder: Path, digest: str, suffix: str) -> Path | None:
    """The file with this content, where the folder has it."""
    return next(folder.glob(f"{digest}.*{suffix}"), None)


def check_of(path: Path) -> str | None:
    """The XXH3-128 that the file should have, in hex; None where its name holds none."""
    parts = path.name.split(".")
    return parts[1] if len(parts) == 3 and len(parts[1]) == 32 else None


def is_whole(path: Path) -> bool:
    """Whether the file's bytes are those that were written; True where its name does not say which these are."""
    if (expected := check_of(path)) is None:
        return True
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest() == expected


def keep_newest(path: Path) -> None:
    """Mark `path` as used now and remove all files of its kind beside it but the `KEPT_FILES` used last, and what
    processes that died had begun to write.

    Another process may still map a removed file: its pages live on until it lets go of them.
    """
    os.utime(path)
    used = []
    for file in path.parent.iterdir():
        with suppress(FileNotFoundError):  # another process tidies up as well
            if file.suffix == path.suffix:
                used.append((file.stat().st_mtime, file))
            elif file.name.startswith(UNFINISHED) and file.stat().st_mtime < time.time() - UNFINISHED_SECONDS:
                file.unlink()
    for _, file in sorted(used, reverse=True)[KEPT_FILES:]:
        file.unlink(missing_ok=True)


@asynccontextmanager
async def only_one(folder: Path, name: str) -> AsyncIterator[None]:
    """While the block runs no other process of this host is in a block of this name; the kernel frees the lock of one
    that dies.
    """
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("wb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(LOCK_POLL_SECONDS)
        yield
