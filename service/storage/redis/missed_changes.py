"""Users whose keys in Redis miss a change, since Redis was away when it was committed.

`HistoryStore` notes them, and removes their keys before it writes to Redis again.
"""

from collections.abc import Iterable
from itertools import islice

from redis.asyncio import Redis

from service.storage.redis.connection import scan_pages
from service.storage.redis.history_layout import keys_of

__all__ = ["MissedChanges"]

MOST_USERS = 100_000
"""Users that are remembered. If there are more, the keys of all users are removed."""

USERS_OF_A_COMMAND = 250
"""Users whose keys one command removes. Redis does nothing else meanwhile."""


class MissedChanges:
    """The users whose keys have to be removed.

    Args:
        redis: the client.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._users: set[str] = set()
        self._everybody = False

    def __len__(self) -> int:
        """How many users are remembered."""
        return len(self._users)

    def note(self, user_ids: Iterable[str]) -> None:
        """Remember users whose change did not reach Redis."""
        self._users.update(user_ids)
        if len(self._users) > MOST_USERS:
            self._users.clear()
            self._everybody = True

    async def remove_outdated(self) -> None:
        """Remove the keys of the users that are remembered, and forget these users.

        Raises:
            RedisError: Redis does not answer. The users whose keys are still there stay remembered.
        """
        if self._everybody:
            self._everybody = False  # before the removal: users that are noted meanwhile have to count
            try:
                await self.remove_all()
            except BaseException:
                self._everybody = True
                raise
        while chunk := list(islice(self._users, USERS_OF_A_COMMAND)):
            await self._redis.delete(*(key for user_id in chunk for key in keys_of(user_id)))
            self._users.difference_update(chunk)

    async def remove_all(self) -> None:
        """Remove the keys of all users, leases first: then no reader can fill a key again that is removed already.

        Raises:
            RedisError: Redis does not answer.
        """
        async for keys in scan_pages(self._redis, *reversed(keys_of("*"))):
            await self._redis.unlink(*keys)
