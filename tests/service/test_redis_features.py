"""Features of users in a real Redis are the valid ones, in every race."""

import asyncio
from contextlib import aclosing
from datetime import timedelta

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from service.storage.postgres.database import Database
from service.storage.postgres.repositories import FeatureVersion, Happened
from service.storage.redis import histories, outage
from service.storage.redis.histories import HistoryStore, StoredPast
from service.storage.redis.notices import Notices
from tests.service.redis_support import START, PausedDatabase, commit, event, fail_command

NOW_MS = 1_714_564_800_000
"""What time it is where a test sets it: that of `START`."""


async def describe(database: Database, user_id: str, age: int | None, at_ms: int = NOW_MS) -> None:
    """Commit a version of the user's features."""
    features = {} if age is None else {"age": age, "ü": ["\u2028", 'a"b', "日本"]}
    async with database.unit_of_work() as uow:
        version = FeatureVersion(user_id, START + timedelta(milliseconds=at_ms - NOW_MS), features)
        await uow.features.put("user", [version])
        await uow.commit()


async def age(store: HistoryStore, user_id: str = "u") -> int | None:
    """Of the features that the store has of a user, which say the same by either way."""
    features = (await store.get(user_id)).features
    for found in await store.cached([user_id]):
        assert found is None or found.features == features
    assert set(features) in ({"age", "ü"}, set())
    return features.get("age")


class TestFeatures:
    """Those of users."""

    async def test_come_with_the_past_from_postgres_and_from_redis(
        self, store: HistoryStore, cached: HistoryStore, database: Database, redis: Redis
    ) -> None:
        await describe(database, "u", 31)
        await commit(database, event(1), event(2, "v"))
        assert [await age(store), await age(store, "v"), await age(store, "w")] == [31, None, None]
        [u, v, w, x] = await cached.cached(["u", "v", "w", "x"])
        assert u == StoredPast([b"i1"], (1, 1, 1), {"age": 31, "ü": ["\u2028", 'a"b', "日本"]})
        assert v == StoredPast([b"i2"], (1, 1, 1)) and w == StoredPast([], (0, 0, 0)) and x is None
        assert await redis.get("asmg:features:w") == b"{}"
        assert 3_590_000 < await redis.pttl("asmg:features:u") <= 3_600_000

    @pytest.mark.parametrize("key", ["asmg:past:u", "asmg:features:u"])
    async def test_are_in_redis_together_with_the_past_or_not_at_all(
        self, store: HistoryStore, database: Database, redis: Redis, key: str
    ) -> None:
        """Redis may drop either when its memory is full."""
        await describe(database, "u", 31)
        await commit(database, event(1))
        for _ in range(2):
            assert await age(store) == 31
            assert await redis.exists("asmg:past:u", "asmg:features:u") == 2
            await redis.delete(key)
            assert await store.cached(["u"]) == [None]
        assert await store.get("u") == StoredPast(["i1"], (1, 1, 1), (await store.get("u")).features)

    async def test_that_were_changed_are_read_again(
        self, store: HistoryStore, cached: HistoryStore, database: Database
    ) -> None:
        for said in (31, 32, None, 33):
            await describe(database, "u", said)
            await store.forget_features({"u"})
            assert await store.cached(["u"]) == [None]
            assert await age(store) == said == await age(cached)
        await commit(database, event(1))
        await store.append(Happened.of([event(1)]))  # which leaves them as they are
        assert await age(cached) == 33
        assert (await cached.get("u")).items == ["i1"]

    async def test_of_another_moment_wait_for_it(
        self, store: HistoryStore, database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Clients may be ahead of the clock; features are valid from their own time, and are cached until then."""
        monkeypatch.setattr(histories.time, "time", lambda: NOW_MS / 1000)
        await describe(database, "u", 31, NOW_MS - 1)
        await describe(database, "u", 32, NOW_MS + 60_000)
        await describe(database, "u", 33, NOW_MS + 60_001)
        assert await age(store) == 31
        assert 50_000 < await redis.pttl("asmg:features:u") <= 60_000
        for later, expected in ((59_999, 31), (60_000, 32), (60_001, 33)):
            monkeypatch.setattr(histories.time, "time", lambda later=later: (NOW_MS + later) / 1000)
            await redis.delete("asmg:features:u")  # it has expired
            assert await age(store) == expected

    async def test_a_reader_that_answered_before_a_change_does_not_fill(
        self, store: HistoryStore, redis: Redis, database: Database
    ) -> None:
        paused = PausedDatabase(database)
        slow = asyncio.create_task(HistoryStore(redis, paused).get("u"))  # type: ignore[arg-type]
        await paused.has_answered()
        await describe(database, "u", 31)
        await store.forget_features({"u"})
        paused.go.set()
        assert (await slow).features == {}
        assert await redis.exists("asmg:past:u", "asmg:features:u") == 0
        assert await age(store) == 31

    async def test_that_missed_a_change_are_dropped_when_redis_is_back(
        self, store: HistoryStore, cached: HistoryStore, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert [await age(store), await age(store, "v")] == [None, None]
        await describe(database, "u", 31)
        with monkeypatch.context() as patch:
            patch.setattr(Pipeline, "execute", fail_command)
            await store.forget_features({"u"})
        await describe(database, "v", 32)
        await store.forget_features({"v"})  # while it is not asked
        assert [await age(cached), await age(cached, "v")] == [None, None]  # what the changes missed

        monkeypatch.setattr(outage, "PAUSE_SECONDS", 0)
        await store.forget_features({"w"})
        assert [await age(store), await age(store, "v")] == [31, 32]

    async def test_of_many_users_at_once_are_told_of(self, store: HistoryStore, redis: Redis) -> None:
        users = [f"u{n}" for n in range(600)]  # more than one command takes
        await asyncio.gather(*(store.get(user) for user in users[::50]))
        async with asyncio.timeout(5), aclosing(Notices(redis).clicks()) as listener:
            assert await anext(listener) is None  # the subscription itself
            await store.forget_features(users)
            told = [await anext(listener) for _ in range(3)]
        assert [user for part in told for user in part or ()] == users
        assert await redis.keys("asmg:features:*") == []

    async def test_of_who_is_forgotten_are_nowhere(self, store: HistoryStore, database: Database, redis: Redis) -> None:
        for forget in (lambda: store.forget_user("u"), store.forget_all):
            await describe(database, "u", 31)
            assert await age(store) == 31
            await forget()
            assert await redis.keys() == []
