"""Whether a worker gets anywhere: a file that says when it last did, written by the work itself.

The worker holds a lock on its file for as long as it lives, which the kernel frees. `asmg worker --check` reads the
files of its host: a health check that needs neither Postgres nor Redis, for a worker that waits for them is well.
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
EVERY_SECONDS = 0.2
"""Between two writes; training tells of its progress far more often."""
WIDTH = 24
"""Bytes of a time in the file: one write replaces another."""


class Heartbeat:
    """When a process last got anywhere.

    Args:
        folder: holds the files of all workers of a host, of containers too that share a volume.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Written under a passing name, so that nobody finds it before it is locked.
        self._path = folder / f"{host_name()}.{os.getpid()}.{uuid4().hex[:8]}{SUFFIX}"
        self._file: int | None = None
        self._written = -EVERY_SECONDS
        self._failed = False
        self.last = time.monotonic()
        """The moment, on the clock that all processes of the host share."""

    def beat(self) -> None:
        """Note that something got further; from any thread. A disk that is full or broken is logged, once."""
        self.last = time.monotonic()
        if self.last - self._written < EVERY_SECONDS:
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
        """Remove the file: this worker has ended in good order."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def _create(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        _remove_dead(self._folder)
        hidden = self._path.with_suffix(".new")
        file = os.open(hidden, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.pwrite(file, _encode(self.last), 0)
            hidden.rename(self._path)
        except OSError:
            hidden.unlink(missing_ok=True)
            os.close(file)
            raise
        return file


def check_workers(folder: Path, limit_seconds: float) -> float:
    """How many seconds ago the worker of this host got further that did so longest ago.

    Args:
        folder: that of `Heartbeat`.
        limit_seconds: of a worker that is well.

    Raises:
        NotReady: there is none, or one that has not got any further for longer.
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
    """The time in a file whose owner lives; None otherwise."""
    with suppress(OSError, ValueError):
        file = os.open(path, os.O_RDONLY)
        try:
            if not _is_dead(file):
                return float(os.pread(file, WIDTH, 0))
        finally:
            os.close(file)
    return None


def _is_dead(file: int) -> bool:
    """Whether nobody holds the lock of an open file any more."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_dead(folder: Path) -> None:
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError):
            file = os.open(path, os.O_RDONLY)
            try:
                if _is_dead(file):
                    path.unlink(missing_ok=True)
            finally:
                os.close(file)


def _encode(moment: float) -> bytes:
    return f"{moment:.6f}".ljust(WIDTH).encode()
