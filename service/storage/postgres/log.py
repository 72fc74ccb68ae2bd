"""Batches on their way into the log, by the driver's own means.

By those of SQLAlchemy the statements around a COPY take some four times as long.
"""

import logging
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asyncpg import Connection, UndefinedTableError
from sqlalchemy.ext.asyncio import AsyncEngine

from service.errors import NotReady
from service.storage.postgres.events import EventBatch
from service.storage.postgres.outages import opening
from service.storage.postgres.repositories.interactions import COUNT, Raced, Stored, insert_events, judged, known_ids

__all__ = ["LogWriter", "LogWriters"]

logger = logging.getLogger(__name__)


AGAIN = 8

BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"

COUNTS_OF_A_SLOT = 1000
"""Transactions that add to one row of `log_counters`. While somebody reads one snapshot for long, a backup say, each
leaves a version of the row that the next ones have to pass by; and each second somebody may add up all the rows."""


def _new_slot() -> int:
    return secrets.randbits(62) + 1


class Habits:
    """Whether clients send again what is known, as they have done in one of the last `AGAIN` batches.

    Only then the open period's log is looked into before. That costs a tenth of what storing costs; its key finds an id
    that is known as well, but ends the COPY, and what was copied until then is thrown away.
    """

    def __init__(self) -> None:
        self._left = 0

    @property
    def sends_again(self) -> bool:
        """To be looked for."""
        return self._left > 0

    def note(self, found: bool) -> None:
        """Tell of a batch whether any of its ids was known."""
        self._left = AGAIN if found else max(0, self._left - 1)


class LogWriter:
    """Stores batches in the open period, one at a time.

    Args:
        driver: a connection that nobody else uses, in no transaction.
        lock: the key of the log's advisory lock.
        habits: of the clients, as far as the process knows them.
    """

    def __init__(self, driver: Connection, lock: int, habits: Habits) -> None:
        self._driver, self._lock, self._habits = driver, lock, habits
        self._open: int | None = None
        self._unmerged: frozenset[int] = frozenset()
        self._slot, self._counted = _new_slot(), 0
        self.opened_at = time.monotonic()

    async def insert(self, events: EventBatch) -> Stored:
        """Store the events that are new, durably, by the rules of `Interactions.insert`.

        From here on until `release` the open period stays open.

        Raises:
            NotReady: Postgres does not answer or has no room; or there is no open period, for the schema was never
                migrated.
            Raced: do it again; nothing is stored.
        """
        with judged(self._driver):
            locking = self._driver.execute(f"SELECT pg_advisory_lock_shared({self._lock}); {BEGIN}")
            try:
                stored = await insert_events(self._driver, events, self._look, after=locking)
            except Raced:
                self._habits.note(True)
                raise
            if stored.inserted.accepted:
                await self._driver.execute(f"{self._count(stored.period, len(stored.inserted.accepted))}; COMMIT")
            return stored

    async def release(self) -> None:
        """Let the period be closed.

        Raises:
            NotReady: Postgres does not answer, or has ended the session, and with it the lock.
        """
        with judged(self._driver):
            undone = "ROLLBACK; " if self._driver.is_in_transaction() else ""  # of a batch that stored nothing
            await self._driver.execute(f"{undone}SELECT pg_advisory_unlock_shared({self._lock})")

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return bool(self._driver.is_closed())

    def terminate(self) -> None:
        """End the connection, and wait for nothing: Postgres gives up what it was at, and the lock."""
        self._driver.terminate()

    async def _look(self, ids: list[str]) -> tuple[int, dict[str, int | None]]:
        # Which logs have to be asked is in the answer: it is asked again where these are not among those that the last
        # one named, which is about once a period.
        while True:
            asked = self._to_ask()
            self._open, self._unmerged = None, frozenset()
            try:
                self._open, unmerged, known = await known_ids(self._driver, ids, asked)
            except UndefinedTableError:  # one of these logs is gone
                if asked:
                    await self._driver.execute(f"ROLLBACK; {BEGIN}")
                    continue
                raise
            self._unmerged = frozenset(unmerged)
            if self._to_ask() <= asked:
                self._habits.note(bool(known))
                return self._open, known

    def _count(self, period: int, events: int) -> str:
        """The statement that adds to the number of the period's interactions."""
        self._counted += 1
        if self._counted > COUNTS_OF_A_SLOT:
            self._slot, self._counted = _new_slot(), 1
        return COUNT.format(period=period, slot=self._slot, events=events)

    def _to_ask(self) -> frozenset[int]:
        if self._open is None or not self._habits.sends_again:
            return self._unmerged
        return self._unmerged | {self._open}


class LogWriters:
    """The connections of a process for its batches: opened when they are needed and kept for the next time.

    Args:
        engine: opens connections whose statements are a transaction each. A session that says nothing for a while has
            to end by itself, for the process may be frozen, and holds the lock.
        lock: the key of the log's advisory lock.
        seconds: after which a connection is not used again.
    """

    def __init__(self, engine: AsyncEngine, lock: int, *, seconds: float) -> None:
        self._engine, self._lock, self._seconds = engine, lock, seconds
        self._idle: list[LogWriter] = []
        self._habits = Habits()

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[LogWriter]:
        """A writer; the open period stays open from its `insert` to the end of the block.

        All writers share the log's lock, so batches run side by side; a close waits for those that have begun, and the
        later ones wait for the close. That is why no event can land in a period that is sealed.

        Raises:
            NotReady: Postgres does not answer.
        """
        writer = self._take() or await self._open()
        try:
            yield writer
        except Raced:
            await self._take_back(writer)
            raise
        except BaseException:
            writer.terminate()
            raise
        await self._take_back(writer)

    async def close(self) -> None:
        """Close what is kept."""
        for writer in self._idle:
            writer.terminate()
        self._idle.clear()
        await self._engine.dispose()

    def _take(self) -> LogWriter | None:
        while self._idle:
            writer = self._idle.pop()
            if not writer.closed and time.monotonic() < writer.opened_at + self._seconds:
                return writer
            writer.terminate()
        return None

    async def _open(self) -> LogWriter:
        with opening():
            connection = await self._engine.raw_connection()
        driver = connection.driver_connection
        connection.detach()
        return LogWriter(driver, self._lock, self._habits)

    async def _take_back(self, writer: LogWriter) -> None:
        try:
            await writer.release()
        except BaseException as error:
            writer.terminate()
            if not isinstance(error, Exception):
                raise
            # What was stored is stored. Only what is no trouble of Postgres is a bug, which the log has to tell.
            trace = None if isinstance(error, NotReady) else error
            logger.warning("a writer of the log was not given back: %s", error, exc_info=trace)
        else:
            self._idle.append(writer)
