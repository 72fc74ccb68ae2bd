"""All that is stored about one user or one item: to be looked at, and to be removed.

A statement names the period whose partitions it is about, so that it locks and plans these alone. Rows are found by a
scan that holds up nobody, for no index leads from a user to sampled negatives, or from an item to anything; then they
are removed by their keys, some at a time.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres.repositories.deletions import Deletable
from service.storage.postgres.repositories.label_events import INTERACTION_ID
from service.storage.postgres.repositories.past import FOLDED, LOCK_FOLDED

__all__ = ["FOUND_AT_ONCE", "LOG_ROWS", "PeriodTraces", "Traces"]

FOUND_AT_ONCE = 100_000
"""Keys of rows that are in memory at a time."""

LOG_ROWS: Mapping[Deletable, Sequence[str]] = {
    "user": ("impressions", "interactions"),  # whose clicks go with their impressions
    "item": ("impressions", "clicks", "interactions"),
}
"""Kinds of rows of a log, in the order in which they are to be removed: impressions become interactions."""

FIND = {
    ("user", "impressions"): "SELECT request_id FROM impressions WHERE period = {period} AND user_id = :id",
    ("user", "interactions"): "SELECT event_id FROM interactions WHERE period = {period} AND user_id = :id",
    ("item", "impressions"): "SELECT request_id FROM impressions WHERE period = {period} AND :id = ANY (item_ids)",
    ("item", "clicks"): "SELECT DISTINCT request_id FROM clicks WHERE period = {period} AND item_id = :id",
    ("item", "interactions"): "SELECT event_id FROM interactions WHERE period = {period} AND item_id = :id",
}

# Ids that were reserved for the interactions of an impression, which it does not become now.
RESERVED = f"""
    reserved AS (
        DELETE FROM event_ids USING (
            SELECT {INTERACTION_ID} COLLATE "C" AS event_id FROM {{source}}
        ) AS made
        WHERE event_ids.kind = 0 AND event_ids.event_id = made.event_id AND event_ids.period = {{{{period}}}}
          AND NOT EXISTS (SELECT FROM interactions AS logged WHERE logged.event_id = event_ids.event_id)
    )
"""

REMOVE_IMPRESSIONS_OF_USER = f"""
    WITH gone AS (
        DELETE FROM impressions
        WHERE period = {{period}} AND request_id = ANY(CAST(:keys AS text[])) AND user_id = :id
        RETURNING request_id, item_ids
    ), named AS (
        DELETE FROM event_ids USING gone
        WHERE kind = 1 AND event_ids.event_id = gone.request_id AND event_ids.period = {{period}}
    ), clicked AS (
        DELETE FROM clicks USING gone WHERE clicks.request_id = gone.request_id RETURNING clicks.event_id
    ), clicks_named AS (
        DELETE FROM event_ids USING clicked WHERE kind = 2 AND event_ids.event_id = clicked.event_id
    ), {RESERVED.format(source="gone CROSS JOIN LATERAL unnest(item_ids) AS item (item_id)")}
    SELECT (SELECT count(*) FROM gone) AS impressions, (SELECT count(*) FROM clicked) AS clicks
"""

# Where each of the other items was stays as it was.
REMOVE_ITEM_OF_IMPRESSIONS = f"""
    WITH rest AS MATERIALIZED (
        SELECT request_id,
               array_agg(item ORDER BY n) FILTER (WHERE item <> :id) AS item_ids,
               array_agg(coalesce(positions[n], n - 1)::int ORDER BY n) FILTER (WHERE item <> :id) AS positions,
               jsonb_agg(item_contexts -> (n - 1)::int ORDER BY n)
                   FILTER (WHERE item <> :id AND item_contexts IS NOT NULL) AS item_contexts
        FROM impressions CROSS JOIN LATERAL unnest(item_ids) WITH ORDINALITY AS shown (item, n)
        WHERE period = {{period}} AND request_id = ANY(CAST(:keys AS text[])) AND :id = ANY (item_ids)
        GROUP BY request_id
    ), changed AS (
        UPDATE impressions AS shown
        SET item_ids = rest.item_ids, positions = rest.positions, item_contexts = rest.item_contexts FROM rest
        WHERE period = {{period}} AND shown.request_id = rest.request_id AND rest.item_ids IS NOT NULL
    ), gone AS (
        DELETE FROM impressions AS shown USING rest
        WHERE period = {{period}} AND shown.request_id = rest.request_id AND rest.item_ids IS NULL
        RETURNING shown.request_id
    ), named AS (
        DELETE FROM event_ids USING gone
        WHERE kind = 1 AND event_ids.event_id = gone.request_id AND event_ids.period = {{period}}
    ), {RESERVED.format(source="(SELECT request_id, CAST(:id AS text) AS item_id FROM rest) AS item")}
    SELECT count(*) AS impressions FROM rest
"""

REMOVE_CLICKS_ON_ITEM = """
    WITH gone AS (
        DELETE FROM clicks
        WHERE period = {period} AND request_id = ANY(CAST(:keys AS text[])) AND item_id = :id
        RETURNING event_id
    ), named AS (
        DELETE FROM event_ids USING gone
        WHERE kind = 2 AND event_ids.event_id = gone.event_id AND event_ids.period = {period}
    )
    SELECT count(*) AS clicks FROM gone
"""

REMOVE_INTERACTIONS = """
    WITH gone AS (
        DELETE FROM interactions
        WHERE period = {period} AND event_id = ANY(CAST(:keys AS text[])) AND {kind}_id = :id
        RETURNING event_id
    ), named AS (
        DELETE FROM event_ids USING gone
        WHERE kind = 0 AND event_ids.event_id = gone.event_id AND event_ids.period = {period}
    )
    SELECT count(*) AS interactions FROM gone
"""

REMOVE = {
    ("user", "impressions"): REMOVE_IMPRESSIONS_OF_USER,
    ("user", "interactions"): REMOVE_INTERACTIONS,
    ("item", "impressions"): REMOVE_ITEM_OF_IMPRESSIONS,
    ("item", "clicks"): REMOVE_CLICKS_ON_ITEM,
    ("item", "interactions"): REMOVE_INTERACTIONS,
}

REMOVE_NOTES = """
    WITH gone AS (DELETE FROM unresolved_positives WHERE {kind}_id = :id RETURNING 1)
    SELECT count(*) AS unresolved FROM gone
"""
COUNTED_AS = {"user_histories": "histories", "user_passes": "passes"}
"""What the rows of folded logs are called where they are counted."""

REMOVE_USER_OF_FOLDED = """
    WITH gone AS (DELETE FROM {folded} WHERE user_id = :id RETURNING 1) SELECT count(*) AS {name} FROM gone
"""
REMOVE_ITEM_OF_FOLDED = """
    WITH rest AS MATERIALIZED (
        SELECT user_id,
               array_agg(item ORDER BY n) FILTER (WHERE item <> :id) AS item_ids,
               array_agg(event ORDER BY n) FILTER (WHERE item <> :id) AS event_ids,
               array_agg(time ORDER BY n) FILTER (WHERE item <> :id) AS times
        FROM {folded}
        CROSS JOIN LATERAL unnest(item_ids, event_ids, times) WITH ORDINALITY AS folded (item, event, time, n)
        WHERE :id = ANY (item_ids)
        GROUP BY user_id
    ), changed AS (
        UPDATE {folded} AS history
        SET item_ids = rest.item_ids, event_ids = rest.event_ids, times = rest.times FROM rest
        WHERE history.user_id = rest.user_id AND rest.item_ids IS NOT NULL
    ), gone AS (
        DELETE FROM {folded} AS history USING rest
        WHERE history.user_id = rest.user_id AND rest.item_ids IS NULL
    )
    SELECT count(*) AS {name} FROM rest
"""

RELEASE = """
    WITH gone AS (UPDATE entity_rows SET id = NULL WHERE kind = :kind AND id = :id RETURNING 1)
    SELECT count(*) AS rows FROM gone
"""
REMOVE_FROM_CATALOGUE = """
    WITH gone AS (DELETE FROM items WHERE item_id = :id RETURNING 1) SELECT count(*) AS catalogue FROM gone
"""

REMOVE_FEATURES = """
    WITH gone AS (DELETE FROM {kind}_features WHERE {kind}_id = :id RETURNING 1) SELECT count(*) AS features FROM gone
"""

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
IDS_OF_A_PAGE = 10_000

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
    """What the log of one period has about a user or an item."""

    period: int
    interactions: int
    """Sampled negatives among them."""
    positives: int
    impressions: int
    clicks: int
    first: datetime
    """The earliest time that one of them names."""
    last: datetime


class Traces:
    """What all tables have about one id."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def by_period(self, kind: Deletable, id_: str) -> list[PeriodTraces]:
        """What the logs have, newest period first."""
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
        """`histories` and `passes`: of how many users a click on the item, or a pass, is left of dropped logs.
        `unresolved`: how many clicks on it wait until the period of their impression is resolved.
        """
        return await self._counts(BESIDE_LOGS, id=item_id)

    async def find(self, kind: Deletable, id_: str, rows: str, period: int) -> Sequence[str]:
        """Keys of at most `FOUND_AT_ONCE` rows (of `LOG_ROWS`) in the log of a period."""
        query = f"{FIND[kind, rows].format(period=int(period))} LIMIT {FOUND_AT_ONCE}"
        return list((await self._connection.execute(text(query), {"id": id_})).scalars())

    async def remove(self, kind: Deletable, id_: str, rows: str, period: int, keys: Sequence[str]) -> Mapping[str, int]:
        """Remove what has these keys, with the ids of the events; what was removed, by what it was."""
        statement = REMOVE[kind, rows].format(period=int(period), kind=kind)
        return await self._counts(statement, id=id_, keys=list(keys))

    async def remove_histories(self, kind: Deletable, id_: str) -> Mapping[str, int]:
        """Remove what histories and the counts beside them are made of beside the logs."""
        await self._connection.execute(text(LOCK_FOLDED))
        statement = REMOVE_USER_OF_FOLDED if kind == "user" else REMOVE_ITEM_OF_FOLDED
        removed = dict(await self._counts(REMOVE_NOTES.format(kind=kind), id=id_))
        for folded in FOLDED.values():
            removed |= await self._counts(statement.format(folded=folded, name=COUNTED_AS[folded]), id=id_)
        return removed

    async def release(self, kind: Deletable, id_: str) -> Mapping[str, int]:
        """Free the id's row, as if it were evicted, and remove it from features and catalogue; under the lock of the
        kind.
        """
        found = dict(await self._counts(RELEASE, kind=kind, id=id_))
        found |= await self._counts(REMOVE_FEATURES.format(kind=kind), id=id_)
        if kind == "item":
            found |= await self._counts(REMOVE_FROM_CATALOGUE, id=id_)
        return found

    async def ids(self, kind: Deletable) -> AsyncIterator[list[str]]:
        """All ids of a kind that are stored anywhere, some at a time."""
        async with self._connection.stream(text(IDS[kind])) as found:
            async for page in found.scalars().partitions(IDS_OF_A_PAGE):
                yield [id_ for id_ in page if id_ is not None]

    async def _counts(self, statement: str, **values: object) -> Mapping[str, int]:
        return dict((await self._connection.execute(text(statement), values)).mappings().one())
