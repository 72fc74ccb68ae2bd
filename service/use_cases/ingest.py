"""Add to the log of the open period: interactions, or impressions and clicks, which are joined when it is closed."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, TypeVar

import numpy as np

from service.errors import NotReady
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import (
    Click,
    EventBatch,
    Happened,
    Impression,
    Inserted,
    Interaction,
    Labels,
    Raced,
)
from service.telemetry.tracing import span
from service.use_cases.group_commit import GroupCommit

__all__ = ["IngestResult", "Ingestion", "KeepsPasts", "ingest", "ingest_clicks", "ingest_impressions"]

MOST_RACES = 8
"""Times that a group is begun anew because other transactions stored events with the same ids at the same moment."""

LANES = 3
"""Transactions of a process at a time: enough that neither it nor Postgres waits for the other, and few overlap."""

MOST_EVENTS = 4000
"""Events of several calls in one transaction: each thousand occupies the event loop for a fraction of a millisecond."""

LabelT = TypeVar("LabelT", Impression, Click)


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What became of the events of one call."""

    accepted: int
    duplicates: int
    """Events that were known already, or came earlier in the same call."""
    conflicts: list[str]
    """The id of each event that differs from the one stored under that id; nothing was changed."""
    period: int
    """The period that has the accepted events."""


class KeepsPasts(Protocol):
    """The histories of users."""

    async def append(self, happened: Happened, /) -> None:
        """Add what was committed."""


class Ingestion:
    """Stores the events of `POST /interactions`, those of calls that wait at the same time in one transaction.

    A late event, whose time belongs to a closed period, is stored in the open one too: the next update learns it, and
    in histories it takes the place of its time.
    """

    def __init__(self, database: Database, histories: KeepsPasts) -> None:
        self._database, self._histories = database, histories
        self._groups = GroupCommit(self._store, self._results, size=len, most=MOST_EVENTS, lanes=LANES)

    async def ingest(self, events: EventBatch) -> IngestResult:
        """Store the events that are new, durably, then add them to the histories of their users.

        Raises:
            NotReady: Postgres cannot store them now; nothing is stored.
        """
        return await self._groups.run(events)

    async def settle(self) -> None:
        """Wait until nothing is under way."""
        await self._groups.settle()

    async def close(self) -> None:
        """Cancel what is under way."""
        await self._groups.close()

    async def _store(self, calls: list[EventBatch]) -> tuple[EventBatch, int, Inserted]:
        events = EventBatch.join(calls)
        for _ in range(MOST_RACES):
            with suppress(Raced), span("store events", {"db.system.name": "postgresql", "asmg.events": len(events)}):
                async with self._database.log.acquire() as writer:
                    return events, *(await writer.insert(events))
        raise NotReady("other calls keep storing events with the same ids")

    async def _results(
        self, calls: list[EventBatch], stored: tuple[EventBatch, int, Inserted]
    ) -> Sequence[IngestResult]:
        events, period, inserted = stored
        await self._histories.append(Happened.among(events, inserted.accepted))
        return _results_of_calls(inserted, events.event_ids, [len(call) for call in calls], period)


async def ingest(database: Database, histories: KeepsPasts, events: EventBatch) -> IngestResult:
    """Ingest one batch without grouping."""
    ingestion = Ingestion(database, histories)
    try:
        return await ingestion.ingest(events)
    finally:
        await ingestion.close()


async def ingest_impressions(
    database: Database, histories: KeepsPasts, impressions: Sequence[Impression], window: timedelta
) -> IngestResult:
    """Store the impressions that are new, durably. Their items are passes of the user until they are clicked.

    Clicks that came before them, and within `window` of the impression, count in histories from then on.
    """
    new, clicks, result = await _store_labels(
        database, impressions, window, insert=Labels.insert_impressions, note=Labels.note_impressions
    )
    await histories.append(Happened.of([passed for shown in new for passed in shown.newest], shown=True))
    await histories.append(Happened.of(clicks))
    return result


async def ingest_clicks(
    database: Database, histories: KeepsPasts, clicks: Sequence[Click], window: timedelta
) -> IngestResult:
    """Store the clicks that are new, durably. In histories they count at once, as the interactions that they will be.

    A click whose impression is not known yet counts from when that comes, one outside the `window` of its impression
    not at all.
    """
    _, positives, result = await _store_labels(
        database, clicks, window, insert=Labels.insert_clicks, note=Labels.note_clicks
    )
    await histories.append(Happened.of(positives))
    return result


async def _store_labels(
    database: Database,
    events: Sequence[LabelT],
    window: timedelta,
    *,
    insert: Callable[[Labels, int, Sequence[LabelT]], Awaitable[Inserted]],
    note: Callable[[Labels, int, Sequence[LabelT], timedelta], Awaitable[list[Interaction]]],
) -> tuple[list[LabelT], list[Interaction], IngestResult]:
    """Insert impressions or clicks into the open period, which stays open until the commit.

    Returns:
        those that were new, the clicks that histories get now, and the answer to the call.
    """
    async with database.unit_of_work() as work:
        await work.lock_shared(Lock.LOG)
        period = (await work.periods.open()).number
        inserted = await insert(work.labels, period, events)
        new = [events[n] for n in inserted.accepted]
        positives = await note(work.labels, period, new, window)
        await work.commit()
    [result] = _results_of_calls(inserted, [event.event_id for event in events], [len(events)], period)
    return new, positives, result


def _results_of_calls(inserted: Inserted, ids: Sequence[str], sizes: Sequence[int], period: int) -> list[IngestResult]:
    """What became of the events of each call.

    Args:
        inserted: what became of the events of all calls, one call after the other.
        ids: ids of these events.
        sizes: number of events of each call.
        period: the period that has the accepted events.
    """
    ends = np.cumsum(sizes)
    accepted = np.bincount(np.searchsorted(ends, inserted.accepted, side="right"), minlength=len(sizes)).tolist()
    conflicts: list[list[str]] = [[] for _ in sizes]
    for n in inserted.conflicts:
        conflicts[int(np.searchsorted(ends, n, side="right"))].append(ids[n])
    return [
        IngestResult(new, size - new - len(differing), differing, period)
        for size, new, differing in zip(sizes, accepted, conflicts, strict=True)
    ]
