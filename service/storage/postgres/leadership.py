"""The election of one leader among all workers of a database. `service.worker` runs updates only while it leads."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import NullPool

from service.errors import NotReady
from service.storage.postgres.engine import discard, make_engine
from service.storage.postgres.outages import FAILURES, driver_error, opening
from service.storage.postgres.sessions import Lock
from service.tasks import end_tasks, start_for_caller

__all__ = ["Leadership"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Leadership:
    """Leads while its connection holds an advisory lock.

    Postgres ends the term: at once when the process or its connection dies, and after `lease_seconds` of silence when
    the process is frozen or its host is gone. Only the clock of Postgres counts. A frozen leader that wakes up goes on
    for a moment before it notices that its term has ended, so its writes have to be refused (`Periods.hold`).

    Args:
        dsn: of the database.
        lock: the advisory lock that makes its holder the leader.
        lease_seconds: idle timeout of the session. `hold` sends a statement five times in that time.
        answer_seconds: how long Postgres may take to answer before the term counts as lost.
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
        """Become the leader, unless another process is; return whether this object leads now.

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
            await discard(connection)
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
            await discard(connection)
            return False
        return True

    async def hold(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` and return its result. It is cancelled as soon as this object no longer leads.

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
        """Stop leading, so that another process can lead at once. Does nothing where this object does not lead."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await discard(connection)
        await self._engine.dispose()
