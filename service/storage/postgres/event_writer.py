"""Inserts event batches into the open period with asyncpg's COPY, bypassing SQLAlchemy.

With SQLAlchemy the statements around a COPY take some four times as long. `service.use_cases.ingest` calls this for
each group of `POST /interactions`; the connections come from a pool of SQLAlchemy's, which opens, checks and replaces
them as it does for sessions.
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from asyncpg import Connection, UndefinedTableError
from sqlalchemy.ext.asyncio import AsyncEngine

from service.storage.postgres.driver import translate_postgres_errors
from service.storage.postgres.events import EventBatch
from service.storage.postgres.outages import opening
from service.storage.postgres.repositories.insertion import ADD_TO_COUNT, Inserted, Raced, insert_events, known_ids

__all__ = ["DuplicateDetector", "EventWriter", "EventWriters"]

BATCHES_TO_LOOK = 8
"""Batches that are looked up in the open period's log after one that repeated known events."""

BATCHES_OF_A_SLOT = 1000
"""Transactions that add to one row of `log_counters` before a writer takes another row. While somebody reads one
snapshot for long, such as a backup, each leaves a version of the row that later ones have to skip; and every second
somebody may add up all rows."""


class DuplicateDetector:
    """Whether clients currently repeat events, as they did in one of the last `BATCHES_TO_LOOK` batches.

    Only then the open period's log is queried before the COPY. The query costs a tenth of what storing costs. Without
    it the primary key finds a repeated id too, but that ends the COPY, and what was copied until then is lost.
    """

    def __init__(self) -> None:
        self._left = 0

    @property
    def looks(self) -> bool:
        """Whether to query the open period's log."""
        return self._left > 0

    def note(self, repeated: bool) -> None:
        """Report of a batch whether any of its ids was known."""
        self._left = BATCHES_TO_LOOK if repeated else max(0, self._left - 1)


class EventWriter:
    """Inserts batches over one connection, one at a time.

    Args:
        driver: a connection that nobody else uses, in no transaction.
        lock: key of the advisory lock of the log (`Lock.LOG`).
        duplicates: shared by the writers of a process.
    """

    def __init__(self, driver: Connection, lock: int, duplicates: DuplicateDetector) -> None:
        self._driver, self._duplicates = driver, duplicates
        # All writers share the lock, so batches are stored side by side; a close takes it exclusively. It waits for the
        # batches that have begun, and later ones wait for the close: no event lands in a period that is sealed.
        self._begin = f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock_shared({lock})"
        self._open_period: int | None = None
        self._unmerged: frozenset[int] = frozenset()
        self._take_slot()

    async def insert(self, events: EventBatch) -> tuple[int, Inserted]:
        """Insert the events that are new by the rules of `Interactions.insert`, and commit.

        Returns:
            the period that was open, and what became of the events.

        Raises:
            NotReady: Postgres does not answer or has no room; or there is no open period, for the schema was never
                migrated.
            Raced: call it again; nothing is stored.
        """
        with translate_postgres_errors(self._driver):
            await self._driver.execute(self._begin)
            try:
                period, inserted = await insert_events(self._driver, events, self._look_up)
            except Raced:
                self._duplicates.note(True)
                await self._driver.execute("ROLLBACK")
                raise
            if inserted.accepted:
                await self._driver.execute(f"{self._add_to_count(period, len(inserted.accepted))}; COMMIT")
            else:
                await self._driver.execute("ROLLBACK")
            return period, inserted

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return bool(self._driver.is_closed())

    async def _look_up(self, ids: list[str]) -> tuple[int, dict[str, int | None]]:
        # The answer says which logs have to be looked into. Where these are not among those that were, which happens
        # about once a period, the query is repeated.
        while True:
            periods = self._periods_to_query()
            self._open_period, self._unmerged = None, frozenset()
            try:
                known = await known_ids(self._driver, ids, periods)
            except UndefinedTableError:  # one of these logs is dropped
                if not periods:
                    raise
                await self._driver.execute(f"ROLLBACK; {self._begin}")
                continue
            self._open_period, self._unmerged = known.open_period, frozenset(known.unmerged)
            if self._periods_to_query() <= periods:
                self._duplicates.note(bool(known.contents))
                return known.open_period, known.contents

    def _periods_to_query(self) -> frozenset[int]:
        if self._open_period is None or not self._duplicates.looks:
            return self._unmerged
        return self._unmerged | {self._open_period}

    def _add_to_count(self, period: int, events: int) -> str:
        """The statement that adds to the number of the period's interactions."""
        if self._batches_in_slot == BATCHES_OF_A_SLOT:
            self._take_slot()
        self._batches_in_slot += 1
        return ADD_TO_COUNT.format(period=period, slot=self._slot, events=events)

    def _take_slot(self) -> None:
        """Count in a row of `log_counters` that no other writer uses."""
        self._slot, self._batches_in_slot = secrets.randbits(62) + 1, 0


class EventWriters:
    """The writers of a process: one for each connection of a pool.

    Args:
        engine: its pool opens connections as they are needed, and keeps them.
        lock: key of the advisory lock of the log (`Lock.LOG`).
    """

    def __init__(self, engine: AsyncEngine, lock: int) -> None:
        self._engine, self._lock = engine, lock
        self._duplicates = DuplicateDetector()

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[EventWriter]:
        """A writer that nobody else uses within the block.

        Raises:
            NotReady: Postgres does not answer.
        """
        with opening():
            connection = await self._engine.raw_connection()
        try:
            if (writer := connection.info.get("writer")) is None:
                writer = EventWriter(connection.driver_connection, self._lock, self._duplicates)
                connection.info["writer"] = writer
            yield writer
        except Raced:  # the writer has ended the transaction
            connection.close()
            raise
        except BaseException:
            # The state of the connection is unknown. This ends it and waits for nothing; Postgres rolls back.
            connection.invalidate()
            raise
        connection.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()
