"""Add interactions to the log of the open period."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.errors import NotReady
from service.storage.database import Database, Lock
from service.storage.repositories import EventBatch, Interaction, Raced

__all__ = ["IngestResult", "ingest"]

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

    async def append(self, interactions: Sequence[Interaction], /) -> None:
        """Add clicks that were committed."""


async def ingest(database: Database, histories: ToldOfClicks, events: EventBatch) -> IngestResult:
    """Store the events that are new, durably, then append the clicks among them to the histories of their users.

    The log's lock is shared by all batches, so they run side by side; a close waits for those that have begun, and the
    later ones wait for the close. That is why no event can land in a period that is sealed.

    A late event, of a time that belongs to a closed period, lands in the open one too: the next update learns it, and
    in histories it has the place of its time.

    Raises:
        NotReady: Postgres cannot store them now; nothing is stored.
    """
    for _ in range(MOST_RACES):
        try:
            async with database.unit_of_work() as work:
                await work.lock_shared(Lock.LOG)
                period, unmerged = await work.periods.unmerged()
                accepted, conflicts = await work.interactions.insert(period, events, unmerged)
                await work.commit()
        except Raced:
            continue
        clicked = set(accepted).intersection(events.clicks())
        await histories.append([events[n] for n in sorted(clicked)])
        duplicates = len(events) - len(accepted) - len(conflicts)
        return IngestResult(accepted=len(accepted), duplicates=duplicates, conflicts=conflicts, period=period)
    raise NotReady("other calls keep storing events with the same ids")
