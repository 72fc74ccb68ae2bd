"""What is stored about one user or one item, in all tables; `removals` removes it."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres.repositories.deletions import Deletable

__all__ = ["PeriodTraces", "Traces"]

IDS = {
    "user": """
        SELECT user_id FROM interactions UNION SELECT user_id FROM impressions UNION SELECT user_id FROM user_histories
        UNION SELECT user_id FROM user_passes UNION SELECT user_id FROM unresolved_positives
        UNION SELECT user_id FROM user_features UNION SELECT id FROM entity_rows WHERE kind = 'user'
        UNION SELECT id FROM deletions WHERE kind = 'user'
    """,
    "item": """
        SELECT item_id FROM interactions UNION SELECT unnest(item_ids) FROM impressions UNION SELECT item_id FROM clicks
        UNION SELECT unnest(item_ids) FROM user_histories UNION SELECT unnest(item_ids) FROM user_passes
        UNION SELECT item_id FROM unresolved_positives
        UNION SELECT item_id FROM items UNION SELECT item_id FROM item_features
        UNION SELECT id FROM entity_rows WHERE kind = 'item'
        UNION SELECT id FROM deletions WHERE kind = 'item'
    """,
}
IDS_PER_PAGE = 10_000
"""Ids fetched from Postgres at a time."""

# One pass over each log.
INTERACTIONS = """
    SELECT period, count(*) AS interactions, count(*) FILTER (WHERE label = 1) AS positives,
           min(occurred_at) AS first, max(occurred_at) AS last
    FROM interactions WHERE {kind}_id = :id GROUP BY period
"""
IMPRESSIONS = """
    SELECT period, count(*) AS impressions, min(shown_at) AS first, max(shown_at) AS last
    FROM impressions WHERE {where} GROUP BY period
"""
CLICKS = """
    SELECT clicks.period, count(*) AS clicks, min(clicked_at) AS first, max(clicked_at) AS last
    FROM clicks WHERE {where} GROUP BY clicks.period
"""
BESIDE_LOGS = """
    SELECT (SELECT count(*) FROM user_histories WHERE :id = ANY (item_ids)) AS histories,
           (SELECT count(*) FROM user_passes WHERE :id = ANY (item_ids)) AS passes,
           (SELECT count(*) FROM unresolved_positives WHERE item_id = :id) AS unresolved
"""
OF_USER = ("user_id = :id", "request_id IN (SELECT request_id FROM impressions WHERE user_id = :id)")
OF_ITEM = (":id = ANY (item_ids)", "item_id = :id")


@dataclass(frozen=True, slots=True)
class PeriodTraces:
    """What the log of one period contains about a user or an item."""

    period: int
    interactions: int
    """Number of interactions, sampled negatives included."""
    positives: int
    impressions: int
    clicks: int
    first: datetime
    """Earliest time of any of these events."""
    last: datetime


class Traces:
    """What all tables contain about one id."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def by_period(self, kind: Deletable, id_: str) -> list[PeriodTraces]:
        """What the logs contain about the id, newest period first."""
        shown, clicked = OF_USER if kind == "user" else OF_ITEM
        found: dict[int, dict[str, Any]] = {}
        for query in (
            INTERACTIONS.format(kind=kind),
            IMPRESSIONS.format(where=shown),
            CLICKS.format(where=clicked),
        ):
            for row in (await self._connection.execute(text(query), {"id": id_})).mappings():
                entry = found.setdefault(row["period"], {"first": row["first"], "last": row["last"]})
                first, last = min(entry["first"], row["first"]), max(entry["last"], row["last"])
                entry |= {**row, "first": first, "last": last}
        none = {"interactions": 0, "positives": 0, "impressions": 0, "clicks": 0}
        return [PeriodTraces(**{**none, **found[period]}) for period in sorted(found, reverse=True)]

    async def beside_logs(self, item_id: str) -> Mapping[str, int]:
        """What is stored about an item besides logs.

        Returns:
            `histories` and `passes`: number of users of whom a click on the item, or an interaction without a click, is
            left of dropped logs; `unresolved`: number of clicks on it whose impression's period is not resolved yet.
        """
        return await self._counts(BESIDE_LOGS, id=item_id)

    async def ids(self, kind: Deletable) -> AsyncIterator[list[str]]:
        """All ids of a kind that are stored anywhere, a page at a time."""
        async with self._connection.stream(text(IDS[kind])) as found:
            async for page in found.scalars().partitions(IDS_PER_PAGE):
                yield [id_ for id_ in page if id_ is not None]

    async def _counts(self, statement: str, **values: object) -> Mapping[str, int]:
        return dict((await self._connection.execute(text(statement), values)).mappings().one())
