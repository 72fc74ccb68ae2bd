"""Export the logs of closed periods as Parquet files: `asmg export`, and the worker after each update.

A file holds one table of one period, at `interactions/period=12/part-0.parquet`. It is there as a whole or not at all.
"""

import asyncio
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from service.errors import ServiceError
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EXPORTED, columns_of

__all__ = [
    "SCRATCH_FOLDER",
    "Destination",
    "Exporter",
    "Folder",
    "export_pending",
    "export_period",
    "exports_waiting",
    "file_of",
]

logger = logging.getLogger(__name__)

SCRATCH_FOLDER = "exports"
"""Folder in the data folder for the files that are being written."""
SCRATCH = "export-"
"""Begins the name of a folder with the files that are being written."""
LEFT_SECONDS = 86_400.0
"""Age at which such a folder is removed: its process has died."""

RETRY_SECONDS = 60.0
"""Pause after an export that failed."""


class Destination(Protocol):
    """Takes files under keys such as `interactions/period=12/part-0.parquet`."""

    async def has(self, key: str) -> bool:
        """Whether there is such a file; raises NotReady or OSError where that cannot be told."""

    async def put(self, key: str, content: Path) -> None:
        """Store a file durably in place of the one that may be there; raises NotReady or OSError."""


class Folder:
    """A folder, made where it does not exist.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def has(self, key: str) -> bool:
        """Whether there is such a file."""
        return (self._path / key).exists()

    async def put(self, key: str, content: Path) -> None:
        """Store a file durably: others see all of it or nothing."""
        await asyncio.to_thread(self._put, self._path / key, content)

    def _put(self, target: Path, content: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as file, content.open("rb") as source:
                while piece := source.read(1024 * 1024):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def file_of(table: str, period: int) -> str:
    """The key of the file of a table and a period."""
    return f"{table}/period={period}/part-0.parquet"


async def export_period(
    database: Database,
    destination: Destination,
    scratch: Path,
    period: int,
    tables: Sequence[str] = tuple(EXPORTED),
    *,
    again: bool = False,
) -> dict[str, int] | None:
    """Export the log of a period.

    Args:
        database: has the log.
        destination: of the files.
        scratch: folder with room for the files of a period, twice.
        period: whose log does not change any more.
        tables: names of `EXPORTED`.
        again: whether files that are there are written anew.

    Returns:
        table → rows written, for those that were; None where the log is dropped.

    Raises:
        NotReady: Postgres or the object store does not answer.
        OSError: a file cannot be written.
    """
    wanted = [table for table in tables if again or not await destination.has(file_of(table, period))]
    if not wanted:
        return {}
    from service.storage.parquet import ParquetWriter  # with polars, which processes that export nothing do without

    await asyncio.to_thread(_make_room, scratch)
    with tempfile.TemporaryDirectory(dir=scratch, prefix=SCRATCH) as folder:
        writers = {table: ParquetWriter(Path(folder, table), columns_of(table)) for table in wanted}
        async with database.read() as session:
            if not await session.exports.hold(period):
                return None
            for table, writer in writers.items():
                async for page in session.exports.pages(table, period):
                    await asyncio.to_thread(writer.write, page)
        for table, writer in writers.items():
            file = Path(folder, f"{table}.parquet")
            await asyncio.to_thread(writer.finish, file)
            await destination.put(file_of(table, period), file)
    return {table: writer.rows for table, writer in writers.items()}


def _make_room(scratch: Path) -> None:
    """Make the folder, and remove what killed processes have left in it."""
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in scratch.glob(f"{SCRATCH}*"):
        with suppress(FileNotFoundError):  # another process has removed it
            if left.stat().st_mtime < time.time() - LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


async def export_pending(database: Database, destination: Destination, scratch: Path) -> list[int]:
    """Export all periods that were learned, are not exported yet and have their log; return their numbers.

    Each is noted when its files are stored. After a crash in between it is exported again, to the same files.

    Raises:
        NotReady: Postgres or the object store does not answer.
        OSError: this machine is in trouble.
    """
    exported: list[int] = []
    while True:
        async with database.read() as session:
            number = await session.exports.next_pending()
        if number is None:
            return exported
        written = await export_period(database, destination, scratch, number, again=True)
        async with database.unit_of_work() as work:
            await work.exports.note(number)
            await work.commit()
        exported.append(number)
        logger.info("period %d is exported: %s", number, written)


async def exports_waiting(database: Database) -> tuple[int, float]:
    """Number of periods that were learned and wait for their export, and for how many seconds the first has waited."""
    async with database.read() as session:
        return await session.exports.waiting()


class Exporter:
    """Exports in the background of the worker's updates, which do not wait for it.

    Args:
        database: has the logs.
        destination: of the files.
        scratch: folder with room for the files of a period, twice.
        failed: called after each attempt that has failed.
    """

    def __init__(
        self, database: Database, destination: Destination, scratch: Path, failed: Callable[[], None] = lambda: None
    ) -> None:
        self._database = database
        self._destination = destination
        self._scratch = scratch
        self._failed = failed
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look for periods to export: one may have been learned."""
        self._wake.set()

    async def run(self) -> None:
        """Export what is to be exported, whenever it is woken, until cancelled; what fails is tried again."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await export_pending(self._database, self._destination, self._scratch)
            except Exception as error:
                known = isinstance(error, (ServiceError, OSError))
                self._failed()
                logger.warning("logs wait for their export: %s", error, exc_info=None if known else error)
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()
