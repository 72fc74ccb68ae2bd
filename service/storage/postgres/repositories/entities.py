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
    """The embedding tables."""

    USER = "user"
    ITEM = "item"
    CATEGORY = "category"
    FIELD = "field"
    """One table of all fields; an id is a value of one of them, see `asmg.features.name_of_value`."""


# Rows change hands under a lock of the kind, so two transactions never compute the same next row. The lock is in the
# two-number space of advisory locks, which does not meet the one-number space of `database.Lock`.
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

# One is kept that says since when it has been noted.
FORGET_SEEN = text("""
    DELETE FROM seen_rows
    WHERE kind = :kind
      AND period < (SELECT max(period) FROM seen_rows AS noted WHERE noted.kind = :kind AND noted.period <= :last + 1)
""")

# A row that is there already is a free one.
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
    """How far a table has got."""

    row: int
    """Its last row."""
    allocation: int
    """Number of its latest allocation. A model that was made after it knows the ids of this one and those before."""


class Entities:
    """Tables `entity_rows`, which row of an embedding table belongs to which id (row 0, the cold row, is nobody's), and
    `seen_rows`, which of them a period had to do with.

    A row is given by an *allocation*; these have ascending numbers. So whoever knows the number of the latest one when
    a model was made knows which rows have changed hands since.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def see(self, kind: EntityKind, ids: Sequence[str], period: int) -> None:
        """Note that these ids (they may repeat) occur in a period; those without a row are left out.

        To be called for periods that never descend; those without a call count as periods in which nobody came.
        """
        await self.lock(kind)
        rows = np.unique(await self.find(kind, ids))
        values = {"kind": str(kind), "period": period, "rows": rows[rows != COLD_ROW].tolist()}
        await self._connection.execute(SEE, values)

    async def forget_seen(self) -> None:
        """Begin to count anew, as if nothing had been noted."""
        await self._connection.execute(delete(tables.seen_rows))

    async def stale(self, kind: EntityKind, period: int, after: int) -> NDArray[np.int64]:
        """The rows, ascending, of the ids that were not seen for `after` periods up to this one.

        Nobody's as long as it is noted for fewer periods who was seen; and not that of an item whose catalogue entry
        was made or changed in one of them.
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
        """Free the `stale` rows; return how many there were."""
        await self.lock(kind)
        stale = await self.stale(kind, period, after)
        ours = (tables.entity_rows.c.kind == kind) & (tables.entity_rows.c.row == func.any(stale.tolist()))
        await self._connection.execute(update(tables.entity_rows).where(ours).values(id=None))
        await self._connection.execute(FORGET_SEEN, {"kind": str(kind), "last": period - after})
        return len(stale)

    async def allocate(self, kind: EntityKind, ids: Sequence[str], period: int) -> NDArray[np.int64]:
        """The rows of `ids`, in their order.

        New ids get rows in the order of their first appearance: free ones, the lowest first, then the next ones.
        Calling it again, also in another transaction at the same time, gives the same rows.

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
        """The rows of `ids` (they may repeat), in their order; COLD_ROW of those without one."""
        if not ids:
            return np.empty(0, dtype=np.int64)
        values = {"kind": str(kind), "ids": list(ids)}
        return np.array(await self._connection.scalar(ROWS_OF_IDS, values), dtype=np.int64)

    async def rows(self, kind: EntityKind, allocation: int | None = None) -> tuple[list[str], NDArray[np.int64]]:
        """The ids of a table and their rows, ordered by row; with `allocation` those that have them since then."""
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

        To a model that was made then they are nobody's: whatever it has there belongs to an id that was evicted.
        """
        query = (
            select(func.array_agg(aggregate_order_by(tables.entity_rows.c.row, tables.entity_rows.c.row)))
            .where(tables.entity_rows.c.kind == kind)
            .where(tables.entity_rows.c.id.is_(None) | (tables.entity_rows.c.allocation > allocation))
        )
        return np.array(await self._connection.scalar(query) or [], dtype=np.int64)

    async def extent(self, kind: EntityKind) -> Extent:
        """How far the table has got; zeros where it is empty."""
        row, allocation = func.max(tables.entity_rows.c.row), func.max(tables.entity_rows.c.allocation)
        query = select(func.coalesce(row, 0), func.coalesce(allocation, 0)).where(tables.entity_rows.c.kind == kind)
        return Extent(*(await self._connection.execute(query)).one())

    async def lock(self, kind: EntityKind) -> None:
        """Wait until nobody else moves rows of this kind; nobody does then before the transaction ends."""
        await self._connection.execute(LOCK_KIND, {"kind": str(kind)})
