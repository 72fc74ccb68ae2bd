"""Watch periods change: the API's stream of a period and the command line do.

A process has one subscription to Redis, however many watchers, and reads a period from Postgres once for each change.
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

    Notices of progress from Redis make it prompt; polling Postgres makes it work without Redis.

    Args:
        database: holds the periods.
        notices: of progress.
        poll_seconds: how often a watched period is read without a notice.
        most: most watchers at a time.
        stopping: says whether the process is about to end; all streams end then.
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
        """Receive notices of progress, without end."""
        async for number in self._notices.progress_notices():
            for watched in list(self._watched.values()):
                if number is None or watched.number == number:
                    watched.wake.set()

    @asynccontextmanager
    async def watch(self, number: int) -> AsyncIterator[AsyncIterator[PeriodDocument]]:
        """The document of a period now and after every change, until its update has ended.

        A reader that is slow gets the newest document and misses earlier ones.

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
            # For all its watchers: the task must not end with the request of the first.
            watched.polling = start_alone(self._poll(watched), name=f"watch period {number}")
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
                await end_tasks(watched.polling)

    def _forget(self, watched: "_Watched") -> None:
        if self._watched.get(watched.number) is watched:
            del self._watched[watched.number]

    async def _poll(self, watched: "_Watched") -> None:
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
    """A watched period: its newest document, and the events that watchers wait for."""

    polling: asyncio.Task[None]

    def __init__(self, number: int) -> None:
        self.number = number
        self.watchers = 0
        self.wake = asyncio.Event()
        """Set when the period is to be read at once."""
        self.first = asyncio.Event()
        """Set when there is a document or an error."""
        self.document: PeriodDocument | None = None
        self.error: Exception | None = None
        self._ended = False
        self._changed = asyncio.Event()  # another one for each change

    def tell(self, document: PeriodDocument) -> None:
        """Pass the document to the watchers if it has changed."""
        if document != self.document:
            self.document = document
            self._wake_watchers()

    def end(self) -> None:
        """End all watchers after the newest document."""
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
    """The documents of `PeriodWatch.watch`, for a process that watches only this period."""
    watch = PeriodWatch(database, notices)
    listener = start_alone(watch.listen())
    try:
        async with watch.watch(number) as documents:
            async for document in documents:
                yield document
    finally:
        await end_tasks(listener)
