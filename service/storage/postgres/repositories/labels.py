"""Tables `impressions` and `clicks`: delayed labels, until both are joined into interactions.

Statements name the partitions of a period, so that Postgres locks and plans only these.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, exists, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres import tables
from service.storage.postgres.driver import asyncpg_connection
from service.storage.postgres.events import Interaction, in_milliseconds, label_content_hash
from service.storage.postgres.repositories import label_resolution as resolution
from service.storage.postgres.repositories.insertion import Inserted, first_of_each
from service.storage.postgres.repositories.label_events import Click, Impression
from service.storage.postgres.repositories.label_resolution import IN_TIME, Resolved

__all__ = ["Labels"]

IMPRESSION = 1
CLICK = 2
"""Kinds of an id in `event_ids`."""

ROWS_OF_AN_INSERT = 1000
"""Rows that are sent at a time: the event loop does nothing else while asyncpg encodes them."""
ITEMS_OF_A_COPY = 5000
"""Items of the impressions that are sent at a time, for the same reason."""

# Ids are sorted, so that batches which overlap wait for each other in one order and cannot deadlock.
CLAIM = text("""
    WITH claimed AS (
        INSERT INTO event_ids (kind, event_id, period, content)
        SELECT :kind, event_id, :period, content
        FROM unnest(CAST(:event_ids AS text[]), CAST(:contents AS bigint[])) AS event (event_id, content)
        ON CONFLICT (kind, event_id) DO NOTHING
        RETURNING event_id
    )
    SELECT array_agg(event_id) FROM claimed
""")

# A statement of its own, since CLAIM does not see what another transaction stored while CLAIM waited for it.
STORED_CONTENTS = text("""
    SELECT event_id, content FROM event_ids WHERE kind = :kind AND event_id = ANY(CAST(:event_ids AS text[]))
""")

IMPRESSION_COLUMNS = (
    *("request_id", "period", "user_id", "item_ids", "positions", "shown_at"),
    *("context", "item_contexts", "model_version", "scores"),
)
CLICK_COLUMNS = ("event_id", "period", "request_id", "item_id", "clicked_at", "interaction_id")

NOTE = """
    INSERT INTO unresolved_positives (interaction_id, period, user_id, item_id, shown_at)
    SELECT DISTINCT click.interaction_id COLLATE "C", {{period}}, shown.user_id, click.item_id, shown.shown_at
    {source}
    ORDER BY 1
    ON CONFLICT (interaction_id) DO NOTHING
    RETURNING interaction_id, user_id, item_id, shown_at
"""

# Only where the impression can still become an interaction of the open period or of a later one.
NOTE_CLICKS = NOTE.format(
    source=f"""
    FROM unnest(
        CAST(:request_ids AS text[]), CAST(:item_ids AS text[]), CAST(:times AS timestamptz[]),
        CAST(:interaction_ids AS text[])
    ) AS click (request_id, item_id, clicked_at, interaction_id)
    JOIN event_ids AS seen ON seen.kind = 1 AND seen.event_id = click.request_id COLLATE "C"
    JOIN impressions AS shown ON shown.period = seen.period AND shown.request_id = seen.event_id
    WHERE click.item_id COLLATE "C" = ANY (shown.item_ids) AND {IN_TIME}
      AND (
          seen.period = {{period}}
          OR least(shown.shown_at, shown.received_at) + CAST(:window AS interval) > (SELECT max(sealed_at) FROM periods)
      )
"""
)

# Clicks that came before their impression.
NOTE_IMPRESSIONS = NOTE.format(
    source=f"""
    FROM impressions_p{{period}} AS shown JOIN clicks_p{{period}} AS click USING (request_id)
    WHERE shown.request_id = ANY (CAST(:request_ids AS text[])) AND click.item_id = ANY (shown.item_ids) AND {IN_TIME}
"""
)


class Labels:
    """Tables `impressions` and `clicks`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def insert_impressions(self, period: int, impressions: Sequence[Impression]) -> Inserted:
        """Insert the impressions that are new, by the rules of `Interactions.insert`."""
        inserted = await self._claim(IMPRESSION, period, impressions)
        for part in _parts([impressions[n] for n in inserted.accepted]):
            rows = [
                (
                    *(i.request_id, period, i.user_id, i.item_ids, i.positions, in_milliseconds(i.shown_at)),
                    *(i.context, i.item_contexts_json, i.model_version, i.scores),
                )
                for i in part
            ]
            async with asyncpg_connection(self._connection) as driver:
                table = f"impressions_p{int(period)}"
                await driver.copy_records_to_table(table, records=rows, columns=IMPRESSION_COLUMNS)
        return inserted

    async def insert_clicks(self, period: int, clicks: Sequence[Click]) -> Inserted:
        """Insert the clicks that are new, by the same rules."""
        inserted = await self._claim(CLICK, period, clicks)
        for start in range(0, len(inserted.accepted), ROWS_OF_AN_INSERT):
            part = [clicks[n] for n in inserted.accepted[start : start + ROWS_OF_AN_INSERT]]
            rows = [(c.event_id, period, c.request_id, c.item_id, c.clicked_at, c.interaction_id) for c in part]
            async with asyncpg_connection(self._connection) as driver:
                await driver.copy_records_to_table(f"clicks_p{int(period)}", records=rows, columns=CLICK_COLUMNS)
        return inserted

    async def note_clicks(self, period: int, clicks: Sequence[Click], window: timedelta) -> list[Interaction]:
        """Note which of the clicks that were just inserted histories get now, and return these as the interactions that
        they will be: the clicks within `window` of an impression that is known and not resolved yet.
        """
        found: list[Interaction] = []
        clicks = sorted(clicks, key=lambda click: click.interaction_id)  # in one order, so that no two calls deadlock
        for start in range(0, len(clicks), ROWS_OF_AN_INSERT):
            part = clicks[start : start + ROWS_OF_AN_INSERT]
            values = {
                "request_ids": [click.request_id for click in part],
                "item_ids": [click.item_id for click in part],
                "times": [click.clicked_at for click in part],
                "interaction_ids": [click.interaction_id for click in part],
                "window": window,
            }
            found += await self._positives(NOTE_CLICKS.format(period=int(period)), values)
        return found

    async def note_impressions(
        self, period: int, impressions: Sequence[Impression], window: timedelta
    ) -> list[Interaction]:
        """The same for clicks that came before their impressions, which were just inserted."""
        values = {"request_ids": [impression.request_id for impression in impressions], "window": window}
        return await self._positives(NOTE_IMPRESSIONS.format(period=int(period)), values)

    async def any(self, period: int) -> bool:
        """Whether a period has impressions or clicks."""
        found = (exists().where(table.c.period == period) for table in (tables.impressions, tables.clicks))
        return bool(await self._connection.scalar(select(or_(*found))))

    async def reserve(self, period: int, sealed_at: datetime, window: timedelta) -> int:
        """Reserve the ids of the interactions that `resolve` will make, and return their number.

        A call that looked up such an id before this is committed may still store an interaction with it; once all calls
        that had begun by then have ended, no call can.
        """
        await self._connection.execute(text(resolution.ANALYZE.format(period=int(period))))
        values = {"window": window, "sealed_at": sealed_at}
        return int(await self._connection.scalar(text(resolution.RESERVE.format(period=int(period))), values))

    async def resolve(
        self, period: int, following: int, elsewhere: Iterable[int], sealed_at: datetime, window: timedelta
    ) -> Resolved:
        """Make interactions of the impressions of a sealed period whose `window` had passed when it was sealed.

        Each item becomes an interaction at the time of the impression: a positive where a click on it came within the
        window, else a negative. Impressions whose window was open move on with their clicks, and so does a click that
        is younger than the window and whose impression is not known. The outcome depends on nothing that came after the
        seal.

        Args:
            period: whose ids are reserved. Each period is resolved once.
            following: the period that what has to wait moves to.
            elsewhere: other periods whose log may have an interaction with a reserved id.
            sealed_at: when the period was sealed.
            window: from an impression to the last click on it that counts.
        """
        others = [int(other) for other in elsewhere]
        not_elsewhere = " ".join(resolution.NOT_IN_LOG.format(period=other) for other in others)
        parts = {"period": int(period), "next": int(following), "not_elsewhere": not_elsewhere}
        values = {"window": window, "sealed_at": sealed_at}
        found: dict[str, int] = {}
        for statement in (resolution.JUDGE_CLICKS, resolution.MOVE_IMPRESSIONS, resolution.DERIVE):
            found |= (await self._connection.execute(text(statement.format(**parts)), values)).mappings().one()
        resolved = Resolved(**found)
        for other in others if resolved.already_logged else ():
            for statement in (resolution.HAND_OVER, resolution.FREE):
                await self._connection.execute(text(statement.format(period=int(period), other=other)))
        return resolved

    async def positives_missing_from_histories(self, period: int) -> list[Interaction]:
        """The positives of a resolved period that no history got, since their impression was not known when the click
        came. After `forget_notes` it returns those that histories got as well.
        """
        return await self._positives(resolution.POSITIVES_MISSING_FROM_HISTORIES.format(period=int(period)), {})

    async def forget_notes(self, period: int) -> None:
        """Delete what was noted of the clicks of a resolved period, which its log has now."""
        noted = tables.unresolved_positives
        await self._connection.execute(delete(noted).where(noted.c.period == period))

    async def _positives(self, statement: str, values: dict[str, object]) -> list[Interaction]:
        """The positives that a statement returns."""
        rows = await self._connection.execute(text(statement), values)
        return [Interaction(row.interaction_id, row.user_id, row.item_id, 1, row.shown_at) for row in rows]

    async def _claim(self, kind: int, period: int, events: Sequence[Impression] | Sequence[Click]) -> Inserted:
        """Insert the ids of the events that are new into `event_ids`."""
        large = len(events) > ROWS_OF_AN_INSERT
        contents = await asyncio.to_thread(_hash_contents, events) if large else _hash_contents(events)
        ids = [event.event_id for event in events]
        order = first_of_each(ids)
        accepted: list[int] = []
        stored: dict[str, int | None] = {}
        for start in range(0, len(order), ROWS_OF_AN_INSERT):
            part = order[start : start + ROWS_OF_AN_INSERT]
            values = {"kind": kind, "event_ids": [ids[n] for n in part]}
            claim = {**values, "period": period, "contents": [contents[n] for n in part]}
            claimed = set(await self._connection.scalar(CLAIM, claim) or ())
            accepted += [n for n in part if ids[n] in claimed]
            stored.update((ids[n], contents[n]) for n in part)
            if len(claimed) < len(part):
                known = {**values, "event_ids": [ids[n] for n in part if ids[n] not in claimed]}
                stored.update(
                    (row.event_id, row.content) for row in await self._connection.execute(STORED_CONTENTS, known)
                )
        return Inserted(accepted, [n for n, id_ in enumerate(ids) if stored[id_] not in (None, contents[n])])


def _hash_contents(events: Sequence[Impression] | Sequence[Click]) -> list[int]:
    return [label_content_hash(event.content) for event in events]


def _parts(impressions: Sequence[Impression]) -> Iterator[list[Impression]]:
    """The impressions in parts of about `ITEMS_OF_A_COPY` items."""
    part: list[Impression] = []
    items = 0
    for impression in impressions:
        part.append(impression)
        items += len(impression.item_ids)
        if items >= ITEMS_OF_A_COPY:
            yield part
            part, items = [], 0
    if part:
        yield part
