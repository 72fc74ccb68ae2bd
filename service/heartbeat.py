"""Whether a worker makes progress: a file with the time of its last progress, written by the work itself.

The worker holds a lock on its file as long as it lives; the kernel releases it at its end. `asmg worker --check` reads
the files of its host. This health check needs neither Postgres nor Redis: a worker that waits for them is healthy.
"""

import fcntl
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from service.errors import NotReady
from service.files import host_name

__all__ = ["Heartbeat", "check_workers"]

logger = logging.getLogger(__name__)

SUFFIX = ".heartbeat"
"""Of the names of the files."""
WRITE_SECONDS = 0.2
"""Least time between two writes, in seconds; training reports progress far more often."""
TIME_BYTES = 24
"""Fixed length of a time in the file, so that each write replaces the one before."""


class Heartbeat:
    """When a worker process last made progress.

    Args:
        folder: holds the files of all workers of a host, and of containers that share a volume.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"{host_name()}.{os.getpid()}.{uuid4().hex[:8]}{SUFFIX}"
        self._file: int | None = None
        self._written = -WRITE_SECONDS
        self._failed = False
        self.last = time.monotonic()
        """Time of the last progress, on the monotonic clock, which all processes of the host share."""

    def beat(self) -> None:
        """Note progress; callable from any thread. A disk that is full or broken is logged, once."""
        self.last = time.monotonic()
        if self.last - self._written < WRITE_SECONDS:
            return
        self._written = self.last
        try:
            if self._file is None:
                self._file = self._create()
            os.pwrite(self._file, _encode(self.last), 0)
            self._failed = False
        except OSError as error:
            if not self._failed:
                logger.warning("the heartbeat is not written: %s", error)
            self._failed = True

    def close(self) -> None:
        """Remove the file: this worker ends in good order."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def _create(self) -> int:
        """Create the file; it is locked under a temporary name first, so that nobody finds it unlocked."""
        self._folder.mkdir(parents=True, exist_ok=True)
        _remove_dead(self._folder)
        temporary = self._path.with_suffix(".new")
        file = os.open(temporary, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.pwrite(file, _encode(self.last), 0)
            temporary.rename(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            os.close(file)
            raise
        return file


def check_workers(folder: Path, limit_seconds: float) -> float:
    """Seconds since the last progress of the worker of this host whose progress is the oldest.

    Args:
        folder: the folder given to `Heartbeat`.
        limit_seconds: most seconds without progress of a healthy worker.

    Raises:
        NotReady: no worker runs on this host, or one has made no progress for longer.
    """
    ages = []
    for path in folder.glob(f"*{SUFFIX}"):
        host, pid = path.name.rsplit(".", 3)[:2]
        if host == host_name() and (since := _read(path)) is not None:
            ages.append((time.monotonic() - since, pid))
    if not ages:
        raise NotReady(f"no worker with this data folder runs on this host ({folder} names none that lives)")
    age, pid = max(ages)
    if age > limit_seconds:
        raise NotReady(f"worker {pid} has not got any further for {age:.1f} s; expected at most {limit_seconds:g} s")
    return age


def _read(path: Path) -> float | None:
    """The time in the file of a worker that lives; None otherwise."""
    with suppress(OSError, ValueError):
        file = os.open(path, os.O_RDONLY)
        try:
            if not _is_dead(file):
                return float(os.pread(file, TIME_BYTES, 0))
        finally:
            os.close(file)
    return None


def _is_dead(file: int) -> bool:
    """Whether nobody holds the lock of an open file any more: its worker has ended."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_dead(folder: Path) -> None:
    """Remove the files of workers that have ended without removing them."""
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY)
            try:
                if _is_dead(file):
                    path.unlink(missing_ok=True)
            finally:
                os.close(file)


def _encode(moment: float) -> bytes:
    return f"{moment:.6f}".ljust(TIME_BYTES).encode()
