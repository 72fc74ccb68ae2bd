"""Keep the catalogue of items, and the features of items and users."""

from collections.abc import Mapping, Sequence

from service.storage.database import Database
from service.storage.repositories import FeatureVersion

__all__ = ["put_items", "put_users"]


async def put_items(
    database: Database, items: Mapping[str, Sequence[str]], features: Sequence[FeatureVersion] = ()
) -> int:
    """Store the categories of each item, in place of those it had, and new versions of features; return how many items
    are new or changed.
    """
    async with database.unit_of_work() as work:
        changed = await work.items.upsert({item: list(dict.fromkeys(names)) for item, names in items.items()})
        changed |= await work.features.put("item", features)
        await work.commit()
    return len(changed)


async def put_users(database: Database, features: Sequence[FeatureVersion]) -> int:
    """Store new versions of the features of users; return how many users have one that says something new."""
    async with database.unit_of_work() as work:
        changed = await work.features.put("user", features)
        await work.commit()
    return len(changed)
