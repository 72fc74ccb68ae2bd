"""Table `interactions`: the log, one partition for each period."""

from collections.abc import AsyncIterator, Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, exists, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from service.limits import MAX_ID_LENGTH
from service.storage.postgres import tables
from service.storage.postgres.driver import asyncpg_connection
from service.storage.postgres.events import EventBatch
from service.storage.postgres.repositories.insertion import ADD_TO_COUNT, Inserted, insert_events, known_ids
from service.storage.postgres.repositories.log_columns import Contexts, PeriodLog, read_contexts, read_log

__all__ = ["Interactions"]

SHARED_SLOT = 0
"""Row of `log_counters` that everybody counts in but the event writers, each of which has rows of its own."""

MERGE = text("""
    INSERT INTO event_ids (kind, event_id, period, content)
    SELECT 0, event_id, period, content FROM interactions WHERE period = :period
    ON CONFLICT (kind, event_id) DO NOTHING
""")

# Each sampled negative comes right after its positive. What a client has stored under such an id stays as it is.
SAMPLED_ID = "numbered.event_id || '~sampled' || k"
INSERT_SAMPLED = f"""
    WITH numbered AS (
        SELECT row_number() OVER (ORDER BY occurred_at, event_id) - 1 AS n,
               event_id, user_id, occurred_at, context, weight
        FROM interactions_p{{period}}
    ), made AS MATERIALIZED (
        SELECT CASE WHEN length({SAMPLED_ID}) <= {MAX_ID_LENGTH} THEN {SAMPLED_ID}
                    ELSE encode(sha256(convert_to({SAMPLED_ID}, 'UTF8')), 'hex') END COLLATE "C" AS event_id,
               user_id, item_id, occurred_at, context, weight
        FROM numbered JOIN drawn_negatives USING (n)
    ), claimed AS (
        INSERT INTO event_ids (kind, event_id, period) SELECT 0, event_id, {{period}} FROM made ORDER BY event_id
        ON CONFLICT (kind, event_id) DO NOTHING
        RETURNING event_id
    ), stored AS (
        INSERT INTO interactions_p{{period}}
            (event_id, period, user_id, item_id, label, occurred_at, sampled, context, weight)
        SELECT event_id, {{period}}, user_id, item_id, 0, occurred_at, true, context, weight
        FROM made JOIN claimed USING (event_id)
        ON CONFLICT (event_id, period) DO NOTHING
        RETURNING event_id
    )
    SELECT count(*) FROM stored
"""
ROWS_OF_A_COPY = 5000
"""Sampled negatives that are copied at a time: the event loop does nothing else while asyncpg encodes them."""

FORGET_DROPPED_IDS = text("""
    WITH RECURSIVE known (period) AS (
        SELECT min(period) FROM event_ids
        UNION ALL
        SELECT (SELECT min(period) FROM event_ids WHERE period > known.period) FROM known WHERE period IS NOT NULL
    )
    DELETE FROM event_ids WHERE period IN (
        SELECT number FROM known JOIN periods ON number = period WHERE log_dropped_at IS NOT NULL
    )
""")


class Interactions:
    """Table `interactions`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def insert(self, period: int, events: EventBatch, unmerged: Sequence[int] = ()) -> Inserted:
        """Insert the events that are new.

        An event whose id is in the log of any period that is kept, or earlier in the same batch, is left out: it is a
        duplicate, or a conflict where its content differs. One transaction should insert one batch: events are
        inserted in the order of their ids, so that batches which overlap wait for each other and cannot deadlock.

        Args:
            period: the period to insert into.
            events: any number of events.
            unmerged: other periods whose ids are not in `event_ids` yet.

        Raises:
            Raced: begin the transaction again.
        """

        async def look_up(ids: list[str]) -> tuple[int, dict[str, int | None]]:
            return period, (await known_ids(driver, ids, {period, *unmerged})).contents

        async with asyncpg_connection(self._connection) as driver:
            _, inserted = await insert_events(driver, events, look_up)
        if inserted.accepted:
            await self.note_count(period, len(inserted.accepted))
        return inserted

    async def shown_items(self, period: int) -> list[str]:
        """The items of a period's log, in any order, without those that are only in it as sampled negatives."""
        interactions = tables.interactions.c
        query = select(interactions.item_id).distinct().where(interactions.period == period, ~interactions.sampled)
        return list((await self._connection.execute(query)).scalars())

    async def insert_sampled(
        self, period: int, positives: NDArray[np.int64], item_ids: Sequence[str], per_positive: int
    ) -> int:
        """Add sampled negatives to the log of a sealed period that has only positives. Each gets the context and the
        weight of its positive.

        Args:
            period: whose log nobody else adds to.
            positives: for each negative the place of its positive in `log(period)`, ascending, [m].
            item_ids: the item of each negative, [m].
            per_positive: number of negatives of each positive.

        Returns:
            how many were stored.
        """
        await self._connection.execute(
            text("CREATE TEMPORARY TABLE drawn_negatives (n bigint, k int, item_id text) ON COMMIT DROP")
        )
        for start in range(0, len(positives), ROWS_OF_A_COPY):
            places = positives[start : start + ROWS_OF_A_COPY].tolist()
            numbers = ((start + np.arange(len(places))) % per_positive + 1).tolist()
            rows = zip(places, numbers, item_ids[start : start + ROWS_OF_A_COPY], strict=True)
            async with asyncpg_connection(self._connection) as driver:
                await driver.copy_records_to_table("drawn_negatives", records=rows)
        await self._connection.execute(text("ANALYZE drawn_negatives"))
        return int(await self._connection.scalar(text(INSERT_SAMPLED.format(period=int(period)))))

    async def merge_ids(self, period: int) -> None:
        """Copy the ids of a closed period to `event_ids`, where they are looked up from then on."""
        await self._connection.execute(MERGE, {"period": period})
        await self._connection.execute(
            update(tables.periods).where(tables.periods.c.number == period).values(ids_merged_at=func.clock_timestamp())
        )

    async def count(self, period: int, *, id_prefix: str = "") -> int:
        """The number of interactions of a period; with `id_prefix` of those whose event id begins with it."""
        query = select(func.count()).select_from(tables.interactions).where(tables.interactions.c.period == period)
        if id_prefix:
            query = query.where(func.starts_with(tables.interactions.c.event_id, id_prefix))
        return int((await self._connection.execute(query)).scalar_one())

    async def any(self, period: int) -> bool:
        """Whether a period has interactions."""
        interactions = tables.interactions.c
        query = select(exists(select(interactions.period).where(interactions.period == period)))
        return bool(await self._connection.scalar(query))

    async def counted(self, period: int) -> int:
        """The number of interactions of the open period by its counters, without reading the log."""
        counters = tables.log_counters.c
        query = select(func.coalesce(func.sum(counters.events), 0)).where(counters.period == period)
        return int((await self._connection.execute(query)).scalar_one())

    async def note_count(self, period: int, events: int) -> None:
        """Add the events that this transaction stores to the counters of the open period.

        Args:
            period: the open one.
            events: how many; negative where the transaction deletes some.
        """
        statement = ADD_TO_COUNT.format(period=int(period), slot=SHARED_SLOT, events=int(events))
        await self._connection.exec_driver_sql(statement)

    async def forget_counters(self, period: int) -> None:
        """Delete the counters of a period that is being sealed."""
        await self._connection.execute(delete(tables.log_counters).where(tables.log_counters.c.period == period))

    async def log(self, period: int) -> PeriodLog:
        """All interactions of a period, ordered by (occurred_at, event_id), whatever order they were stored in."""
        return await read_log(self._connection, period)

    def contexts(self, period: int) -> AsyncIterator[Contexts]:
        """The contexts of those interactions of a period that have one, a page at a time, in the order of `log`."""
        return read_contexts(self._connection, period)

    async def drop(self, period: int, *, lock_seconds: float) -> None:
        """Drop the log of a period that is folded into the histories.

        The transaction should do nothing else: while it waits for a reader that takes long, everybody who comes later
        waits too.

        Raises:
            DBAPIError: others used the log for longer than `lock_seconds`; the transaction has to be rolled back.
        """
        await self._connection.execute(text(f"SET LOCAL lock_timeout = {int(lock_seconds * 1000)}"))
        partitions = ", ".join(f"{table.name}_p{int(period)}" for table in tables.LOG)
        await self._connection.execute(text(f"DROP TABLE {partitions}"))
        periods = tables.periods.c
        dropped = update(tables.periods).where(periods.number == period, periods.log_folded_at.is_not(None))
        values = {"log_dropped_at": func.clock_timestamp()}
        (await self._connection.execute(dropped.values(values).returning(periods.number))).one()

    async def forget_dropped_ids(self) -> None:
        """Delete the ids of the periods whose log is dropped."""
        await self._connection.execute(FORGET_DROPPED_IDS)
