"""The catalogue of items with their categories: table `items`."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.storage.postgres.repositories.many_ids import joined, pages_of

__all__ = ["Catalogue", "Items"]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Items with their categories, as columns of equal length, ordered by item id."""

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


ITEMS_PER_PAGE = 20_000
"""Items that Postgres aggregates into one row. Decoding them takes some milliseconds of the event loop."""

# The order is the same on every server, because rows are allocated in it.
PAGES = """
    SELECT array_agg(item_id ORDER BY n) AS item_ids, json_agg(categories ORDER BY n)::text AS categories,
           array_agg(period ORDER BY n) AS periods
    FROM (
        SELECT item_id, categories, period, row_number() OVER (ORDER BY item_id COLLATE "C") AS n
        FROM items WHERE {which}
    ) AS entry
    GROUP BY (n - 1) / :size
    ORDER BY (n - 1) / :size
"""

OF_ITEMS = text("""
    SELECT array_agg(item_id) AS item_ids, json_agg(categories)::text AS categories
    FROM items WHERE item_id = ANY(string_to_array(CAST(:ids AS text), :separator))
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
        """Item → its categories, for those of these items that are in the catalogue."""
        found: dict[str, tuple[str, ...]] = {}
        for page in pages_of(item_ids):
            names, separator = joined(page)
            row = (await self._connection.execute(OF_ITEMS, {"ids": names, "separator": separator})).one()
            if row.item_ids is not None:
                found |= await asyncio.to_thread(_categories, row.item_ids, row.categories)
        return found

    async def put_since(self, period: int) -> Catalogue:
        """The items whose entry was made or changed while this period or a later one was open.

        An entry that is being stored now is not among them; see `Lock.CATALOGUE`.
        """
        return _concatenated([page async for page in self._pages("period >= :period", period=period)])

    async def catalogue(self) -> Catalogue:
        """All items."""
        return _concatenated([page async for page in self.pages()])

    def pages(self) -> AsyncIterator[Catalogue]:
        """All items, `ITEMS_PER_PAGE` at a time, in the order of their ids."""
        return self._pages("true")

    async def _pages(self, which: str, **values: object) -> AsyncIterator[Catalogue]:
        async with self._connection.stream(text(PAGES.format(which=which)), {**values, "size": ITEMS_PER_PAGE}) as rows:
            async for page in rows:
                of_item = await asyncio.to_thread(_categories, page.item_ids, page.categories)
                yield Catalogue(page.item_ids, list(of_item.values()), page.periods)


def _categories(item_ids: Sequence[str], categories: str) -> dict[str, tuple[str, ...]]:
    """Item → its categories, of which a JSON text has an array for each item."""
    return {item: tuple(names) for item, names in zip(item_ids, orjson.loads(categories), strict=True)}


def _concatenated(pages: Sequence[Catalogue]) -> Catalogue:
    return Catalogue(
        [item for page in pages for item in page.item_ids],
        [names for page in pages for names in page.categories],
        [period for page in pages for period in page.periods],
    )
