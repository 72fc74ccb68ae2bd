"""Add interactions to the log of the open period."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.storage.database import Database, Lock
from service.storage.repositories import Interaction

__all__ = ["IngestResult", "ingest"]


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

    The log's lock is shared by all batches, so they run side by side; a close waits for those that have begun, and the
    later ones wait for the close. That is why no event can land in a period that is sealed.

    A late event, of a time that belongs to a closed period, lands in the open one too: the next update learns it, and
    in histories it has the place of its time.
    """
    async with database.unit_of_work() as work:
        await work.lock_shared(Lock.LOG)
        period = await work.periods.open()
        accepted, conflicts = await work.interactions.insert(period.number, events)
        await work.commit()
    # Thousands of events are a millisecond's work, which the event loop has no time for.
    clicks = await asyncio.to_thread(_clicks, events, accepted) if len(events) > 1000 else _clicks(events, accepted)
    await histories.append(clicks)
    duplicates = len(events) - len(accepted) - len(conflicts)
    return IngestResult(accepted=len(accepted), duplicates=duplicates, conflicts=conflicts, period=period.number)


def _clicks(events: Sequence[Interaction], accepted: set[str]) -> list[Interaction]:
    """The accepted clicks; of events with one id the first, for that is the one that was stored."""
    first_of_each = {event.event_id: event for event in reversed(events)}
    return [event for event in first_of_each.values() if event.label == 1 and event.event_id in accepted]
