"""Watching periods change. However many watch, a process has one subscription to Redis, and looks a period up once for
each change of it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from service.errors import NotReady
from service.limits import MAX_STREAMS
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import ENDED
from service.storage.redis.notices import Notices
from service.tasks import end_tasks, start_alone
from service.use_cases.status import PeriodDocument, get_period

__all__ = ["PeriodWatch", "watch_period"]


class PeriodWatch:
    """The periods that are watched in this process.

    Notices of progress make it prompt; the poll makes it work without Redis, and go on after Postgres was away.

    Args:
        database: where periods are looked up.
        notices: of progress.
        poll_seconds: how often a watched period is looked up without a notice.
        most: watchers at a time.
        stopping: whether the process is to end; all streams end then.
    """

    def __init__(
        self,
        database: Database,
        notices: Notices,
        *,
        poll_seconds: float = 1.0,
        most: int = MAX_STREAMS,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._database, self._notices = database, notices
        self._poll_seconds, self._most, self._stopping = poll_seconds, most, stopping
        self._watched: dict[int, _Watched] = {}
        self._watchers = 0

    async def listen(self) -> None:
        """Hear of progress; for ever."""
        async for number in self._notices.progress_notices():
            for watched in list(self._watched.values()):
                if number is None or watched.number == number:
                    watched.wake.set()

    @asynccontextmanager
    async def watch(self, number: int) -> AsyncIterator[AsyncIterator[PeriodDocument]]:
        """The document of a period now and after every change, until its update has ended. Who is slow to read gets the
        newest, and misses those before it.

        Raises:
            NotReady: too many watch already, or Postgres does not answer.
            PeriodNotFound: there is none with this number.
        """
        if self._watchers >= self._most:
            raise NotReady(f"the process has {self._most} streams of events, and takes no more")
        self._watchers += 1
        watched = self._watched.get(number)
        if watched is None:
            watched = self._watched[number] = _Watched(number)
            # For all who watch it, whoever came first.
            watched.looking = start_alone(self._look(watched), name=f"watch period {number}")
        watched.watchers += 1
        try:
            await watched.first.wait()
            if watched.document is None and watched.error is not None:
                raise watched.error
            yield watched.documents()
        finally:
            self._watchers -= 1
            watched.watchers -= 1
            if watched.watchers == 0:
                self._forget(watched)
                await end_tasks(watched.looking)

    def _forget(self, watched: "_Watched") -> None:
        if self._watched.get(watched.number) is watched:
            del self._watched[watched.number]

    async def _look(self, watched: "_Watched") -> None:
        try:
            while not self._stopping():
                watched.wake.clear()
                try:
                    document = await get_period(self._database, self._notices, watched.number)
                except NotReady:
                    if watched.document is None:
                        raise
                else:
                    watched.tell(document)
                    if document.status in ENDED:
                        return
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_seconds):
                        await watched.wake.wait()
        except Exception as error:
            watched.error = error
        finally:
            self._forget(watched)
            watched.end()


class _Watched:
    """A period, and what those who watch it wait for."""

    looking: asyncio.Task[None]

    def __init__(self, number: int) -> None:
        self.number = number
        self.watchers = 0
        self.wake = asyncio.Event()
        """Set when it is to be looked up at once."""
        self.first = asyncio.Event()
        """Set when there is a document or an error."""
        self.document: PeriodDocument | None = None
        self.error: Exception | None = None
        self._ended = False
        self._changed = asyncio.Event()  # another one for each change

    def tell(self, document: PeriodDocument) -> None:
        """Give the document to those who watch, where it is news."""
        if document != self.document:
            self.document = document
            self._wake_watchers()

    def end(self) -> None:
        """There is nothing more to come."""
        self._ended = True
        self._wake_watchers()

    def _wake_watchers(self) -> None:
        self.first.set()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def documents(self) -> AsyncIterator[PeriodDocument]:
        """See `PeriodWatch.watch`."""
        last = None
        while True:
            changed = self._changed
            if self.document is not None and self.document is not last:
                last = self.document
                yield last
            elif self._ended:
                break
            else:
                await changed.wait()
        if self.error is not None:
            raise self.error


async def watch_period(database: Database, notices: Notices, number: int) -> AsyncIterator[PeriodDocument]:
    """The documents of `PeriodWatch.watch`, for a process that watches nothing else."""
    watch = PeriodWatch(database, notices)
    listener = start_alone(watch.listen())
    try:
        async with watch.watch(number) as documents:
            async for document in documents:
                yield document
    finally:
        await end_tasks(listener)
