"""Removing what is stored about one user or one item, in all tables. `service.use_cases.removal` calls it.

Each statement names the period whose partitions it reads, so that it locks and plans only these. Rows are found by a
scan, which blocks nobody: no index leads from a user to sampled negatives, or from an item to anything. Then they are
removed by their keys, a part at a time.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres.repositories.deletions import Deletable
from service.storage.postgres.repositories.entities import Entities, EntityKind
from service.storage.postgres.repositories.label_events import INTERACTION_ID
from service.storage.postgres.repositories.past import FOLDED, LOCK_FOLDED

__all__ = ["FOUND_AT_ONCE", "LOG_ROWS", "Removals"]

FOUND_AT_ONCE = 100_000
"""Most keys of rows in memory at a time."""

LOG_ROWS: Mapping[Deletable, Sequence[str]] = {
    "user": ("impressions", "interactions"),  # clicks are removed with their impressions
    "item": ("impressions", "clicks", "interactions"),
}
"""Kinds of rows of a log, in the order of their removal; impressions first, as they become interactions."""

FIND = {
    ("user", "impressions"): "SELECT request_id FROM impressions WHERE period = {period} AND user_id = :id",
    ("user", "interactions"): "SELECT event_id FROM interactions WHERE period = {period} AND user_id = :id",
    ("item", "impressions"): "SELECT request_id FROM impressions WHERE period = {period} AND :id = ANY (item_ids)",
    ("item", "clicks"): "SELECT DISTINCT request_id FROM clicks WHERE period = {period} AND item_id = :id",
    ("item", "interactions"): "SELECT event_id FROM interactions WHERE period = {period} AND item_id = :id",
}

# Ids that were reserved for the interactions that an impression would have become.
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

# The other items of an impression keep their positions.
REMOVE_ITEM_OF_IMPRESSIONS = f"""
    WITH rest AS MATERIALIZED (
        SELECT request_id,
               array_agg(item ORDER BY n) FILTER (WHERE item <> :id) AS item_ids,
               array_agg(coalesce(positions[n], n - 1)::int ORDER BY n) FILTER (WHERE item <> :id) AS positions,
               jsonb_agg(item_contexts -> (n - 1)::int ORDER BY n)
                   FILTER (WHERE item <> :id AND item_contexts IS NOT NULL) AS item_contexts,
               array_agg(scores[n] ORDER BY n) FILTER (WHERE item <> :id AND scores IS NOT NULL) AS scores
        FROM impressions CROSS JOIN LATERAL unnest(item_ids) WITH ORDINALITY AS shown (item, n)
        WHERE period = {{period}} AND request_id = ANY(CAST(:keys AS text[])) AND :id = ANY (item_ids)
        GROUP BY request_id
    ), changed AS (
        UPDATE impressions AS shown
        SET item_ids = rest.item_ids, positions = rest.positions, item_contexts = rest.item_contexts,
            scores = rest.scores
        FROM rest
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
"""Table of folded logs → name under which its removed rows are counted."""

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

# A number of an allocation of its own, as an eviction has.
RELEASE = """
    WITH gone AS (
        UPDATE entity_rows
        SET id = NULL, allocation = :allocation
        WHERE kind = :kind AND id = :id
        RETURNING 1
    )
    SELECT count(*) AS rows FROM gone
"""
REMOVE_FROM_CATALOGUE = """
    WITH gone AS (DELETE FROM items WHERE item_id = :id RETURNING 1) SELECT count(*) AS catalogue FROM gone
"""

REMOVE_FEATURES = """
    WITH gone AS (DELETE FROM {kind}_features WHERE {kind}_id = :id RETURNING 1) SELECT count(*) AS features FROM gone
"""


class Removals:
    """Removes the rows about one id. Returned counts are by what the rows were, as deletions report them."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def find(self, kind: Deletable, id_: str, rows: str, period: int) -> Sequence[str]:
        """Keys of at most `FOUND_AT_ONCE` rows about the id in the log of a period; `rows` is one of `LOG_ROWS`."""
        query = f"{FIND[kind, rows].format(period=int(period))} LIMIT {FOUND_AT_ONCE}"
        return list((await self._connection.execute(text(query), {"id": id_})).scalars())

    async def remove(self, kind: Deletable, id_: str, rows: str, period: int, keys: Sequence[str]) -> Mapping[str, int]:
        """Remove the rows with these keys, and their event ids; return the numbers of removed rows."""
        statement = REMOVE[kind, rows].format(period=int(period), kind=kind)
        return await self._counts(statement, id=id_, keys=list(keys))

    async def remove_histories(self, kind: Deletable, id_: str) -> Mapping[str, int]:
        """Remove the id from folded logs and from clicks that are not resolved yet, of which histories are made."""
        await self._connection.execute(text(LOCK_FOLDED))
        statement = REMOVE_USER_OF_FOLDED if kind == "user" else REMOVE_ITEM_OF_FOLDED
        removed = dict(await self._counts(REMOVE_NOTES.format(kind=kind), id=id_))
        for folded in FOLDED.values():
            removed |= await self._counts(statement.format(folded=folded, name=COUNTED_AS[folded]), id=id_)
        return removed

    async def release(self, kind: Deletable, id_: str) -> Mapping[str, int]:
        """Free the id's embedding row, as if it were evicted, and remove its features and catalogue entry.

        To be called under the lock of the kind (`Entities.lock`).
        """
        latest = (await Entities(self._connection).extent(EntityKind(kind))).allocation
        found = dict(await self._counts(RELEASE, kind=kind, id=id_, allocation=latest + 1))
        found |= await self._counts(REMOVE_FEATURES.format(kind=kind), id=id_)
        if kind == "item":
            found |= await self._counts(REMOVE_FROM_CATALOGUE, id=id_)
        return found

    async def _counts(self, statement: str, **values: object) -> Mapping[str, int]:
        return dict((await self._connection.execute(text(statement), values)).mappings().one())
