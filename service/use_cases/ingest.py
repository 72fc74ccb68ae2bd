"""Add to the log of the open period: interactions, or impressions and clicks, which are joined when it is closed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from service.storage.database import Database, Lock, UnitOfWork
from service.storage.repositories import Click, Impression, Inserted, Interaction

__all__ = ["IngestResult", "ToldOfClicks", "ingest", "ingest_clicks", "ingest_impressions"]


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

    async def append(self, interactions: Sequence[Interaction], /) -> None:
        """Add clicks that were committed."""


async def ingest(database: Database, histories: ToldOfClicks, events: Sequence[Interaction]) -> IngestResult:
    """Store the events that are new, durably, then append the clicks among them to the histories of their users.

    A late event, of a time that belongs to a closed period, lands in the open one too: the next update learns it, and
    in histories it has the place of its time.
    """
    async with _open_log(database) as (work, period):
        inserted = await work.interactions.insert(period, events)
        await work.commit()
    # Thousands of events are a millisecond's work, which the event loop has no time for.
    accepted = inserted.accepted
    clicks = await asyncio.to_thread(_clicks, events, accepted) if len(events) > 1000 else _clicks(events, accepted)
    await histories.append(clicks)
    return _result(len(events), inserted, period)


async def ingest_impressions(
    database: Database, histories: ToldOfClicks, impressions: Sequence[Impression], window: timedelta
) -> IngestResult:
    """Store the impressions that are new, durably.

    Clicks that came before them, but within `window` of what they tell, count in histories from then on.
    """
    async with _open_log(database) as (work, period):
        inserted = await work.labels.insert_impressions(period, impressions)
        clicks = await work.labels.attribute(period, inserted.accepted, window)
        await work.commit()
    await histories.append(clicks)
    return _result(len(impressions), inserted, period)


async def ingest_clicks(
    database: Database, histories: ToldOfClicks, clicks: Sequence[Click], window: timedelta
) -> IngestResult:
    """Store the clicks that are new, durably; in histories they count at once, as the interactions that they will be.

    Those whose impression is not known yet count from then on, those outside the `window` of theirs not at all.
    """
    async with _open_log(database) as (work, period):
        inserted, positives = await work.labels.insert_clicks(period, clicks, window)
        await work.commit()
    await histories.append(positives)
    return _result(len(clicks), inserted, period)


@asynccontextmanager
async def _open_log(database: Database) -> AsyncIterator[tuple[UnitOfWork, int]]:
    """A transaction, and the number of the period that is open until it ends.

    The log's lock is shared by all batches, so they run side by side; a close waits for those that have begun, and the
    later ones wait for the close. That is why no event can land in a period that is sealed.
    """
    async with database.unit_of_work() as work:
        await work.lock_shared(Lock.LOG)
        yield work, (await work.periods.open()).number


def _result(events: int, inserted: Inserted, period: int) -> IngestResult:
    duplicates = events - len(inserted.accepted) - len(inserted.conflicts)
    return IngestResult(len(inserted.accepted), duplicates, inserted.conflicts, period)


def _clicks(events: Sequence[Interaction], accepted: set[str]) -> list[Interaction]:
    """The accepted clicks; of events with one id the first, for that is the one that was stored."""
    first_of_each = {event.event_id: event for event in reversed(events)}
    return [event for event in first_of_each.values() if event.label == 1 and event.event_id in accepted]
