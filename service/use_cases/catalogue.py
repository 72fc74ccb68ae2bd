"""Store the catalogue of items, and the features of items and users."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from service.storage.postgres.database import Database, Lock
from service.storage.postgres.repositories import FeatureVersion

__all__ = ["KeepsFeatures", "put_items", "put_users"]


class KeepsFeatures(Protocol):
    """A cache of users' features, which predictions read."""

    async def forget_features(self, user_ids: Collection[str], /) -> None:
        """Remove the cached features of these users, which have changed."""


async def put_items(
    database: Database, items: Mapping[str, Sequence[str]], features: Sequence[FeatureVersion] = ()
) -> int:
    """Replace the categories of items and store new versions of their features.

    Returns:
        number of the items that are new or changed.
    """
    async with database.unit_of_work() as work:
        await work.lock_shared(Lock.CATALOGUE)
        changed = await work.items.upsert({item: list(dict.fromkeys(names)) for item, names in items.items()})
        changed |= await work.features.put("item", features)
        await work.commit()
    return len(changed)


async def put_users(database: Database, histories: KeepsFeatures, features: Sequence[FeatureVersion]) -> int:
    """Store new versions of users' features; the next predictions for these users read them.

    Returns:
        number of the users whose features are new or changed.
    """
    async with database.unit_of_work() as work:
        changed = await work.features.put("user", features)
        await work.commit()
    if changed:
        await histories.forget_features(changed)
    return len(changed)
