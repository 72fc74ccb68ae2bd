"""Keep the catalogue of items, and the features of items and users."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from service.storage.postgres.database import Database
from service.storage.postgres.repositories import FeatureVersion

__all__ = ["KeepsFeatures", "put_items", "put_users"]


class KeepsFeatures(Protocol):
    """What keeps features of users for predictions."""

    async def forget_features(self, user_ids: Collection[str], /) -> None:
        """Forget those of users whose features have changed."""


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


async def put_users(database: Database, histories: KeepsFeatures, features: Sequence[FeatureVersion]) -> int:
    """Store new versions of the features of users; return how many users have one that says something new. The next
    predictions of these read it.
    """
    async with database.unit_of_work() as work:
        changed = await work.features.put("user", features)
        await work.commit()
    if changed:
        await histories.forget_features(changed)
    return len(changed)
