"""What each user did last, and the features that it has now: cached in Redis, read from Postgres.

`service.use_cases.histories` reads it for predictions. Ingestion, updates and deletions tell it what they committed.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple
from uuid import uuid4

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from asmg.layout import RECENT, RECENT_SHORT
from service.errors import NotReady
from service.limits import MAX_FUTURE_SECONDS, MAX_HISTORY
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import NOTHING_KNOWN, Happened, PastEvent
from service.storage.redis.history_layout import (
    APPEND_SCRIPT,
    CLICKS_CHANNEL,
    EVERYBODY,
    FILL_SCRIPT,
    MOST_MEMBERS,
    NOTHING,
    READ_SCRIPT,
    keys_of,
    member_of,
)
from service.storage.redis.missed_changes import MissedChanges
from service.storage.redis.outage import ANSWER_SECONDS, Outage

__all__ = ["HistoryStore", "StoredPast"]

HISTORY_SECONDS = 3600
"""Expiry of a cached past. If a change is lost by every other safeguard, it counts at the latest after this time."""

LEASE_SECONDS = 10
"""Expiry of a lease: how long a reader may take to read Postgres and still fill the cache."""

EVENTS_OF_A_SCRIPT = 250
"""Events or users in one command. Redis does nothing else meanwhile, nor does the event loop that packs them."""


class StoredPast(NamedTuple):
    """What a user did last, and its features now."""

    items: Sequence[str] | Sequence[bytes]
    """The history: items clicked, newest first; as text, or as UTF-8 if they come from Redis."""
    recent: tuple[int, int, int]
    """Of the last `RECENT` interactions: how many there are, clicks among the newest `RECENT_SHORT`, all clicks."""
    features: Mapping[str, Any] = NOTHING_KNOWN
    """Values by field name."""

    @classmethod
    def of(cls, events: Sequence[PastEvent], length: int, features: Mapping[str, Any] = NOTHING_KNOWN) -> "StoredPast":
        """The past that consists of these events.

        Args:
            events: newest first.
            length: most items of the history.
            features: values by field name.
        """
        labels = [event.label for event in events[:RECENT]]
        items = [event.item_id for event in events if event.label][:length]
        return cls(items, (len(labels), sum(labels[:RECENT_SHORT]), sum(labels)), features)

    @classmethod
    def parse(cls, text: bytes) -> "StoredPast":
        """The past of one user in the answer of `READ_SCRIPT`."""
        numbers, features, *items = text.split(b"\0")
        total, short_clicks, clicks = map(int, numbers.split())
        known = NOTHING_KNOWN if features == b"{}" else orjson.loads(features)
        return cls(items, (total, short_clicks, clicks), known)


class HistoryStore:
    """The pasts of users, in Redis (see `history_layout`) and otherwise from Postgres.

    The cache is never filled with an answer that misses something committed: a reader that finds nothing takes a lease
    before it reads Postgres, and fills the cache only while it holds the lease. `append`, which runs after the commit,
    adds to a cached set and removes the lease; `forget_features` removes both lease and features. If Redis does not
    receive such a change, the user is remembered, and its keys are removed before this process writes to Redis again.

    Args:
        redis: a client that returns bytes.
        database: has what is not cached.
        length: most items of a history.
        on_fallback: called for each user that is read from Postgres because Redis does not answer.
    """

    def __init__(
        self,
        redis: Redis,
        database: Database,
        *,
        length: int = MAX_HISTORY,
        on_fallback: Callable[[], None] = lambda: None,
    ) -> None:
        self._redis = redis
        self._database = database
        self._length = length
        self._on_fallback = on_fallback
        self._fill = redis.register_script(FILL_SCRIPT)
        self._append = redis.register_script(APPEND_SCRIPT)
        self._read_script = redis.register_script(READ_SCRIPT)
        self._outage = Outage("user histories are read from Postgres")
        self.missed = MissedChanges(redis)
        """Users whose keys miss a change."""

    async def cached(self, user_ids: Sequence[str]) -> list[StoredPast | None]:
        """What Redis has of these users, in one round trip; None for a user that `get` has to read. Never raises."""
        if self._outage.pausing:
            return [None] * len(user_ids)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._read_redis(user_ids)
        except (RedisError, TimeoutError) as error:
            self._outage.note(error)
            return [None] * len(user_ids)

    async def get(self, user_id: str) -> StoredPast:
        """What the user did last; an empty past for an unknown user.

        Raises:
            NotReady: Redis does not have it, and Postgres does not answer.
        """
        if self._outage.pausing:
            self._on_fallback()
            return (await self._read_postgres(user_id))[0]
        keys, token, leased = keys_of(user_id), uuid4().hex, False
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                [found] = await self._read_redis([user_id])
                if found is not None:
                    items = [item.decode() for item in found.items if isinstance(item, bytes)]
                    return found._replace(items=items)
                leased = bool(await self._redis.set(keys.lease, token, nx=True, ex=LEASE_SECONDS))
        except (RedisError, TimeoutError) as error:
            self._outage.note(error)
            self._on_fallback()
        found, events, valid_ms = await self._read_postgres(user_id)
        if leased:
            members = [part for event in events for part in (event.timestamp_ms, member_of(event))]
            features = orjson.dumps(found.features)
            try:
                await self._fill(
                    keys=[*keys], args=[token, HISTORY_SECONDS, features, valid_ms, *(members or ("-inf", NOTHING))]
                )
            except RedisError as error:
                self._outage.note(error)
        return found

    async def append(self, happened: Happened) -> None:
        """Add what was committed to the pasts of its users. Never raises.

        To be called after the commit, and only with what that commit accepted. Calling it twice does no harm.
        """
        if not happened.user_ids:
            return
        if self._outage.pausing:
            self.missed.note(happened.user_ids)
            return
        latest_ms = (time.time() + MAX_FUTURE_SECONDS) * 1000  # a later event would stay the newest for too long
        sizes = [self._length, RECENT, MOST_MEMBERS]
        try:
            await self.missed.remove_outdated()
            for users, events in happened.parts(EVENTS_OF_A_SCRIPT, latest_ms):
                await self._append(args=[*sizes, CLICKS_CHANNEL, users, events])
        except RedisError as error:
            self.missed.note(happened.user_ids)
            self._outage.note(error)

    async def forget_features(self, user_ids: Collection[str]) -> None:
        """Remove the cached features of users, and tell every process to forget these users. Never raises.

        To be called after the commit that changed the features.
        """
        if self._outage.pausing:
            self.missed.note(user_ids)
            return
        try:
            await self.missed.remove_outdated()
            rest = iter(user_ids)
            while chunk := list(islice(rest, EVENTS_OF_A_SCRIPT)):
                keys = [keys_of(user_id) for user_id in chunk]
                async with self._redis.pipeline(transaction=True) as pipeline:
                    pipeline.delete(*(key for of_user in keys for key in (of_user.features, of_user.lease)))
                    pipeline.publish(CLICKS_CHANNEL, "\0".join(chunk))
                    await pipeline.execute()
        except RedisError as error:
            self.missed.note(user_ids)
            self._outage.note(error)

    async def forget_user(self, user_id: str) -> None:
        """Remove all keys of a user, even while they are being filled, and tell every process to forget the user.

        Raises:
            NotReady: Redis does not answer.
        """
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.delete(*keys_of(user_id))
                pipeline.publish(CLICKS_CHANNEL, user_id)
                await pipeline.execute()
        except RedisError as error:
            raise NotReady(f"Redis does not answer: {type(error).__name__}") from error

    async def forget_all(self) -> None:
        """Remove the keys of all users, and tell every process to forget all users.

        Raises:
            NotReady: Redis does not answer.
        """
        try:
            await self.missed.remove_all()
            await self._redis.publish(CLICKS_CHANNEL, EVERYBODY)
        except RedisError as error:
            raise NotReady(f"Redis does not answer: {type(error).__name__}") from error

    async def _read_redis(self, user_ids: Sequence[str]) -> list[StoredPast | None]:
        keys = [keys_of(user_id).past for user_id in user_ids]
        found = await self._read_script(keys=keys, args=[self._length, RECENT, RECENT_SHORT])
        return [None if text is None else StoredPast.parse(text) for text in found]

    async def _read_postgres(self, user_id: str) -> tuple[StoredPast, list[PastEvent], int]:
        """A user's past, its events, and for how many milliseconds its features may be cached."""
        now_ms = int(time.time() * 1000)
        async with self._database.read() as session:
            events = await session.past.recent(user_id)
            features, until_ms = await session.features.of_user_at(user_id, now_ms)
        valid_ms = 1000 * HISTORY_SECONDS if until_ms is None else min(1000 * HISTORY_SECONDS, until_ms - now_ms)
        return StoredPast.of(events, self._length, features), events, valid_ms
