"""The way into Postgres: a pool of connections that opens read sessions and units of work.

Each process makes one `Database` when it starts and passes it to the use cases.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from asyncpg import InternalClientError
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import QueuePool

from service.errors import NotReady
from service.storage.postgres.engine import discard, make_engine
from service.storage.postgres.event_writer import EventWriters
from service.storage.postgres.outages import FAILURES, opening, outage
from service.storage.postgres.sessions import Lock, ReadSession, Session, UnitOfWork
from service.telemetry.server_metrics import PoolState

__all__ = ["Database", "Lock", "ReadSession", "UnitOfWork"]

SessionT = TypeVar("SessionT", bound=Session)


class Database:
    """A pool of connections.

    Args:
        dsn: `postgresql://…`; the name of the driver is added.
        pool_size: most connections at a time. A caller that gets none within 30 seconds gets `NotReady`.
        connection_seconds: age at which a connection is replaced. Each one costs Postgres memory that grows with every
            period, since it keeps the definitions of dropped tables too: 3 kB a period for the worker's.
    """

    def __init__(self, dsn: str, *, pool_size: int = 10, connection_seconds: float = 3600) -> None:
        self._most, self._waiting = pool_size, 0
        self._engine = make_engine(dsn, pool_size=pool_size, max_overflow=0, pool_recycle=connection_seconds)
        event.listen(self._engine.sync_engine, "checkout", _refuse_closed)
        # As many connections as ingestion uses at a time. They are returned in no transaction, so nothing is reset.
        writing = make_engine(
            dsn, pool_size=0, pool_recycle=connection_seconds, pool_use_lifo=True, pool_reset_on_return=None
        )
        event.listen(writing.sync_engine, "checkout", _refuse_closed)
        self.log = EventWriters(writing, int(Lock.LOG))
        """Writers of the log."""
        # A session that reads twice must see one state. In Postgres a read-only snapshot costs nothing and never fails.
        self._snapshots = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def read(self) -> AbstractAsyncContextManager[ReadSession]:
        """One read-only transaction over one snapshot.

        Raises:
            NotReady: Postgres does not answer or has no room, also while the block runs.
        """
        return self._transaction(self._snapshots, ReadSession)

    def unit_of_work(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """One read-committed transaction, rolled back unless committed.

        Raises:
            NotReady: Postgres does not answer or has no room, also while the block runs.
        """
        return self._transaction(self._engine, UnitOfWork)

    async def ping(self) -> None:
        """Return when Postgres has answered.

        Raises:
            NotReady: it did not.
        """
        async with self.read() as session:
            await session.connection.execute(text("SELECT 1"))

    @property
    def pool(self) -> PoolState:
        """How many connections of the sessions are in use, and who waits for one. Writers of the log have their own."""
        pool = self._engine.sync_engine.pool
        assert isinstance(pool, QueuePool)
        return PoolState(in_use=pool.checkedout(), most=self._most, waiting=self._waiting)

    async def close(self) -> None:
        """Close all pooled connections."""
        await self.log.close()
        await self._engine.dispose()

    @asynccontextmanager
    async def _transaction(self, engine: AsyncEngine, kind: type[SessionT]) -> AsyncIterator[SessionT]:
        async with AsyncExitStack() as stack:
            self._waiting += 1
            try:
                with opening():
                    connection = await engine.connect()
            finally:
                self._waiting -= 1
            stack.push_async_exit(partial(_close, connection))
            try:
                yield kind(connection)
            except (DBAPIError, InternalClientError, ConnectionError, TimeoutError) as error:
                if (trouble := outage(error)) is not None:
                    raise NotReady(trouble) from error
                raise


async def _close(connection: AsyncConnection, *raised: Any) -> None:
    """Give the connection back, which rolls back what was not committed. SQLAlchemy shields that from cancellation.

    It fails where Postgres has just ended the connection. The error that is being raised already says so.
    """
    try:
        await connection.__aexit__(*raised)
    except FAILURES:
        await discard(connection)


def _refuse_closed(connection: Any, _record: object, _proxy: object) -> None:
    """Make the pool replace a connection that has ended, which the driver knows without asking Postgres.

    SQLAlchemy's `pool_pre_ping` asks, and takes three round trips each time.
    """
    if connection.driver_connection.is_closed():
        raise DisconnectionError
