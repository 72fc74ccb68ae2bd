"""Connections to Postgres: read sessions, units of work, advisory locks and the election of a leader."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from enum import IntEnum
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import asyncpg
import orjson
from asyncpg import InternalClientError
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from service.errors import ConfigurationError, NotReady
from service.settings import sqlalchemy_dsn
from service.storage.postgres.event_writer import EventWriters
from service.storage.postgres.outages import FAILURES, driver_error, opening, outage
from service.storage.postgres.pooler import require_sessions
from service.storage.postgres.repositories import (
    Artifacts,
    Audit,
    Deletions,
    Entities,
    Evaluations,
    Features,
    Interactions,
    Items,
    Keys,
    Labels,
    Models,
    Past,
    Periods,
    Stages,
    Traces,
)
from service.tasks import end_tasks, start_alone, start_for_caller

__all__ = ["Database", "Leadership", "Lock", "ReadSession", "UnitOfWork", "make_engine", "require_sessions"]

logger = logging.getLogger(__name__)


IDLE_SECONDS = 10
PROBE_SECONDS, PROBES = 5, 3
GONE_SECONDS = IDLE_SECONDS + PROBE_SECONDS * PROBES
"""After so long without an answer from the other host a connection has ended, on either side."""

IN_TRANSACTION_SECONDS = 30
"""A client that says nothing for so long in the midst of a transaction is frozen: Postgres ends it, and its locks."""

SESSION = {
    "application_name": "asmg",
    "jit": "off",  # it takes longer to compile than any query here takes to run
    "timezone": "UTC",
    "idle_in_transaction_session_timeout": str(IN_TRANSACTION_SECONDS * 1000),
    # Of TCP alone; on a Unix socket Postgres ignores them.
    "tcp_keepalives_idle": str(IDLE_SECONDS),
    "tcp_keepalives_interval": str(PROBE_SECONDS),
    "tcp_keepalives_count": str(PROBES),
    "tcp_user_timeout": str(GONE_SECONDS * 1000),
}
"""Settings of every session."""

KEEPALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (
        ("TCP_KEEPIDLE", IDLE_SECONDS),
        ("TCP_KEEPINTVL", PROBE_SECONDS),
        ("TCP_KEEPCNT", PROBES),
        ("TCP_USER_TIMEOUT", GONE_SECONDS * 1000),
    )
    if hasattr(socket, name)  # not on every system
]
"""The same of the client's side."""


class Lock(IntEnum):
    """Keys of the advisory locks: `"asmg"` in the upper half, so that other programs on the server do not collide."""

    LOG = 0x61736D67_00000001
    """The end of the log: shared by ingestion, exclusive while a period is closed."""
    MODELS = 0x61736D67_00000002
    """Model versions and aliases: exclusive while one is published or moved."""
    MIGRATE = 0x61736D67_00000003
    """The schema: exclusive while it changes."""
    WORKER = 0x61736D67_00000004
    """Held by the leading worker for as long as it leads."""


class _Session:
    """The repositories over one transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.periods = Periods(connection)
        self.stages = Stages(connection)
        self.interactions = Interactions(connection)
        self.labels = Labels(connection)
        self.features = Features(connection)
        self.past = Past(connection)
        self.items = Items(connection)
        self.entities = Entities(connection)
        self.models = Models(connection)
        self.artifacts = Artifacts(connection)
        self.evaluations = Evaluations(connection)
        self.keys = Keys(connection)
        self.audit = Audit(connection)
        self.deletions = Deletions(connection)
        self.traces = Traces(connection)


class ReadSession(_Session):
    """One snapshot of the database; Postgres refuses every write in it."""


class UnitOfWork(_Session):
    """One transaction that is rolled back unless `commit` was called.

    Statements after a `commit` open a next transaction under the same rule; locks end with their transaction.
    """

    async def commit(self) -> None:
        """Make everything since the beginning, or since the last commit, durable."""
        await self.connection.commit()

    async def lock_shared(self, name: Lock) -> None:
        """Wait until nobody holds `name` exclusively; hold it with others until the transaction ends."""
        await self.connection.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": int(name)})

    async def lock_exclusive(self, name: Lock) -> None:
        """Wait until nobody holds `name`; hold it alone until the transaction ends."""
        await self.connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": int(name)})


T = TypeVar("T")
SessionT = TypeVar("SessionT", bound=_Session)


class Database:
    """A pool of connections.

    Args:
        dsn: `postgresql://…`; the driver is added.
        pool_size: connections at most; a caller that gets none for 30 seconds gets `NotReady`.
        connection_seconds: after which a connection is replaced. What Postgres remembers for it grows with each period,
            for it remembers tables that are gone too: 3 kB for the worker's.
    """

    def __init__(self, dsn: str, *, pool_size: int = 10, connection_seconds: float = 3600) -> None:
        self._engine = make_engine(dsn, pool_size=pool_size, max_overflow=0, pool_recycle=connection_seconds)
        event.listen(self._engine.sync_engine, "checkout", _refuse_closed)
        # As many connections as ingestion uses at a time. They are returned in no transaction, so nothing is reset.
        writing = make_engine(
            dsn, pool_size=0, pool_recycle=connection_seconds, pool_use_lifo=True, pool_reset_on_return=None
        )
        event.listen(writing.sync_engine, "checkout", _refuse_closed)
        self.log = EventWriters(writing, int(Lock.LOG))
        """Writers of the log."""
        # A session that reads twice must see one state; in Postgres a read-only snapshot costs nothing and never fails.
        self._snapshots = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    def read(self) -> AbstractAsyncContextManager[ReadSession]:
        """One read-only transaction over one snapshot.

        Raises:
            NotReady: Postgres does not answer, or has no room; from the block too.
        """
        return self._session(self._snapshots, ReadSession)

    def unit_of_work(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """One read-committed transaction, rolled back unless committed.

        Raises:
            NotReady: Postgres does not answer, or has no room; from the block too.
        """
        return self._session(self._engine, UnitOfWork)

    async def ping(self) -> None:
        """Return when Postgres has answered.

        Raises:
            NotReady: it did not.
        """
        async with self.read() as session:
            await session.connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        """Close all pooled connections."""
        await self.log.close()
        await self._engine.dispose()

    @asynccontextmanager
    async def _session(self, engine: AsyncEngine, kind: type[SessionT]) -> AsyncIterator[SessionT]:
        async with AsyncExitStack() as stack:
            with opening():
                connection = await engine.connect()
            stack.push_async_exit(partial(_leave, connection))
            try:
                yield kind(connection)
            except (DBAPIError, InternalClientError, ConnectionError, TimeoutError) as error:
                if (trouble := outage(error)) is not None:
                    raise NotReady(trouble) from error
                raise


class Leadership:
    """The election of one leader among all processes that use a database.

    The leader holds an advisory lock of its session, so Postgres itself ends the term: at once when the process or its
    connection dies, and after `lease_seconds` without a word when it is frozen, or its host is gone. There is no clock
    to trust but that of Postgres. A leader that was frozen goes on for a moment before it learns that its term has
    ended, so what it writes has to be refused (`Periods.hold`).

    Args:
        dsn: of the database.
        lock: what is held.
        lease_seconds: idle timeout of the session, which `hold` keeps from running out.
        answer_seconds: a Postgres that takes longer is as good as away.
    """

    def __init__(
        self, dsn: str, *, lock: Lock = Lock.WORKER, lease_seconds: float = 15.0, answer_seconds: float = 5.0
    ) -> None:
        session = {"idle_session_timeout": str(int(lease_seconds * 1000))}
        self._engine = make_engine(dsn, session, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._lock = lock
        self._lease_seconds, self._answer_seconds = lease_seconds, answer_seconds
        self._connection: AsyncConnection | None = None

    async def try_acquire(self) -> bool:
        """Lead, if nobody else does; True as well where this object leads already.

        Raises:
            NotReady: Postgres does not answer.
        """
        if await self.is_held():
            return True
        connection = self._engine.connect()
        try:
            with opening():
                async with asyncio.timeout(self._answer_seconds):
                    await connection.start()
                    held = await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": int(self._lock)})
        except NotReady:
            await _discard(connection)
            raise
        if not held:
            await connection.close()
            return False
        self._connection = connection
        return True

    async def is_held(self) -> bool:
        """Whether this object leads: it was elected, and its connection still answers."""
        if self._connection is None:
            return False
        try:
            async with asyncio.timeout(self._answer_seconds):
                await self._connection.execute(text("SELECT 1"))
        except FAILURES as error:  # a TimeoutError is an OSError
            name = type(driver_error(error)).__name__
            logger.warning("leadership lost: the connection to Postgres does not answer (%s)", name)
            connection, self._connection = self._connection, None
            await _discard(connection)
            return False
        return True

    async def hold(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns; it is ended as soon as this object does not lead any more.

        Raises:
            NotReady: the term has ended.
        """

        async def watch() -> None:
            while True:
                if not await self.is_held():
                    return
                await asyncio.sleep(self._lease_seconds / 5)

        working, watching = start_for_caller(work), start_for_caller(watch())
        try:
            await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise NotReady("the leadership was lost")
        finally:
            await end_tasks(working, watching)
        return working.result()

    async def release(self) -> None:
        """Stop leading, so that another process can at once; nothing happens where this object does not lead."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await _discard(connection)
        await self._engine.dispose()


async def _leave(connection: AsyncConnection, *raised: Any) -> None:
    """Close the connection, and so roll back; SQLAlchemy shields that from cancellation.

    One that Postgres has just ended may fail at it, which says no more than the error that is on its way already.
    """
    try:
        await connection.__aexit__(*raised)
    except FAILURES:
        await _discard(connection)


async def _discard(connection: AsyncConnection) -> None:
    """Close the connection for good, also where it is broken; the server then ends its session and frees its locks."""
    with suppress(*FAILURES):
        await connection.invalidate()
    with suppress(*FAILURES):
        await connection.close()


def make_engine(dsn: str, session: Mapping[str, str] = MappingProxyType({}), **options: Any) -> AsyncEngine:
    """An engine whose sessions have these settings beside those of all."""
    try:
        url = sqlalchemy_dsn(dsn)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    engine = create_async_engine(
        url,
        hide_parameters=True,  # errors are logged, and what clients sent or a key's hash is nothing for a log
        json_serializer=_dump_json,
        json_deserializer=orjson.loads,
        connect_args={"server_settings": {**SESSION, **session}, "async_creator_fn": _connect},
        **options,
    )
    event.listen(engine.sync_engine, "connect", _keep_alive)
    return engine


async def _connect(*args: Any, **kwargs: Any) -> Any:
    """Connect in the name of no request: what happens to the connection later is not the business of the first one."""
    return await start_alone(asyncpg.connect(*args, **kwargs))


def _keep_alive(connection: Any, _record: object) -> None:
    """Have the kernel find out when the host of Postgres is gone; asyncpg has no setting for it."""
    opened: socket.socket = connection.driver_connection._transport.get_extra_info("socket")
    if opened.family is not socket.AF_UNIX:
        for level, option, value in KEEPALIVE:
            opened.setsockopt(level, option, value)


def _refuse_closed(connection: Any, _record: object, _proxy: object) -> None:
    """Have the pool open another connection in place of one that has ended, which the driver knows without asking.

    To ask Postgres, as SQLAlchemy does for a pool that is told to, would take three trips each time.
    """
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _dump_json(value: object) -> str:
    # NaN becomes null, for JSON has no NaN; NumPy scalars and arrays become numbers and lists.
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
