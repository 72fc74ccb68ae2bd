"""Files named by what they hold, which are there whole or not at all.

A file's name is `<SHA-256>.<XXH3-128>.<suffix>`. The first is who it is: the digest under which the content is known
everywhere. The second says in a fraction of the time whether the bytes on this disk are still those that were written
(23 GB/s on the machine where SHA-256 does 1.7), so it is looked at every time that a file is opened.

Files that are named so are private: of mode 0400, in a folder of mode 0700, durable before they have their name, and
replaced only by renaming. One that somebody else could write to, or could have put there, counts as absent.
"""

import asyncio
import errno
import fcntl
import hashlib
import logging
import os
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO

import xxhash

__all__ = [
    "DigestedFile",
    "check_of",
    "create",
    "create_slowly",
    "find",
    "host_name",
    "keep_newest",
    "only_one",
    "open_trusted",
]

logger = logging.getLogger(__name__)

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

    It is named by what it holds, and private, unless a `stem` is given. Processes that create the same content at the
    same time write the same bytes, and the last rename wins.
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
    """`create` for an event loop, which does not wait for the disk; `write` is to be called in a thread as well."""
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
    """The file with this content, where the folder has it; one that is not to be trusted is removed."""
    for path in folder.glob(f"{digest}.*{suffix}"):
        try:
            os.close(open_trusted(path))
        except FileNotFoundError:  # another process tidies up
            continue
        except OSError as error:
            logger.warning("%s is removed, to be fetched again: %s", path, error.strerror)
            path.unlink(missing_ok=True)
            continue
        return path
    return None


def open_trusted(path: Path) -> int:
    """A descriptor for reading the file, which nobody but this user can have written to by its name or another one.

    Raises:
        OSError: it cannot be opened, is a symbolic link or no regular file, belongs to another user, has further names
            (hard links), or others may write to it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        reason = "it is not a regular file"
    elif found.st_uid != os.geteuid():
        reason = f"it belongs to user {found.st_uid}, not {os.geteuid()}"
    elif found.st_nlink > 1:  # none, where it has just been replaced
        reason = f"it has {found.st_nlink} names (hard links), not one"
    elif found.st_mode & 0o022:
        reason = f"others may write to it (mode {stat.S_IMODE(found.st_mode):o})"
    else:
        return descriptor
    os.close(descriptor)
    raise PermissionError(errno.EPERM, f"expected a private file; {reason}", str(path))


def check_of(path: Path) -> str | None:
    """The XXH3-128 that the file should have, in hex; None where its name holds none."""
    parts = path.name.split(".")
    return parts[1] if len(parts) == 3 and len(parts[1]) == 32 else None


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


def host_name() -> str:
    """For names of files by which a process is known; of a container its own, for containers may share a volume and
    number their processes alike.
    """
    return socket.gethostname().replace("/", "-")


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
