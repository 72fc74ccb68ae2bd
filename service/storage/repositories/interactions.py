"""The log of what happened: ingestion, reading a period in order, and the positives behind user histories.

Rows travel as columns: one array for each column, unnested or aggregated by Postgres. It saves the drivers a
round trip and the service a Python object for each row.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.limits import MAX_HISTORY
from service.storage import tables

__all__ = ["HistoryEntry", "Interaction", "Interactions", "PeriodLog", "Positives", "to_ms"]

ScalarT = TypeVar("ScalarT", bound=np.generic)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BEFORE_ALL_TIME = datetime(1, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)

# Postgres builds an array of at most 1 GB: pages keep far from it at the longest ids, and memory flat on the server.
ROWS_OF_A_PAGE = 200_000
USERS_OF_A_PAGE = 20_000
# The event loop does nothing else while the driver takes them in.
ROWS_OF_AN_INSERT = 1000


def to_ms(moment: datetime) -> int:
    """Milliseconds since 1970 of a timezone-aware time, rounded down."""
    return (moment - EPOCH) // MILLISECOND


@dataclass(frozen=True, slots=True)
class Interaction:
    """One impression with its outcome."""

    event_id: str
    """The client's name for the event; a second event with the same name is a duplicate."""
    user_id: str
    item_id: str
    label: int
    """1 for a click, else 0."""
    occurred_at: datetime
    """Timezone-aware."""
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One positive of a user."""

    item_id: str
    event_id: str
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class PeriodLog:
    """All interactions of one period, in the order in which they happened, as columns of length n."""

    user_ids: list[str]
    item_ids: list[str]
    labels: NDArray[np.int8]
    """0 or 1."""
    timestamps_ms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user_ids)


@dataclass(frozen=True, slots=True)
class Positives:
    """Positives of many users as columns of length n: users in the order of their ids, newest first in each."""

    user_ids: list[str]
    item_ids: list[str]
    timestamps_ms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user_ids)


# Sorted by event id, concurrent batches that overlap take their row locks in one order and cannot deadlock.
INSERT = text("""
    WITH accepted AS (
        INSERT INTO interactions (event_id, period, user_id, item_id, label, occurred_at, request_id)
        SELECT event_id, :period, user_id, item_id, label, occurred_at, request_id
        FROM unnest(
            CAST(:event_ids AS text[]), CAST(:user_ids AS text[]), CAST(:item_ids AS text[]),
            CAST(:labels AS smallint[]), CAST(:times AS timestamptz[]), CAST(:request_ids AS text[])
        ) AS event (event_id, user_id, item_id, label, occurred_at, request_id)
        ON CONFLICT (event_id) DO NOTHING
        RETURNING event_id
    )
    SELECT array_agg(event_id) FROM accepted
""")

LOG_PAGE = text("""
    SELECT array_agg(user_id) AS user_ids, array_agg(item_id) AS item_ids, array_agg(label) AS labels,
           array_agg(ms) AS timestamps_ms, max(occurred_at) AS last_time, (array_agg(seq))[count(*)] AS last_seq
    FROM (
        SELECT user_id, item_id, label, occurred_at, seq,
               floor(extract(epoch FROM occurred_at) * 1000)::bigint AS ms
        FROM interactions
        WHERE period = :period AND (occurred_at, seq) > (:after_time, :after_seq)
        ORDER BY occurred_at, seq
        LIMIT :size
    ) AS page
""")

# An event that came late needs the clicks before its own time: those at or after the user's first event of the period
# (at the log's resolution) do not count towards the limit.
EARLIER_POSITIVES_PAGE = text("""
    WITH page AS (
        SELECT user_id, date_trunc('milliseconds', min(occurred_at)) AS first FROM interactions
        WHERE period = :period AND user_id > :after_user
        GROUP BY user_id
        ORDER BY user_id
        LIMIT :size
    )
    SELECT (SELECT max(user_id) FROM page) AS last_user, array_agg(user_id) AS user_ids,
           array_agg(item_id) AS item_ids, array_agg(ms) AS timestamps_ms
    FROM (
        SELECT page.user_id, positive.item_id, floor(extract(epoch FROM occurred_at) * 1000)::bigint AS ms
        FROM page CROSS JOIN LATERAL (
            SELECT item_id, occurred_at, seq FROM interactions
            WHERE interactions.user_id = page.user_id AND label = 1 AND period < :period
            ORDER BY occurred_at DESC, seq DESC
            LIMIT :limit + (
                SELECT count(*) FROM interactions
                WHERE interactions.user_id = page.user_id AND label = 1 AND period < :period
                  AND occurred_at >= page.first
            )
        ) AS positive
        ORDER BY page.user_id, positive.occurred_at DESC, positive.seq DESC
    ) AS ordered
""")

RECENT_POSITIVES = text("""
    SELECT item_id, event_id, floor(extract(epoch FROM occurred_at) * 1000)::bigint AS timestamp_ms
    FROM interactions
    WHERE user_id = :user_id AND label = 1
    ORDER BY occurred_at DESC, seq DESC
    LIMIT :limit
""")


class Interactions:
    """Table `interactions`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def insert(self, period: int, events: Sequence[Interaction]) -> set[str]:
        """Store the events that are new and return their ids.

        An event whose id is in the log of any period, or earlier in the same batch, is a duplicate and left out.
        One transaction should insert one batch: the order that prevents deadlocks is within a batch.
        """
        batch = await asyncio.to_thread(_in_order, events) if len(events) > ROWS_OF_AN_INSERT else _in_order(events)
        accepted: set[str] = set()
        for start in range(0, len(batch), ROWS_OF_AN_INSERT):
            part = batch[start : start + ROWS_OF_AN_INSERT]
            found = await self._connection.scalar(
                INSERT,
                {
                    "period": period,
                    "event_ids": [event.event_id for event in part],
                    "user_ids": [event.user_id for event in part],
                    "item_ids": [event.item_id for event in part],
                    "labels": [event.label for event in part],
                    "times": [event.occurred_at for event in part],
                    "request_ids": [event.request_id for event in part],
                },
            )
            accepted.update(found or ())
        return accepted

    async def count(self, period: int, *, id_prefix: str = "") -> int:
        """Interactions of a period; with `id_prefix` only those whose event id begins so."""
        query = select(func.count()).select_from(tables.interactions).where(tables.interactions.c.period == period)
        if id_prefix:
            query = query.where(func.starts_with(tables.interactions.c.event_id, id_prefix))
        return int((await self._connection.execute(query)).scalar_one())

    async def log(self, period: int) -> PeriodLog:
        """All interactions of a period, ordered by (occurred_at, seq)."""
        user_ids: list[str] = []
        item_ids: list[str] = []
        labels: list[NDArray[np.int8]] = []
        timestamps_ms: list[NDArray[np.int64]] = []
        after = {"after_time": BEFORE_ALL_TIME, "after_seq": 0}
        while True:
            page = (await self._connection.execute(LOG_PAGE, {"period": period, "size": ROWS_OF_A_PAGE, **after})).one()
            if page.last_seq is None:
                return PeriodLog(user_ids, item_ids, _join(labels, np.int8), _join(timestamps_ms, np.int64))
            user_ids += page.user_ids
            item_ids += page.item_ids
            labels.append(np.array(page.labels, dtype=np.int8))
            timestamps_ms.append(np.array(page.timestamps_ms, dtype=np.int64))
            after = {"after_time": page.last_time, "after_seq": page.last_seq}

    async def earlier_positives(self, period: int, limit: int = MAX_HISTORY) -> Positives:
        """For each user of a period, the last `limit` positives of the periods before it.

        Positives that happened after the user's first event of the period, which came late then, do not count towards
        the limit: they come in addition.
        """
        user_ids: list[str] = []
        item_ids: list[str] = []
        timestamps_ms: list[NDArray[np.int64]] = []
        after_user = ""
        while True:
            values = {"period": period, "limit": limit, "size": USERS_OF_A_PAGE, "after_user": after_user}
            page = (await self._connection.execute(EARLIER_POSITIVES_PAGE, values)).one()
            if page.last_user is None:
                return Positives(user_ids, item_ids, _join(timestamps_ms, np.int64))
            if page.user_ids is not None:
                user_ids += page.user_ids
                item_ids += page.item_ids
                timestamps_ms.append(np.array(page.timestamps_ms, dtype=np.int64))
            after_user = page.last_user

    async def recent_positives(self, user_id: str, limit: int = MAX_HISTORY) -> list[HistoryEntry]:
        """The last `limit` positives of a user over all periods, the open one included, newest first."""
        rows = await self._connection.execute(RECENT_POSITIVES, {"user_id": user_id, "limit": limit})
        return [HistoryEntry(row.item_id, row.event_id, row.timestamp_ms) for row in rows]


def _in_order(events: Sequence[Interaction]) -> list[Interaction]:
    """The first event of each id, ordered by id."""
    first_of_each: dict[str, Interaction] = {}
    for event in events:
        first_of_each.setdefault(event.event_id, event)
    return [first_of_each[event_id] for event_id in sorted(first_of_each)]


def _join(parts: Sequence[NDArray[ScalarT]], dtype: type[ScalarT]) -> NDArray[ScalarT]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)
