"""Keep the catalogue of items."""

from collections.abc import Mapping, Sequence

from service.storage.database import Database

__all__ = ["put_items"]


async def put_items(database: Database, items: Mapping[str, Sequence[str]]) -> int:
    """Store the categories of each item, in place of those it had; return how many items are new or changed."""
    async with database.unit_of_work() as work:
        changed = await work.items.upsert({item: list(dict.fromkeys(names)) for item, names in items.items()})
        await work.commit()
    return changed
