"""The SQLite database in the temporary folder in which an import sorts its log."""

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from service.errors import ServiceError

__all__ = ["open_database", "temporary_database"]

CACHE_KIB = 64 * 1024
"""KiB of memory in which SQLite keeps pages of the database."""

STEPS_BETWEEN_CHECKS = 100_000
"""Instructions of SQLite's virtual machine, a few milliseconds, between two calls of `check`."""


def open_database(folder: Path, check: Callable[[], None] = lambda: None) -> sqlite3.Connection:
    """Create a database for intermediate results, without protection against crashes.

    Args:
        folder: where its file is created.
        check: called now and then, also while SQLite sorts; an exception ends the statement with
            `sqlite3.OperationalError`.
    """
    database = sqlite3.connect(folder / "log.sqlite", isolation_level=None, check_same_thread=False)
    database.set_progress_handler(check, STEPS_BETWEEN_CHECKS)
    for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_KIB}", "temp_store=FILE"):
        database.execute(f"PRAGMA {pragma}")
    return database


@contextmanager
def temporary_database(check: Callable[[], None]) -> Iterator[sqlite3.Connection]:
    """A database in a temporary folder that is removed after the `with` block; `TMPDIR` is created if it is missing.

    Args:
        check: see `open_database`; the exception that it raises ends the block.

    Raises:
        ServiceError: the folder cannot be written to, or its disk is full.
    """
    parent = os.environ.get("TMPDIR") or tempfile.gettempdir()
    try:
        Path(parent).mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="asmg-import-", dir=parent)
    except OSError as error:
        raise _unusable(parent, error.strerror) from None
    with folder:
        try:
            with closing(open_database(Path(folder.name), check)) as database:
                yield database
        except sqlite3.OperationalError as error:
            check()
            raise _unusable(parent, error) from error


def _unusable(folder: str, reason: object) -> ServiceError:
    return ServiceError(
        f"the temporary folder {folder} does not hold the log while it is sorted: {reason}; "
        "TMPDIR may name another, on a disk with three times the room of the log"
    )
