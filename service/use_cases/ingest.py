"""Add to the log of the open period: interactions, or impressions and clicks, which are joined when it is closed."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from service.errors import NotReady
from service.storage.database import Database, Lock, UnitOfWork
from service.storage.repositories import Click, Clicks, EventBatch, Impression, Inserted, Raced

__all__ = ["IngestResult", "ToldOfClicks", "ingest", "ingest_clicks", "ingest_impressions"]

MOST_RACES = 8
"""Calls that store events with the same ids at the same moment, and that one call gives way to."""


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


class ToldOfClicks(Protocol):
    """What keeps the histories of users."""

    async def append(self, clicks: Clicks, /) -> None:
        """Add clicks that were committed."""


async def ingest(database: Database, histories: ToldOfClicks, events: EventBatch) -> IngestResult:
    """Store the events that are new, durably, then append the clicks among them to the histories of their users.

    A late event, of a time that belongs to a closed period, lands in the open one too: the next update learns it, and
    in histories it has the place of its time.

    Raises:
        NotReady: Postgres cannot store them now; nothing is stored.
    """
    for _ in range(MOST_RACES):
        try:
            async with database.append_to_log() as log:
                period, inserted = await log.insert(events)
                await log.commit()
        except Raced:
            continue
        await histories.append(events.clicks(inserted.accepted))
        return _result(len(events), inserted, period)
    raise NotReady("other calls keep storing events with the same ids")


async def ingest_impressions(
    database: Database, histories: ToldOfClicks, impressions: Sequence[Impression], window: timedelta
) -> IngestResult:
    """Store the impressions that are new, durably.

    Clicks that came before them, but within `window` of what they tell, count in histories from then on.
    """
    async with _log(database) as work:
        period = (await work.periods.open()).number
        inserted = await work.labels.insert_impressions(period, impressions)
        new = [impressions[n] for n in inserted.accepted]
        clicks = await work.labels.note_impressions(period, new, window)
        await work.commit()
    await histories.append(Clicks.of(clicks))
    return _result(len(impressions), inserted, period)


async def ingest_clicks(
    database: Database, histories: ToldOfClicks, clicks: Sequence[Click], window: timedelta
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
    await histories.append(Clicks.of(positives))
    return _result(len(clicks), inserted, period)


@asynccontextmanager
async def _log(database: Database) -> AsyncIterator[UnitOfWork]:
    """The same as `Database.append_to_log`, for what is not one COPY."""
    async with database.unit_of_work() as work:
        await work.lock_shared(Lock.LOG)
        yield work


def _result(events: int, inserted: Inserted, period: int) -> IngestResult:
    accepted, conflicts = len(inserted.accepted), inserted.conflicts
    return IngestResult(accepted, events - accepted - len(conflicts), conflicts, period)
