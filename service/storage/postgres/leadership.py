"""The election of one leader among all workers of a database. `service.worker` runs updates only while it leads."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from threading import Thread
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

DEAD_SECONDS = 600.0
"""How long the event loop of the work may stand still before its leader gives up. No call of an update holds the loop
for more than seconds, so after ten minutes it will never go on, and another worker should."""


class Leadership:
    """Leads while its connection holds an advisory lock.

    The connection belongs to an event loop in a thread of its own, so work that keeps its own loop busy for longer than
    the lease does not end the term. (The thread needs the interpreter for a moment every fifth of the lease. Python
    lets it in between any two instructions, and the compiled kernels and torch release the interpreter.)

    Postgres ends the term: at once when the process or its connection dies, and after `lease_seconds` of silence when
    the process is frozen or its host is gone. Only the clock of Postgres counts. A frozen leader that wakes up goes on
    for a moment before it notices that its term has ended, so its writes have to be refused (`Periods.hold`).

    Args:
        dsn: of the database.
        lock: the advisory lock that makes its holder the leader.
        lease_seconds: idle timeout of the session. While `hold` runs, a statement is sent five times in that time.
        answer_seconds: how long Postgres may take to answer before the term counts as lost.
        dead_seconds: how long the event loop that runs `hold` may stand still before the term is given up.
    """

    def __init__(
        self,
        dsn: str,
        *,
        lock: Lock = Lock.WORKER,
        lease_seconds: float = 15.0,
        answer_seconds: float = 5.0,
        dead_seconds: float = DEAD_SECONDS,
    ) -> None:
        session = {"idle_session_timeout": str(int(lease_seconds * 1000))}
        self._engine = make_engine(dsn, session, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._lock = lock
        self._lease_seconds, self._answer_seconds, self._dead_seconds = lease_seconds, answer_seconds, dead_seconds
        self._thread: _LoopThread | None = None
        self._connection: AsyncConnection | None = None
        self._alive = time.monotonic()

    async def try_acquire(self) -> bool:
        """Become the leader, unless another process is; return whether this object leads now.

        Raises:
            NotReady: Postgres does not answer.
        """
        if self._thread is None:
            self._thread = _LoopThread("leadership")
        return await self._thread.run(self._acquire(self._thread.busy))

    async def is_held(self) -> bool:
        """Whether this object leads: it was elected, and its connection still answers."""
        return self._thread is not None and await self._thread.run(self._answers(self._thread.busy))

    async def hold(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`, whatever time it takes, and return its result. It is cancelled when this object leads no more.

        Raises:
            NotReady: the term has ended.
        """
        thread, stop = self._thread, asyncio.Event()
        if thread is None:
            work.close()
            raise NotReady("the leadership was lost")

        async def live() -> None:
            while True:
                self._alive = time.monotonic()
                await asyncio.sleep(self._lease_seconds / 5)

        self._alive = time.monotonic()
        keeping = thread.run(self._keep(thread.busy, stop))
        working, living = start_for_caller(work), start_for_caller(live())
        try:
            await asyncio.wait((working, keeping), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise NotReady("the leadership was lost")
        finally:
            thread.call(stop.set)
            await end_tasks(working, living)
            await asyncio.wait((keeping,))
            keeping.result()
        return working.result()

    async def release(self) -> None:
        """Stop leading, so that another process can lead at once. Does nothing where this object does not lead."""
        thread, self._thread = self._thread, None
        if thread is not None:
            await thread.run(self._end(thread.busy))
            await thread.close()

    # What follows runs in the thread.

    async def _acquire(self, busy: asyncio.Lock) -> bool:
        if await self._answers(busy):
            return True
        connection = self._engine.connect()
        try:
            with opening():
                async with asyncio.timeout(self._answer_seconds):
                    await connection.start()
                    held = await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": int(self._lock)})
        except BaseException:
            await discard(connection)
            raise
        if not held:
            await connection.close()
            return False
        self._connection = connection
        return True

    async def _answers(self, busy: asyncio.Lock) -> bool:
        async with busy:  # a connection does one thing at a time
            if self._connection is None:
                return False
            try:
                async with asyncio.timeout(self._answer_seconds):
                    await self._connection.execute(text("SELECT 1"))
            except FAILURES as error:  # a TimeoutError is an OSError
                name = type(driver_error(error)).__name__
                logger.warning("leadership lost: the connection to Postgres does not answer (%s)", name)
                await self._discard()
                return False
            return True

    async def _keep(self, busy: asyncio.Lock, stop: asyncio.Event) -> None:
        """Keep the term alive until it is lost, or `stop` is set, or the event loop of the work is dead."""
        while not stop.is_set() and await self._answers(busy):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._lease_seconds / 5):
                    await stop.wait()
            if (seconds := time.monotonic() - self._alive) > self._dead_seconds:
                logger.error("leadership given up: the work has kept its event loop busy for %.0f s", seconds)
                await self._discard()

    async def _discard(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await discard(connection)

    async def _end(self, busy: asyncio.Lock) -> None:
        async with busy:
            await self._discard()
        await self._engine.dispose()


class _LoopThread:
    """An event loop in a thread of its own, which ends with the process.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self.busy = asyncio.Lock()
        """For what runs in the thread."""
        self._thread = Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Start `work` in the thread at once; return its result in the event loop of the caller."""
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def call(self, function: Callable[[], object]) -> None:
        """Call a function in the thread, soon."""
        self._loop.call_soon_threadsafe(function)

    async def close(self) -> None:
        """End the thread, when what runs in it has ended."""

        async def rest() -> None:
            if others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)

        await self.run(rest())
        self.call(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()
