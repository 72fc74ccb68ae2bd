"""Files that are named by their content, and that are there as a whole or not at all.

A file's name is `<SHA-256>.<XXH3-128>.<suffix>`. The SHA-256 is the digest by which the content is known everywhere.
The XXH3-128 is a checksum: it tells whether the bytes on this disk are still those that were written. It is computed at
23 GB/s on a machine that does 1.7 GB/s of SHA-256, so it is compared each time a file is opened.

Such files are private: of mode 0400, in a folder of mode 0700. They are durable before they get their name, and are
replaced only by renaming. A file to which others could write counts as absent.

The worker writes snapshots with this module; `service.storage.artifacts.store` writes those that it fetches.
"""

import asyncio
import errno
import fcntl
import hashlib
import io
import logging
import os
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import xxhash

__all__ = [
    "DigestedFile",
    "KnownFile",
    "check_of",
    "create",
    "create_slowly",
    "digest_of",
    "find",
    "host_name",
    "keep_newest",
    "only_one",
    "open_trusted",
]

logger = logging.getLogger(__name__)

KEPT_FILES = 3
"""Files of a kind that stay in a folder, used or not: those used last."""
UNFINISHED = ".new-"
"""Begins the name of a file that is being written."""
UNFINISHED_SECONDS = 3600.0
"""Age of the last write after which an unfinished file is removed: its process has died."""
LOCK_POLL_SECONDS = 0.05


class KnownFile(NamedTuple):
    """A complete file whose content is known by its digest."""

    digest: str
    """SHA-256, in hex."""
    path: Path
    size: int
    """Bytes."""


class DigestedFile:
    """A binary file that is being written, with the digests of the bytes written so far."""

    def __init__(self, file: IO[bytes] | io.RawIOBase) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._xxh3 = xxhash.xxh3_128()
        self.size = 0
        """Bytes written."""
        self.path: Path | None = None
        """Where the file is; None until it is complete."""

    def write(self, data: bytes | memoryview) -> None:
        """Append the bytes."""
        self._file.write(data)
        self._sha256.update(data)
        self._xxh3.update(data)
        self.size += len(data)

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes written, in hex."""
        return self._sha256.hexdigest()

    def name(self, suffix: str) -> str:
        """The name of a file with this content."""
        return f"{self.digest}.{self._xxh3.hexdigest()}{suffix}"


class _Nothing(io.RawIOBase):
    """Takes bytes and keeps none."""

    def write(self, data: Any, /) -> int:
        return len(data)


def digest_of(write: Callable[["DigestedFile"], object]) -> str:
    """The digest of the file that `write` would write."""
    file = DigestedFile(_Nothing())
    write(file)
    return file.digest


@contextmanager
def create(folder: Path, suffix: str, *, stem: str | None = None) -> Iterator[DigestedFile]:
    """Write a file, which gets its name, durable, when the block has ended without an error.

    Processes may create the same content at the same time: they write the same bytes, and the last rename counts.

    Args:
        folder: of the file; made where it does not exist.
        suffix: of the name, with its dot.
        stem: the name without suffix; None for the digests, in which case the file is private.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if stem is None:
        _make_private(folder)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=UNFINISHED)
    try:
        with os.fdopen(descriptor, "wb") as file:
            written = DigestedFile(file)
            yield written
            file.flush()
            if stem is None:
                os.fchmod(file.fileno(), 0o400)
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
    """`create` for an event loop: waits for the disk in threads. The caller has to call `write` in a thread too."""
    creating = create(folder, suffix, stem=stem)
    file = await asyncio.to_thread(creating.__enter__)
    try:
        yield file
    except BaseException as error:
        await asyncio.to_thread(creating.__exit__, type(error), error, error.__traceback__)
        raise
    await asyncio.to_thread(creating.__exit__, None, None, None)


def _make_private(folder: Path) -> None:
    found = folder.stat()
    if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)


def find(folder: Path, digest: str, suffix: str) -> Path | None:
    """The file with this digest; None where the folder has none. A file to which others could write is removed."""
    for path in folder.glob(f"{digest}.*{suffix}"):
        try:
            os.close(open_trusted(path))
        except FileNotFoundError:  # another process has removed it
            continue
        except OSError as error:
            logger.warning("%s is removed, to be fetched again: %s", path, error.strerror)
            path.unlink(missing_ok=True)
            continue
        return path
    return None


def open_trusted(path: Path) -> int:
    """Open a file for reading, if only this user can have written to it; returns the descriptor.

    Raises:
        OSError: it cannot be opened, is a symbolic link or no regular file, belongs to another user, has other names
            (hard links), or others may write to it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        reason = "it is not a regular file"
    elif found.st_uid != os.geteuid():
        reason = f"it belongs to user {found.st_uid}, not {os.geteuid()}"
    elif found.st_nlink > 1:  # 0 where it has just been replaced
        reason = f"it has {found.st_nlink} names (hard links), not one"
    elif found.st_mode & 0o022:
        reason = f"others may write to it (mode {stat.S_IMODE(found.st_mode):o})"
    else:
        return descriptor
    os.close(descriptor)
    raise PermissionError(errno.EPERM, f"expected a private file; {reason}", str(path))


def check_of(path: Path) -> str | None:
    """The XXH3-128 in the name of a file, in hex; None where the name has none."""
    parts = path.name.split(".")
    return parts[1] if len(parts) == 3 and len(parts[1]) == 32 else None


def keep_newest(folder: Path, suffix: str, used: Collection[str]) -> None:
    """Mark files as used now, and tidy their folder up.

    Of the files with the suffix these stay, and the `KEPT_FILES` used last. Unfinished files of processes that have
    died are removed too. A process that maps a removed file keeps its pages.

    Args:
        folder: of the files.
        suffix: of their names, with its dot.
        used: digests of the files that are used.
    """
    now, last_used, kept = time.time(), [], set()
    for file in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has removed it
            if file.suffix == suffix:
                if file.name.partition(".")[0] in used:
                    os.utime(file, (now, now))
                    kept.add(file)
                last_used.append((file.stat().st_mtime, file))
            elif file.name.startswith(UNFINISHED) and file.stat().st_mtime < now - UNFINISHED_SECONDS:
                file.unlink()
    for _, file in sorted(last_used, reverse=True)[KEPT_FILES:]:
        if file not in kept:
            file.unlink(missing_ok=True)


def host_name() -> str:
    """The name of this host or container, for names of files that belong to a process.

    Containers that share a volume may number their processes alike.
    """
    return socket.gethostname().replace("/", "-")


@asynccontextmanager
async def only_one(folder: Path, name: str) -> AsyncIterator[None]:
    """Hold a lock: while the block runs, no other process of this host is in a block of the same name.

    The kernel frees the lock of a process that dies.

    Args:
        folder: of the lock file.
        name: of the lock.
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
