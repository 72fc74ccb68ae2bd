"""Add to the log of the open period: interactions, or impressions and clicks, which are joined when it is closed."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

import numpy as np

from service.errors import NotReady
from service.storage.postgres.database import Database, Lock, UnitOfWork
from service.storage.postgres.repositories import Click, EventBatch, Happened, Impression, Inserted, Raced, Stored
from service.tasks import end_tasks, start_alone

__all__ = ["IngestResult", "Ingestion", "KeepsPasts", "ingest", "ingest_clicks", "ingest_impressions"]

MOST_RACES = 8
"""Transactions that store events with the same ids at the same moment, and that one gives way to."""

LANES = 3
"""Transactions of a process at a time: so that neither it nor Postgres waits for the other, and few overlap."""

MOST_EVENTS = 4000
"""Of several calls in one transaction: each thousand takes the event loop a fraction of a millisecond."""


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What became of a batch."""

    accepted: int
    duplicates: int
    """Events that were known already, or came earlier in the same batch."""
    conflicts: list[str]
    """For each event that is not what is stored under its id, the id; nothing was changed."""
    period: int
    """The period that holds the accepted events."""


class KeepsPasts(Protocol):
    """What keeps what users did last."""

    async def append(self, happened: Happened, /) -> None:
        """Add what was committed."""


class _Call(NamedTuple):
    events: EventBatch
    result: asyncio.Future[IngestResult]


class Ingestion:
    """Stores the events of calls, those of several calls in one transaction where they wait for each other.

    A few transactions run side by side; whoever comes meanwhile waits for the first that ends, and all who wait then go
    together. So a call on its own waits for nobody, and the more there are the less each costs.

    A late event, of a time that belongs to a closed period, lands in the open one too: the next update learns it, and
    in histories it has the place of its time.
    """

    def __init__(self, database: Database, histories: KeepsPasts) -> None:
        self._database, self._histories = database, histories
        self._waiting: deque[_Call] = deque()
        self._lanes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def ingest(self, events: EventBatch) -> IngestResult:
        """Store the events that are new, durably, then add them to what their users did last.

        Raises:
            NotReady: Postgres cannot store them now; nothing is stored.
        """
        call = _Call(events, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        self._begin()
        return await call.result

    async def settle(self) -> None:
        """Wait until nothing is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """End what is under way."""
        while self._waiting:
            self._waiting.popleft().result.cancel()
        await end_tasks(*self._tasks)

    def _begin(self) -> None:
        if self._waiting and self._lanes < LANES:
            self._lanes += 1
            self._spawn(self._store())

    def _next(self) -> list[_Call]:
        """Those that have waited longest, so far as they fit."""
        calls: list[_Call] = []
        room = MOST_EVENTS
        while self._waiting and (not calls or len(self._waiting[0].events) <= room):
            calls.append(self._waiting.popleft())
            room -= len(calls[-1].events)
        return calls

    async def _store(self) -> None:
        calls = self._next()
        try:
            events = EventBatch.join([call.events for call in calls])
            for _ in range(MOST_RACES):
                with suppress(Raced):
                    async with self._database.log.lend() as log:
                        stored = await log.insert(events)
                        # Nobody has to wait for the end of the block: neither these calls nor the next ones.
                        self._spawn(self._answer(calls, events, stored))
                        calls = []
                        self._lanes -= 1
                        self._begin()
                    return
            raise NotReady("other calls keep storing events with the same ids")
        except BaseException as error:
            _fail(calls, error)
            if not isinstance(error, Exception):
                raise
        finally:
            if calls:
                self._lanes -= 1
                self._begin()

    async def _answer(self, calls: list[_Call], events: EventBatch, stored: Stored) -> None:
        try:
            await self._histories.append(stored.happened)
            results = _results(calls, events, stored)
        except BaseException as error:
            _fail(calls, error)
            if not isinstance(error, Exception):
                raise
            return
        for call, result in zip(calls, results, strict=True):
            if not call.result.done():  # nobody waits for it any more
                call.result.set_result(result)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(task := start_alone(work))
        task.add_done_callback(self._tasks.discard)


async def ingest(database: Database, histories: KeepsPasts, events: EventBatch) -> IngestResult:
    """The same for one call on its own."""
    ingestion = Ingestion(database, histories)
    try:
        result = await ingestion.ingest(events)
    except BaseException:
        await ingestion.close()
        raise
    await ingestion.settle()
    return result


def _results(calls: Sequence[_Call], events: EventBatch, stored: Stored) -> list[IngestResult]:
    """What became of each call's part of the events."""
    period, inserted, _ = stored
    ends = np.cumsum([len(call.events) for call in calls])
    accepted = np.bincount(np.searchsorted(ends, inserted.accepted, side="right"), minlength=len(calls)).tolist()
    conflicts: list[list[str]] = [[] for _ in calls]
    if inserted.conflicts:
        ids = events.ids()
        for n in inserted.conflicts:
            conflicts[int(np.searchsorted(ends, n, side="right"))].append(ids[n])
    return [
        IngestResult(new, len(call.events) - new - len(differing), differing, period)
        for call, new, differing in zip(calls, accepted, conflicts, strict=True)
    ]


async def ingest_impressions(
    database: Database, histories: KeepsPasts, impressions: Sequence[Impression], window: timedelta
) -> IngestResult:
    """Store the impressions that are new, durably; their items are passes of the user until they are clicked.

    Clicks that came before them, but within `window` of what they tell, count in histories from then on.
    """
    async with _log(database) as work:
        period = (await work.periods.open()).number
        inserted = await work.labels.insert_impressions(period, impressions)
        new = [impressions[n] for n in inserted.accepted]
        clicks = await work.labels.note_impressions(period, new, window)
        await work.commit()
    await histories.append(Happened.of([passed for shown in new for passed in shown.newest], shown=True))
    await histories.append(Happened.of(clicks))
    return _result(impressions, inserted, period)


async def ingest_clicks(
    database: Database, histories: KeepsPasts, clicks: Sequence[Click], window: timedelta
) -> IngestResult:
    """Store the clicks that are new, durably; in histories they count at once, as the interactions that they will be.

    Those whose impression is not known yet count from then on, those outside the `window` of theirs not at all.
    """
    async with _log(database) as work:
        period = (await work.periods.open()).number
        inserted = await work.labels.insert_clicks(period, clicks)
        new = [clicks[n] for n in inserted.accepted]
        positives = await work.labels.note_clicks(period, new, window)
        await work.commit()
    await histories.append(Happened.of(positives))
    return _result(clicks, inserted, period)


@asynccontextmanager
async def _log(database: Database) -> AsyncIterator[UnitOfWork]:
    """A transaction in which the open period stays open (see `LogWriters.lend`), for what is more than one COPY."""
    async with database.unit_of_work() as work:
        await work.lock_shared(Lock.LOG)
        yield work


def _result(events: Sequence[Impression] | Sequence[Click], inserted: Inserted, period: int) -> IngestResult:
    accepted, conflicts = len(inserted.accepted), [events[n].event_id for n in inserted.conflicts]
    return IngestResult(accepted, len(events) - accepted - len(conflicts), conflicts, period)


def _fail(calls: Sequence[_Call], error: BaseException) -> None:
    """Tell the calls that have no answer yet."""
    for call in calls:
        if call.result.done():
            continue
        if isinstance(error, Exception):
            call.result.set_exception(error)
        else:
            call.result.cancel()
