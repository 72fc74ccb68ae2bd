"""Which rows of the embedding tables belong to which ids: tables `entity_rows` and `seen_rows`."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from struct import Struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from asmg.layout import COLD_ROW
from service.storage.postgres import tables
from service.storage.postgres.driver import asyncpg_connection
from service.storage.postgres.events import COPY_HEADER, COPY_TRAILER
from service.storage.postgres.repositories.many_ids import (
    IDS_PER_PAGE,
    array_text,
    int_array,
    joined,
    pages_of,
    split_texts,
)

__all__ = ["Allocation", "Entities", "EntityKind", "Extent", "IdRows"]

Rows = NDArray[np.int64]


class EntityKind(StrEnum):
    """The embedding tables, by what their rows stand for."""

    USER = "user"
    ITEM = "item"
    CATEGORY = "category"
    FIELD = "field"
    """One table for the values of all fields; an id is the name of a value, see `asmg.features.name_of_value`."""


# Rows are allocated and freed under a lock of their kind, so that two transactions never compute the same next row. The
# lock has two numbers; those of `database.Lock` have one, so they never meet.
LOCK_KIND = text("SELECT pg_advisory_xact_lock(hashtext('asmg.entity_rows'), hashtext(:kind))")

SEE = text("""
    INSERT INTO seen_rows AS noted (kind, period, rows)
    VALUES (:kind, :period, CAST(CAST(:rows AS text) AS integer[]))
    ON CONFLICT (kind, period) DO UPDATE
    SET rows = ARRAY(SELECT DISTINCT unnest(noted.rows || excluded.rows) AS row ORDER BY row)
""")

SEEN_IN = text("""
    SELECT period, (SELECT string_agg(int4send(row), ''::bytea) FROM unnest(rows) AS row) AS rows
    FROM seen_rows WHERE kind = :kind AND period > :last
""")

OLD = text("""
    SELECT string_agg(int4send(row), ''::bytea) FROM entity_rows
    WHERE kind = :kind AND id IS NOT NULL AND first_period <= :last
      AND NOT EXISTS (SELECT FROM items WHERE :kind = 'item' AND item_id = entity_rows.id AND period > :last)
""")

# The newest of the old ones is kept: it says since when seen ids have been noted.
FORGET_SEEN = text("""
    DELETE FROM seen_rows
    WHERE kind = :kind
      AND period < (SELECT max(period) FROM seen_rows AS noted WHERE noted.kind = :kind AND noted.period <= :last + 1)
""")

# A freed row changes hands too: it gets the number of an allocation.
FREE = text(
    "UPDATE entity_rows SET id = NULL, allocation = :allocation "
    "WHERE kind = :kind AND row = ANY(CAST(CAST(:rows AS text) AS integer[]))"
)

FREE_ROWS = text("""
    SELECT string_agg(int4send(row), ''::bytea ORDER BY row)
    FROM (SELECT row FROM entity_rows WHERE kind = :kind AND id IS NULL ORDER BY row LIMIT :most) AS free
""")

GIVE_FREE = text("""
    UPDATE entity_rows SET id = fresh.id, first_period = :period, allocation = :allocation
    FROM unnest(
        CAST(CAST(:rows AS text) AS integer[]), string_to_array(CAST(:ids AS text), :separator)
    ) AS fresh (row, id)
    WHERE kind = :kind AND entity_rows.row = fresh.row
""")

COLUMNS = ("kind", "row", "id", "first_period", "allocation", "appended")

# Subqueries, which look up one after the other: for a join Postgres might read the whole table.
ROWS_OF_IDS = text("""
    SELECT string_agg(int4send(coalesce((
        SELECT row FROM entity_rows WHERE kind = :kind AND id = asked.id
    ), 0)), ''::bytea ORDER BY place)
    FROM unnest(string_to_array(CAST(:ids AS text), :separator)) WITH ORDINALITY AS asked (id, place)
""")

IDS_OF_ROWS = text("""
    SELECT array_agg((
        SELECT id FROM entity_rows WHERE kind = :kind AND row = asked.row AND allocation <= :allocation
    ) ORDER BY place)
    FROM unnest(CAST(CAST(:rows AS text) AS integer[])) WITH ORDINALITY AS asked (row, place)
""")

PAGE = text("""
    SELECT string_agg(convert_to(id, 'UTF8'), decode('00', 'hex') ORDER BY row) AS ids,
           string_agg(int4send(row), ''::bytea ORDER BY row) AS rows
    FROM (
        SELECT id, row FROM entity_rows
        WHERE kind = :kind AND row > :after AND row < :end AND id IS NOT NULL AND allocation <= :allocation
        ORDER BY row LIMIT :size
    ) AS page
""")

# The last row that was there at an allocation, by bisection: rows have no gaps, and `appended` ascends with them.
LAST_ROW_AT = text("""
    WITH RECURSIVE search (low, high) AS (
        SELECT 0, (SELECT coalesce(max(row), 0) FROM entity_rows WHERE kind = :kind)
        UNION ALL
        SELECT CASE WHEN appended <= :allocation THEN middle ELSE low END,
               CASE WHEN appended <= :allocation THEN high ELSE middle - 1 END
        FROM (SELECT low, high, (low + high + 1) / 2 AS middle FROM search WHERE low < high) AS half
        JOIN entity_rows ON kind = :kind AND row = middle
    )
    SELECT low FROM search WHERE low = high
""")

CHANGED_HANDS = text("""
    SELECT string_agg(int4send(row), ''::bytea ORDER BY row)
    FROM entity_rows
    WHERE kind = :kind AND allocation <> appended AND allocation > :allocation AND row <= :last
""")

EXTENT = text("""
    SELECT coalesce(row, 0) AS row, greatest(appended, (
        SELECT max(allocation) FROM entity_rows WHERE kind = :kind AND allocation <> appended
    ), 0) AS allocation
    FROM (VALUES (1)) AS one LEFT JOIN (
        SELECT row, appended FROM entity_rows WHERE kind = :kind ORDER BY row DESC LIMIT 1
    ) AS newest ON true
""")

LAST_NUMBER = 2**31 - 1
"""Above every number of an allocation and of a row."""


class Extent(NamedTuple):
    """Highest numbers of an embedding table."""

    row: int
    """Its last row; 0 where it has only the cold row."""
    allocation: int
    """Number of its latest allocation. A model made after it knows the ids of this allocation and those before."""


class Allocation(NamedTuple):
    """Rows of some ids, of which the table does not have all yet."""

    rows: Rows
    """Of the ids, in their order."""
    extent: Extent
    """Of the table with all of them."""
    period: int
    """The first period of the new ids."""
    appended: list[str]
    """The ids that are yet to be added; they have the last rows up to `extent.row`, in this order."""
    reused: int = 0
    """How many new ids have got a row that was free."""


class IdRows(NamedTuple):
    """Some ids that have a row, ordered by row."""

    ids: list[str]
    rows: Rows
    """[len(ids)]."""


class Entities:
    """Table `entity_rows`: which id has which row of an embedding table (row 0, the cold row, belongs to no id); and
    table `seen_rows`: which rows occurred in which period.

    Rows are given to ids and freed by *allocations*, which have ascending numbers. So the number of the latest
    allocation at the time a model was made tells which rows have changed hands since.

    Ids go to Postgres and come from it in pages (`many_ids`), and long lists are made in threads.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def see(self, kind: EntityKind, ids: Sequence[str], period: int) -> None:
        """Note that these ids (they may repeat) occur in a period; ids without a row are left out.

        Periods must not descend from call to call; in a period without a call no id was seen.
        """
        await self.lock(kind)
        rows = np.unique(await self.find(kind, ids))
        seen = await asyncio.to_thread(array_text, rows[rows != COLD_ROW])
        await self._connection.execute(SEE, {"kind": str(kind), "period": period, "rows": seen})

    async def forget_seen(self) -> None:
        """Remove what was noted of seen ids; periods are counted anew from the next `see`."""
        await self._connection.execute(delete(tables.seen_rows))

    async def stale(self, kind: EntityKind, period: int, after: int) -> Rows:
        """The rows, ascending, of the ids that were not seen in the last `after` periods, this one included.

        None as long as seen ids were noted for fewer periods. Items whose catalogue entry was made or changed in these
        periods are left out. Reads the whole table.
        """
        values = {"kind": str(kind), "last": period - after}
        noted = select(func.min(tables.seen_rows.c.period)).where(tables.seen_rows.c.kind == kind)
        first: int | None = await self._connection.scalar(noted)
        if first is None or first > period - after + 1:
            return np.empty(0, dtype=np.int64)
        old = int_array(await self._connection.scalar(OLD, values))
        since = [int_array(row.rows) for row in await self._connection.execute(SEEN_IN, values)]
        return await asyncio.to_thread(np.setdiff1d, old, np.concatenate([np.empty(0, np.int64), *since]))

    async def evict(self, kind: EntityKind, period: int, after: int) -> int:
        """Free the `stale` rows; return their number."""
        await self.lock(kind)
        stale = await self.stale(kind, period, after)
        if len(stale):
            values = {"kind": str(kind), "allocation": (await self.extent(kind)).allocation + 1}
            for start in range(0, len(stale), IDS_PER_PAGE):
                rows = array_text(stale[start : start + IDS_PER_PAGE])
                await self._connection.execute(FREE, {**values, "rows": rows})
        await self._connection.execute(FORGET_SEEN, {"kind": str(kind), "last": period - after})
        return len(stale)

    async def allocate(self, kind: EntityKind, ids: Sequence[str], period: int) -> Rows:
        """The rows of `ids`, in their order; ids without a row get one.

        New ids get rows in the order of their first appearance: first free rows, the lowest first, then new ones. A
        repeated call, also from a concurrent transaction, returns the same rows.

        Args:
            kind: the embedding table.
            ids: may repeat.
            period: noted as the first period of the new ids.

        Returns:
            Rows ≥ 1, of shape (len(ids),).
        """
        allocation = await self.begin_allocation(kind, ids, period)
        await self.append(kind, allocation)
        return allocation.rows

    async def begin_allocation(self, kind: EntityKind, ids: Sequence[str], period: int) -> Allocation:
        """`allocate`, but for the rows that are new to the table: `append` adds them, in the same transaction."""
        await self.lock(kind)
        extent = await self.extent(kind)
        rows = await self.find(kind, ids) if extent.row else np.full(len(ids), COLD_ROW, dtype=np.int64)
        fresh, number = await asyncio.to_thread(_without_row, ids, rows)
        if not fresh:
            return Allocation(rows, extent, period, [])
        free = int_array(await self._connection.scalar(FREE_ROWS, {"kind": str(kind), "most": len(fresh)}))
        extent = Extent(extent.row + len(fresh) - len(free), extent.allocation + 1)
        values = {"kind": str(kind), "period": period, "allocation": extent.allocation}
        for start in range(0, len(free), IDS_PER_PAGE):
            part = free[start : start + IDS_PER_PAGE]
            names, separator = joined(fresh[start : start + len(part)])
            await self._connection.execute(
                GIVE_FREE, {**values, "rows": array_text(part), "ids": names, "separator": separator}
            )
        appended = fresh[len(free) :]
        given = np.concatenate((free, np.arange(extent.row - len(appended) + 1, extent.row + 1)))
        rows[rows == COLD_ROW] = given[number]
        return Allocation(rows, extent, period, appended, len(free))

    async def append(self, kind: EntityKind, allocation: Allocation) -> None:
        """Add the rows that the table does not have yet."""
        ids, (last, number) = allocation.appended, allocation.extent

        async def source() -> AsyncIterator[bytes]:
            yield COPY_HEADER
            for start in range(0, len(ids), IDS_PER_PAGE):
                page = ids[start : start + IDS_PER_PAGE]
                first = last - len(ids) + 1 + start
                yield await asyncio.to_thread(_copy_rows, kind, page, first, allocation.period, number)
            yield COPY_TRAILER

        if ids:
            async with asyncpg_connection(self._connection) as driver:
                name = tables.entity_rows.name
                await driver.copy_to_table(name, source=source(), columns=COLUMNS, format="binary")

    async def find(self, kind: EntityKind, ids: Sequence[str]) -> Rows:
        """The rows of `ids` (they may repeat), in their order; COLD_ROW for those without one."""
        found = [np.empty(0, dtype=np.int64)]
        for page in pages_of(ids, IDS_PER_PAGE):
            names, separator = joined(page)
            values = {"kind": str(kind), "ids": names, "separator": separator}
            found.append(int_array(await self._connection.scalar(ROWS_OF_IDS, values)))
        return np.concatenate(found)

    async def ids_at(self, kind: EntityKind, rows: Rows, allocation: int | None = None) -> list[str | None]:
        """The ids that have these rows, in their order; None for a row that is free or does not exist.

        Args:
            kind: the embedding table.
            rows: may repeat.
            allocation: None too for rows that were given to their ids after it; None: all.
        """
        known = {"kind": str(kind), "allocation": LAST_NUMBER if allocation is None else allocation}
        found: list[str | None] = []
        for start in range(0, len(rows), IDS_PER_PAGE):
            values = {**known, "rows": array_text(rows[start : start + IDS_PER_PAGE])}
            found += await self._connection.scalar(IDS_OF_ROWS, values)
        return found

    async def pages(
        self, kind: EntityKind, allocation: int | None = None, *, end: int | None = None, size: int = IDS_PER_PAGE
    ) -> AsyncIterator[IdRows]:
        """The ids of a table with their rows, ordered by row, at most `size` at a time.

        Args:
            kind: the embedding table.
            allocation: only rows that their ids were given by then; None: all.
            end: only rows before this one; None: all.
            size: most ids of a page.
        """
        allocation, end = (LAST_NUMBER if number is None else number for number in (allocation, end))
        values = {"kind": str(kind), "allocation": allocation, "end": end, "size": size}
        after = COLD_ROW
        while True:
            page = (await self._connection.execute(PAGE, {**values, "after": after})).one()
            if page.ids is None:
                return
            known = IdRows(await asyncio.to_thread(split_texts, page.ids), int_array(page.rows))
            after = int(known.rows[-1])
            yield known

    async def rows(self, kind: EntityKind, allocation: int | None = None) -> IdRows:
        """All `pages` at once."""
        ids: list[str] = []
        rows = [np.empty(0, dtype=np.int64)]
        async for page in self.pages(kind, allocation):
            ids += page.ids
            rows.append(page.rows)
        return IdRows(ids, np.concatenate(rows))

    async def rows_of_nobody(self, kind: EntityKind, allocation: int, last: int | None = None) -> Rows:
        """The rows, ascending, that were freed or given to their ids after this allocation.

        What a model from the time of the allocation has in these rows belongs to ids that were evicted or deleted
        since. In rows that were free by then it has nothing: they were forgotten when it was made.

        Args:
            kind: the embedding table.
            allocation: number of one.
            last: the last row, with those that are about to be appended; None where there are none.
        """
        values = {"kind": str(kind), "allocation": allocation}
        known = int(await self._connection.scalar(LAST_ROW_AT, values))
        changed = int_array(await self._connection.scalar(CHANGED_HANDS, {**values, "last": known}))
        last = (await self.extent(kind)).row if last is None else last
        return np.concatenate((changed, np.arange(known + 1, last + 1)))

    async def extent(self, kind: EntityKind) -> Extent:
        """The highest row and allocation of a table; zeros where it is empty."""
        found = (await self._connection.execute(EXTENT, {"kind": str(kind)})).one()
        return Extent(found.row, found.allocation)

    async def lock(self, kind: EntityKind) -> None:
        """Lock the rows of this kind against allocation and eviction by others until the transaction ends."""
        await self._connection.execute(LOCK_KIND, {"kind": str(kind)})


def _without_row(ids: Sequence[str], rows: Rows) -> tuple[list[str], Rows]:
    """The distinct ids whose row is the cold row, in the order of their first appearance.

    Returns:
        the ids, and for each place in `rows` with the cold row the number of its id among them.
    """
    found = [ids[place] for place in np.flatnonzero(rows == COLD_ROW).tolist()]
    distinct = list(dict.fromkeys(found))
    if len(distinct) == len(found):  # as of a period, which names each id once
        return distinct, np.arange(len(distinct))
    number_of = {id_: number for number, id_ in enumerate(distinct)}
    return distinct, np.array([number_of[id_] for id_ in found], dtype=np.int64)


def _copy_rows(kind: EntityKind, ids: Sequence[str], first: int, period: int, allocation: int) -> bytes:
    """Rows of `entity_rows` for a binary COPY (PostgreSQL manual, COPY): a field is its length and its bytes."""
    name = str(kind).encode()
    before = Struct(f">hi{len(name)}si").pack(len(COLUMNS), len(name), name, 4)
    after = Struct(">6i").pack(4, period, 4, allocation, 4, allocation)
    between = Struct(">ii").pack
    encoded = [id_.encode() for id_ in ids]
    numbers = [between(*pair) for pair in enumerate(map(len, encoded), first)]
    return before + (after + before).join(map(bytes.__add__, numbers, encoded)) + after
