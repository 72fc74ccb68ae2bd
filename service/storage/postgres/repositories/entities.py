"""Which rows of the embedding tables belong to which ids: tables `entity_rows` and `seen_rows`."""

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncConnection

from asmg.layout import COLD_ROW
from service.storage.postgres import tables

__all__ = ["Entities", "EntityKind", "Extent"]


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
    INSERT INTO seen_rows AS noted (kind, period, rows) VALUES (:kind, :period, CAST(:rows AS integer[]))
    ON CONFLICT (kind, period) DO UPDATE
    SET rows = ARRAY(SELECT DISTINCT unnest(noted.rows || excluded.rows) AS row ORDER BY row)
""")

OLD = text("""
    SELECT array_agg(row) FROM entity_rows
    WHERE kind = :kind AND id IS NOT NULL AND first_period <= :last
      AND NOT EXISTS (SELECT FROM items WHERE :kind = 'item' AND item_id = entity_rows.id AND period > :last)
""")

# The newest of the old ones is kept: it says since when seen ids have been noted.
FORGET_SEEN = text("""
    DELETE FROM seen_rows
    WHERE kind = :kind
      AND period < (SELECT max(period) FROM seen_rows AS noted WHERE noted.kind = :kind AND noted.period <= :last + 1)
""")

# A row that exists already is free.
GIVE = text("""
    INSERT INTO entity_rows (kind, row, id, first_period, allocation)
    SELECT :kind, row, id, :period, :allocation
    FROM unnest(CAST(:rows AS integer[]), CAST(:ids AS text[])) AS fresh (row, id)
    ON CONFLICT (kind, row) DO UPDATE
    SET id = excluded.id, first_period = excluded.first_period, allocation = excluded.allocation
""")

ROWS_OF_IDS = text("""
    SELECT array_agg(coalesce(known.row, 0) ORDER BY entity.place)
    FROM unnest(CAST(:ids AS text[])) WITH ORDINALITY AS entity (id, place)
    LEFT JOIN entity_rows AS known ON known.kind = :kind AND known.id = entity.id
""")


class Extent(NamedTuple):
    """Highest numbers of an embedding table."""

    row: int
    """Its last row; 0 where it has only the cold row."""
    allocation: int
    """Number of its latest allocation. A model made after it knows the ids of this allocation and those before."""


class Entities:
    """Table `entity_rows`: which id has which row of an embedding table (row 0, the cold row, belongs to no id); and
    table `seen_rows`: which rows occurred in which period.

    Rows are given to ids by *allocations*, which have ascending numbers. So the number of the latest allocation at the
    time a model was made tells which rows have changed hands since.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def see(self, kind: EntityKind, ids: Sequence[str], period: int) -> None:
        """Note that these ids (they may repeat) occur in a period; ids without a row are left out.

        Periods must not descend from call to call; in a period without a call no id was seen.
        """
        await self.lock(kind)
        rows = np.unique(await self.find(kind, ids))
        values = {"kind": str(kind), "period": period, "rows": rows[rows != COLD_ROW].tolist()}
        await self._connection.execute(SEE, values)

    async def forget_seen(self) -> None:
        """Remove what was noted of seen ids; periods are counted anew from the next `see`."""
        await self._connection.execute(delete(tables.seen_rows))

    async def stale(self, kind: EntityKind, period: int, after: int) -> NDArray[np.int64]:
        """The rows, ascending, of the ids that were not seen in the last `after` periods, this one included.

        None as long as seen ids were noted for fewer periods. Items whose catalogue entry was made or changed in these
        periods are left out.
        """
        last = period - after
        noted = select(tables.seen_rows.c.period, tables.seen_rows.c.rows).where(tables.seen_rows.c.kind == kind)
        seen = {row.period: row.rows for row in await self._connection.execute(noted)}
        if not any(number <= last + 1 for number in seen):
            return np.empty(0, dtype=np.int64)
        old = await self._connection.scalar(OLD, {"kind": str(kind), "last": last}) or []
        since = [np.array(rows, dtype=np.int64) for number, rows in seen.items() if number > last]
        return np.setdiff1d(np.array(old, dtype=np.int64), np.concatenate([np.empty(0, np.int64), *since]))

    async def evict(self, kind: EntityKind, period: int, after: int) -> int:
        """Free the `stale` rows; return their number."""
        await self.lock(kind)
        stale = await self.stale(kind, period, after)
        ours = (tables.entity_rows.c.kind == kind) & (tables.entity_rows.c.row == func.any(stale.tolist()))
        await self._connection.execute(update(tables.entity_rows).where(ours).values(id=None))
        await self._connection.execute(FORGET_SEEN, {"kind": str(kind), "last": period - after})
        return len(stale)

    async def allocate(self, kind: EntityKind, ids: Sequence[str], period: int) -> NDArray[np.int64]:
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
        await self.lock(kind)
        rows = await self.find(kind, ids)
        fresh = list(dict.fromkeys(ids[place] for place in np.flatnonzero(rows == COLD_ROW).tolist()))
        if not fresh:
            return rows
        free = (
            select(tables.entity_rows.c.row)
            .where(tables.entity_rows.c.kind == kind, tables.entity_rows.c.id.is_(None))
            .order_by(tables.entity_rows.c.row)
            .limit(len(fresh))
        )
        extent, given = await self.extent(kind), list((await self._connection.execute(free)).scalars())
        given += range(extent.row + 1, extent.row + 1 + len(fresh) - len(given))
        values = {"kind": str(kind), "rows": given, "ids": fresh, "period": period, "allocation": extent.allocation + 1}
        await self._connection.execute(GIVE, values)
        return await self.find(kind, ids)

    async def find(self, kind: EntityKind, ids: Sequence[str]) -> NDArray[np.int64]:
        """The rows of `ids` (they may repeat), in their order; COLD_ROW for those without one."""
        if not ids:
            return np.empty(0, dtype=np.int64)
        values = {"kind": str(kind), "ids": list(ids)}
        return np.array(await self._connection.scalar(ROWS_OF_IDS, values), dtype=np.int64)

    async def rows(self, kind: EntityKind, allocation: int | None = None) -> tuple[list[str], NDArray[np.int64]]:
        """The ids of a table and their rows, ordered by row; with `allocation` only rows given by then."""
        query = (
            select(tables.entity_rows.c.id, tables.entity_rows.c.row)
            .where(tables.entity_rows.c.kind == kind, tables.entity_rows.c.id.is_not(None))
            .order_by(tables.entity_rows.c.row)
        )
        if allocation is not None:
            query = query.where(tables.entity_rows.c.allocation <= allocation)
        found = (await self._connection.execute(query)).all()
        return [row.id for row in found], np.array([row.row for row in found], dtype=np.int64)

    async def rows_of_nobody(self, kind: EntityKind, allocation: int) -> NDArray[np.int64]:
        """The rows, ascending, that are free or were given to their ids after this allocation.

        What a model from the time of the allocation has in these rows belongs to ids that were evicted since.
        """
        query = (
            select(func.array_agg(aggregate_order_by(tables.entity_rows.c.row, tables.entity_rows.c.row)))
            .where(tables.entity_rows.c.kind == kind)
            .where(tables.entity_rows.c.id.is_(None) | (tables.entity_rows.c.allocation > allocation))
        )
        return np.array(await self._connection.scalar(query) or [], dtype=np.int64)

    async def extent(self, kind: EntityKind) -> Extent:
        """The highest row and allocation of a table; zeros where it is empty."""
        row, allocation = func.max(tables.entity_rows.c.row), func.max(tables.entity_rows.c.allocation)
        query = select(func.coalesce(row, 0), func.coalesce(allocation, 0)).where(tables.entity_rows.c.kind == kind)
        return Extent(*(await self._connection.execute(query)).one())

    async def lock(self, kind: EntityKind) -> None:
        """Lock the rows of this kind against allocation and eviction by others until the transaction ends."""
        await self._connection.execute(LOCK_KIND, {"kind": str(kind)})
