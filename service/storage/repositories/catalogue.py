"""What the service knows of entities: the categories of items and the embedding rows of all ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import orjson
from numpy.typing import NDArray
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage import tables

__all__ = ["Catalogue", "Entities", "EntityKind", "Items"]


class EntityKind(StrEnum):
    """The embedding tables."""

    USER = "user"
    ITEM = "item"
    CATEGORY = "category"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All items with their categories, as columns of equal length, ordered by item id."""

    item_ids: list[str]
    categories: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.item_ids)


# Lists of unequal length have no Postgres array of arrays, hence JSON; sorted as all batches are, against deadlocks.
UPSERT_ITEMS = text("""
    INSERT INTO items AS known (item_id, categories)
    SELECT item_id, categories
    FROM jsonb_to_recordset(CAST(:items AS jsonb)) AS item (item_id text, categories text[])
    ORDER BY item_id
    ON CONFLICT (item_id) DO UPDATE SET categories = excluded.categories, updated_at = now()
    WHERE known.categories IS DISTINCT FROM excluded.categories
""")

# Rows are handed out under a lock of the kind, so two transactions never compute the same next row. The lock is in
# the two-number space of advisory locks, which does not meet the one-number space of `database.Lock`.
LOCK_KIND = text("SELECT pg_advisory_xact_lock(hashtext('asmg.entity_rows'), hashtext(:kind))")

ALLOCATE = text("""
    WITH wanted AS (
        SELECT id, min(place) AS place
        FROM unnest(CAST(:ids AS text[])) WITH ORDINALITY AS entity (id, place)
        GROUP BY id
    ), fresh AS (
        SELECT id, row_number() OVER (ORDER BY place) AS nth
        FROM wanted
        WHERE NOT EXISTS (SELECT FROM entity_rows AS known WHERE known.kind = :kind AND known.id = wanted.id)
    )
    INSERT INTO entity_rows (kind, id, row, first_period)
    SELECT :kind, id, nth + (SELECT coalesce(max(row), 0) FROM entity_rows WHERE kind = :kind), :period
    FROM fresh
""")

ROWS_OF_IDS = text("""
    SELECT array_agg(known.row ORDER BY entity.place)
    FROM unnest(CAST(:ids AS text[])) WITH ORDINALITY AS entity (id, place)
    JOIN entity_rows AS known ON known.kind = :kind AND known.id = entity.id
""")


class Items:
    """Table `items`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def upsert(self, items: Mapping[str, Sequence[str]]) -> int:
        """Store the categories of each item; return how many items are new or changed."""
        if not items:
            return 0
        rows = [{"item_id": item_id, "categories": list(categories)} for item_id, categories in items.items()]
        result = await self._connection.execute(UPSERT_ITEMS, {"items": orjson.dumps(rows).decode()})
        return int(result.rowcount)

    async def categories(self, item_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The categories of those of the items that are in the catalogue."""
        query = select(tables.items.c.item_id, tables.items.c.categories).where(
            tables.items.c.item_id == func.any(list(item_ids))
        )
        return {row.item_id: tuple(row.categories) for row in await self._connection.execute(query)}

    async def catalogue(self) -> Catalogue:
        """All items, in the same order on every server: new rows are given in it."""
        query = select(tables.items.c.item_id, tables.items.c.categories)
        query = query.order_by(tables.items.c.item_id.collate("C"))
        rows = (await self._connection.execute(query)).all()
        return Catalogue([row.item_id for row in rows], [tuple(row.categories) for row in rows])


class Entities:
    """Table `entity_rows`: which row of an embedding table belongs to which id. Row 0, the cold row, is nobody's."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def allocate(self, kind: EntityKind, ids: Sequence[str], period: int) -> NDArray[np.int64]:
        """The rows of `ids`, in their order; new ids get the next rows in the order of their first appearance.

        Calling it again, also in another transaction at the same time, gives the same rows.

        Args:
            kind: the embedding table.
            ids: may repeat.
            period: noted as the first period of the new ids.

        Returns:
            Rows ≥ 1, of shape (len(ids),).
        """
        if not ids:
            return np.empty(0, dtype=np.int64)
        values = {"kind": str(kind), "ids": list(ids)}
        await self._connection.execute(LOCK_KIND, {"kind": str(kind)})
        await self._connection.execute(ALLOCATE, {**values, "period": period})
        return np.array(await self._connection.scalar(ROWS_OF_IDS, values), dtype=np.int64)

    async def rows(self, kind: EntityKind) -> tuple[list[str], NDArray[np.int64]]:
        """All ids of a table and their rows, ordered by row."""
        query = (
            select(tables.entity_rows.c.id, tables.entity_rows.c.row)
            .where(tables.entity_rows.c.kind == kind)
            .order_by(tables.entity_rows.c.row)
        )
        found = (await self._connection.execute(query)).all()
        return [row.id for row in found], np.array([row.row for row in found], dtype=np.int64)

    async def count(self, kind: EntityKind) -> int:
        """Ids of a table, which is also its highest row."""
        query = select(func.count()).select_from(tables.entity_rows).where(tables.entity_rows.c.kind == kind)
        return int((await self._connection.execute(query)).scalar_one())
