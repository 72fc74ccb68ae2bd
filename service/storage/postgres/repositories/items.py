"""The catalogue of items with their categories: table `items`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres import tables

__all__ = ["Catalogue", "Items"]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All items with their categories, as columns of equal length, ordered by item id."""

    item_ids: list[str]
    categories: list[tuple[str, ...]]
    periods: list[int]
    """For each item the period that was open when its categories were stored."""

    def __len__(self) -> int:
        return len(self.item_ids)


# JSON because Postgres has no array of arrays of unequal length; sorted, as all batches are, to avoid deadlocks.
UPSERT_ITEMS = text("""
    INSERT INTO items AS known (item_id, categories, period)
    SELECT item_id, categories, (SELECT number FROM periods WHERE status = 'open')
    FROM jsonb_to_recordset(CAST(:items AS jsonb)) AS item (item_id text, categories text[])
    ORDER BY item_id
    ON CONFLICT (item_id) DO UPDATE
    SET categories = excluded.categories, period = excluded.period, updated_at = now()
    WHERE known.categories IS DISTINCT FROM excluded.categories
    RETURNING item_id
""")


class Items:
    """Table `items`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def upsert(self, items: Mapping[str, Sequence[str]]) -> set[str]:
        """Store the categories of each item; return the items that are new or changed."""
        if not items:
            return set()
        rows = [{"item_id": item_id, "categories": list(categories)} for item_id, categories in items.items()]
        changed = await self._connection.execute(UPSERT_ITEMS, {"items": orjson.dumps(rows).decode()})
        return set(changed.scalars())

    async def categories(self, item_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Item → its categories, for the items that are in the catalogue."""
        query = select(tables.items.c.item_id, tables.items.c.categories).where(
            tables.items.c.item_id == func.any(list(item_ids))
        )
        return {row.item_id: tuple(row.categories) for row in await self._connection.execute(query)}

    async def catalogue(self) -> Catalogue:
        """All items, in an order that is the same on every server, because rows are allocated in it."""
        columns = (tables.items.c.item_id, tables.items.c.categories, tables.items.c.period)
        query = select(*columns).order_by(tables.items.c.item_id.collate("C"))
        rows = (await self._connection.execute(query)).all()
        ids, categories, periods = zip(*rows, strict=True) if rows else ((), (), ())
        return Catalogue(list(ids), [tuple(names) for names in categories], list(periods))
