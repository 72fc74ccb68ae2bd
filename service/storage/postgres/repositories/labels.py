"""Delayed labels: what was shown and what was clicked, until both are joined into interactions.

A period's statements name its partitions, so that they lock and plan these alone.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from sqlalchemy import delete, exists, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection
from xxhash import xxh64_intdigest

from asmg.layout import RECENT
from service.limits import MAX_ID_LENGTH, within_id_length
from service.storage.postgres import tables
from service.storage.postgres.events import Interaction, in_milliseconds
from service.storage.postgres.repositories.interactions import ROWS_OF_AN_INSERT, Inserted, driver_of, firsts

__all__ = ["Click", "Impression", "Labels", "Resolved", "interaction_id"]

IMPRESSION = 1
CLICK = 2
"""Kinds of an event id."""

ITEMS_OF_A_COPY = 5000
"""The event loop does nothing else while the driver takes them in."""


def interaction_id(request_id: str, item_id: str) -> str:
    """Event id of the interaction that an item of an impression becomes: `request_id/item_id`.

    So that no two items have one, `%` and `/` of the request id are written as `%25` and `%2F`; and of an id that is
    longer than event ids may be, its SHA-256 stands for it.
    """
    return within_id_length(f"{request_id.replace('%', '%25').replace('/', '%2F')}/{item_id}")


@dataclass(frozen=True, slots=True)
class Impression:
    """Items that a user was shown at once."""

    request_id: str
    """The client's name for it; a second impression with the same name is a duplicate."""
    user_id: str
    item_ids: Sequence[str]
    """Each once."""
    positions: Sequence[int] | None
    """Where each item was; None for 0, 1, 2, …"""
    shown_at: datetime
    """Timezone-aware."""
    context: str | None = None
    """Values of the fields of the context, of all items, as JSON; None for none."""
    item_contexts: Sequence[str | None] | None = None
    """Those of each item, over the ones of all; None where no item has any."""

    @property
    def event_id(self) -> str:
        """What it is recognised by."""
        return self.request_id

    @property
    def newest(self) -> list[Interaction]:
        """What its items are until they are clicked, in the order of the event ids; of more than `RECENT` the last."""
        made = sorted((interaction_id(self.request_id, item), item) for item in self.item_ids)[-RECENT:]
        return [Interaction(name, self.user_id, item, 0, self.shown_at) for name, item in made]

    @property
    def content(self) -> str:
        """All the rest."""
        positions = "" if self.positions is None else ",".join(map(str, self.positions))
        whole = "\0".join((self.user_id, _moment(self.shown_at), positions, *self.item_ids))
        if self.context is None and self.item_contexts is None:
            return whole
        return "\0".join((whole, "", self.context or "", *(context or "" for context in self.item_contexts or ())))

    @property
    def item_contexts_json(self) -> str | None:
        """`item_contexts`, as one JSON text."""
        if self.item_contexts is None:
            return None
        return f"[{','.join(context or 'null' for context in self.item_contexts)}]"


@dataclass(frozen=True, slots=True)
class Click:
    """A click on an item of an impression."""

    event_id: str
    """The client's name for it, else that of the interaction; a second click with the same name is a duplicate."""
    request_id: str
    """Of the impression."""
    item_id: str
    clicked_at: datetime
    """Timezone-aware."""

    @property
    def interaction_id(self) -> str:
        """Event id of the interaction that it makes a click."""
        return interaction_id(self.request_id, self.item_id)

    @property
    def content(self) -> str:
        """All that it is but for its id."""
        return "\0".join((self.request_id, self.item_id, _moment(self.clicked_at)))


class _Event(Protocol):
    @property
    def event_id(self) -> str: ...

    @property
    def content(self) -> str: ...


# Sorted by event id, concurrent batches that overlap wait for each other in one order and cannot deadlock.
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

# A statement of its own: what another transaction has stored while CLAIM waited for it is not seen by that one.
STORED_CONTENTS = text("""
    SELECT event_id, content FROM event_ids WHERE kind = :kind AND event_id = ANY(CAST(:event_ids AS text[]))
""")

IMPRESSION_COLUMNS = (
    *("request_id", "period", "user_id", "item_ids", "positions", "shown_at"),
    *("context", "item_contexts"),
)
CLICK_COLUMNS = ("event_id", "period", "request_id", "item_id", "clicked_at", "interaction_id")

IN_TIME = "click.clicked_at BETWEEN shown.shown_at AND shown.shown_at + CAST(:window AS interval)"
DUE = "least(shown.shown_at, shown.received_at) + CAST(:window AS interval) <= CAST(:sealed_at AS timestamptz)"

NOTE = """
    INSERT INTO unresolved_positives (interaction_id, period, user_id, item_id, shown_at)
    SELECT DISTINCT click.interaction_id COLLATE "C", {{period}}, shown.user_id, click.item_id, shown.shown_at
    {source}
    ORDER BY 1
    ON CONFLICT (interaction_id) DO NOTHING
    RETURNING interaction_id, user_id, item_id, shown_at
"""

# While the impression can still become an interaction of the open period or of a later one.
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

# A partition is as old as its period: there are no statistics of it yet, and without them a join can take for ever.
ANALYZE = "ANALYZE impressions_p{period}, clicks_p{period}"

# Only what was there when the period was sealed decides, however late the worker comes: ids of later periods do not.
JUDGE_CLICKS = f"""
    WITH judged AS MATERIALIZED (
        SELECT click.ctid AS place, CASE
            WHEN shown.request_id IS NOT NULL THEN CASE
                WHEN click.item_id <> ALL (shown.item_ids) THEN 'orphan'
                WHEN NOT {DUE} THEN 'waits'
                WHEN {IN_TIME} THEN 'counts'
                ELSE 'late'
            END
            WHEN logged.event_id IS NOT NULL THEN 'late'
            WHEN seen.event_id IS NOT NULL THEN 'orphan'
            WHEN least(click.clicked_at, click.received_at) + CAST(:window AS interval)
                > CAST(:sealed_at AS timestamptz) THEN 'waits'
            ELSE 'orphan'
        END AS verdict
        FROM clicks_p{{period}} AS click
        LEFT JOIN impressions_p{{period}} AS shown USING (request_id)
        LEFT JOIN event_ids AS seen ON shown.request_id IS NULL
            AND seen.kind = 1 AND seen.event_id = click.request_id AND seen.period <= {{period}}
        LEFT JOIN event_ids AS logged ON seen.event_id IS NOT NULL
            AND logged.kind = 0 AND logged.event_id = click.interaction_id AND logged.period <= {{period}}
    ), moved AS (
        UPDATE clicks AS click SET period = {{next}} FROM judged
        WHERE click.period = {{period}} AND click.ctid = judged.place AND judged.verdict = 'waits'
        RETURNING click.event_id, click.interaction_id
    ), named AS (
        UPDATE event_ids SET period = {{next}} FROM moved WHERE kind = 2 AND event_ids.event_id = moved.event_id
    ), noted AS (
        UPDATE unresolved_positives AS noted SET period = {{next}} FROM moved
        WHERE noted.interaction_id = moved.interaction_id
    )
    SELECT count(*) FILTER (WHERE verdict = 'waits') AS moved_clicks,
           count(*) FILTER (WHERE verdict = 'late') AS late_clicks,
           count(*) FILTER (WHERE verdict = 'orphan') AS orphan_clicks
    FROM judged
"""

MOVE_IMPRESSIONS = f"""
    WITH moved AS (
        UPDATE impressions AS shown SET period = {{next}} WHERE period = {{period}} AND NOT {DUE} RETURNING request_id
    ), named AS (
        UPDATE event_ids SET period = {{next}} FROM moved WHERE kind = 1 AND event_ids.event_id = moved.request_id
    )
    SELECT count(*) AS moved_impressions FROM moved
"""

# `interaction_id`, in SQL.
WHOLE_ID = "replace(replace(request_id, '%', '%25'), '/', '%2F') || '/' || item_id"
INTERACTION_ID = f"""
    CASE WHEN length({WHOLE_ID}) <= {MAX_ID_LENGTH} THEN {WHOLE_ID}
         ELSE encode(sha256(convert_to({WHOLE_ID}, 'UTF8')), 'hex') END
"""

# The values of an item count before those of all.
MADE_CONTEXT = """
    nullif(coalesce(context, '{{}}') || coalesce(nullif(item_contexts -> (n - 1)::int, 'null'), '{{}}'), '{{}}')
"""

MADE = f"""
    SELECT {INTERACTION_ID} COLLATE "C" AS event_id, user_id, item_id, shown_at, request_id, {MADE_CONTEXT} AS context
    FROM impressions_p{{period}} AS shown CROSS JOIN LATERAL unnest(item_ids) WITH ORDINALITY AS item (item_id, n)
    WHERE {DUE}
"""

RESERVE = f"""
    WITH made AS MATERIALIZED ({MADE}), reserved AS (
        INSERT INTO event_ids (kind, event_id, period) SELECT 0, event_id, {{period}} FROM made ORDER BY event_id
        ON CONFLICT (kind, event_id) DO NOTHING
    )
    SELECT count(*) FROM made
"""

# What is reserved for the period and in no log is new.
DERIVE = f"""
    WITH clicked AS (
        SELECT DISTINCT interaction_id
        FROM clicks_p{{period}} AS click JOIN impressions_p{{period}} AS shown USING (request_id)
        WHERE {IN_TIME}
    ), made AS MATERIALIZED ({MADE}), stored AS (
        INSERT INTO interactions_p{{period}}
            (event_id, period, user_id, item_id, label, occurred_at, request_id, context)
        SELECT event_id, {{period}}, user_id, item_id, (interaction_id IS NOT NULL)::int, shown_at, request_id, context
        FROM made LEFT JOIN clicked ON interaction_id = event_id
        WHERE EXISTS (
            SELECT FROM event_ids AS reserved
            WHERE reserved.kind = 0 AND reserved.event_id = made.event_id AND reserved.period = {{period}}
        ) {{not_elsewhere}}
        ON CONFLICT (event_id, period) DO NOTHING
        RETURNING label
    )
    SELECT (SELECT count(*) FROM impressions_p{{period}}) AS impressions,
           (SELECT count(*) FROM stored WHERE label = 1) AS positives,
           (SELECT count(*) FROM stored WHERE label = 0) AS negatives,
           (SELECT count(*) FROM made) - (SELECT count(*) FROM stored) AS already_logged
"""

# What is in another log is not this period's: where the ids of that one are noted, the reservation becomes the note.
HAND_OVER = """
    UPDATE event_ids SET period = other.period, content = other.content
    FROM interactions_p{other} AS other JOIN periods ON number = other.period AND ids_merged_at IS NOT NULL
    WHERE event_ids.kind = 0 AND event_ids.period = {period} AND event_ids.event_id = other.event_id
"""
FREE = """
    DELETE FROM event_ids USING interactions_p{other} AS other
    WHERE event_ids.kind = 0 AND event_ids.period = {period} AND event_ids.event_id = other.event_id
"""

NOT_IN_LOG = "AND NOT EXISTS (SELECT FROM interactions_p{period} AS other WHERE other.event_id = made.event_id)"

NEWS = """
    SELECT DISTINCT click.interaction_id, made.user_id, made.item_id, made.occurred_at AS shown_at
    FROM clicks_p{period} AS click JOIN interactions_p{period} AS made
        ON made.event_id = click.interaction_id AND made.label = 1
    WHERE NOT EXISTS (SELECT FROM unresolved_positives AS noted WHERE noted.interaction_id = click.interaction_id)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """What became of the impressions and clicks of a period."""

    impressions: int = 0
    """Whose window has passed: their items are interactions now."""
    positives: int = 0
    negatives: int = 0
    already_logged: int = 0
    """Items whose interaction was in the log before; it stays."""
    moved_impressions: int = 0
    """Whose window was open: they wait in the next period."""
    moved_clicks: int = 0
    """On these, or on none that is known yet."""
    late_clicks: int = 0
    """Outside the window of their impression, or after that was resolved."""
    orphan_clicks: int = 0
    """On an item that was not in their impression, or on an impression that did not come within a window."""


class Labels:
    """Tables `impressions` and `clicks`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def insert_impressions(self, period: int, impressions: Sequence[Impression]) -> Inserted:
        """Store the impressions that are new, by the rules of `Interactions.insert`."""
        inserted = await self._claim(IMPRESSION, period, impressions)
        for part in _parts([impressions[n] for n in inserted.accepted]):
            rows = [
                (
                    *(i.request_id, period, i.user_id, i.item_ids, i.positions, in_milliseconds(i.shown_at)),
                    *(i.context, i.item_contexts_json),
                )
                for i in part
            ]
            async with driver_of(self._connection) as driver:
                table = f"impressions_p{int(period)}"
                await driver.copy_records_to_table(table, records=rows, columns=IMPRESSION_COLUMNS)
        return inserted

    async def insert_clicks(self, period: int, clicks: Sequence[Click]) -> Inserted:
        """Store the clicks that are new, by the same rules."""
        inserted = await self._claim(CLICK, period, clicks)
        for start in range(0, len(inserted.accepted), ROWS_OF_AN_INSERT):
            part = [clicks[n] for n in inserted.accepted[start : start + ROWS_OF_AN_INSERT]]
            rows = [(c.event_id, period, c.request_id, c.item_id, c.clicked_at, c.interaction_id) for c in part]
            async with driver_of(self._connection) as driver:
                await driver.copy_records_to_table(f"clicks_p{int(period)}", records=rows, columns=CLICK_COLUMNS)
        return inserted

    async def note_clicks(self, period: int, clicks: Sequence[Click], window: timedelta) -> list[Interaction]:
        """What histories get of clicks that were stored just now: those within `window` of an impression that is known
        and not resolved yet, as the interactions that they will be.
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
        """What histories get of clicks that were there before their impressions, which were stored just now."""
        values = {"request_ids": [impression.request_id for impression in impressions], "window": window}
        return await self._positives(NOTE_IMPRESSIONS.format(period=int(period)), values)

    async def any(self, period: int) -> bool:
        """Whether a period has impressions or clicks."""
        found = (exists().where(table.c.period == period) for table in (tables.impressions, tables.clicks))
        return bool(await self._connection.scalar(select(or_(*found))))

    async def reserve(self, period: int, sealed_at: datetime, window: timedelta) -> int:
        """Reserve the ids of the interactions that `resolve` will make; how many those are.

        A call that looked up such an id before this was committed may still store an interaction with it. As soon as
        all calls of that time have ended, nobody can any more.
        """
        await self._connection.execute(text(ANALYZE.format(period=int(period))))
        values = {"window": window, "sealed_at": sealed_at}
        return int(await self._connection.scalar(text(RESERVE.format(period=int(period))), values))

    async def resolve(
        self, period: int, following: int, elsewhere: Iterable[int], sealed_at: datetime, window: timedelta
    ) -> Resolved:
        """Make interactions of the impressions of a sealed period whose `window` had passed when it was sealed.

        Each item is an interaction at the time of the impression: a positive where a click on it came no later than the
        window allows, else a negative. Impressions whose window was open move on with their clicks, and so does a click
        that is younger than the window and whose impression is not known. The outcome depends on nothing that came
        after the seal.

        Args:
            period: whose ids are reserved; each is resolved once.
            following: where what waits moves to.
            elsewhere: other periods whose log may have an interaction with a reserved id.
            sealed_at: when the period was sealed.
            window: from an impression to the last click on it that counts.
        """
        others = [int(other) for other in elsewhere]
        not_elsewhere = " ".join(NOT_IN_LOG.format(period=other) for other in others)
        parts = {"period": int(period), "next": int(following), "not_elsewhere": not_elsewhere}
        values = {"window": window, "sealed_at": sealed_at}
        found: dict[str, int] = {}
        for statement in (JUDGE_CLICKS, MOVE_IMPRESSIONS, DERIVE):
            found |= (await self._connection.execute(text(statement.format(**parts)), values)).mappings().one()
        resolved = Resolved(**found)
        for other in others if resolved.already_logged else ():
            for statement in (HAND_OVER, FREE):
                await self._connection.execute(text(statement.format(period=int(period), other=other)))
        return resolved

    async def news(self, period: int) -> list[Interaction]:
        """Positives of a resolved period that histories were not told of: nobody knew their impression at the time.

        After `forget_notes` those that they were told of as well.
        """
        return await self._positives(NEWS.format(period=int(period)), {})

    async def forget_notes(self, period: int) -> None:
        """Forget what histories got of the clicks of a resolved period: the log has it."""
        noted = tables.unresolved_positives
        await self._connection.execute(delete(noted).where(noted.c.period == period))

    async def _positives(self, statement: str, values: dict[str, object]) -> list[Interaction]:
        """The interactions that a statement returns, which are clicks."""
        rows = await self._connection.execute(text(statement), values)
        return [Interaction(row.interaction_id, row.user_id, row.item_id, 1, row.shown_at) for row in rows]

    async def _claim(self, kind: int, period: int, events: Sequence[_Event]) -> Inserted:
        """Take the ids of the events that are new; these come in the order of their ids."""
        large = len(events) > ROWS_OF_AN_INSERT
        contents = await asyncio.to_thread(_contents, events) if large else _contents(events)
        ids = [event.event_id for event in events]
        order = firsts(ids)
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


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()


def _contents(events: Sequence[_Event]) -> list[int]:
    """For each event a number that says what it is, but for its id; signed, as Postgres has it."""
    return [xxh64_intdigest(event.content.encode()) - 2**63 for event in events]


def _parts(impressions: Sequence[Impression]) -> Iterator[list[Impression]]:
    """All of them, in pieces of about `ITEMS_OF_A_COPY` items."""
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
