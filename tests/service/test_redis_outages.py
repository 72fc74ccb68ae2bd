"""Histories and notices while Redis is unavailable, and after it returns."""

import logging
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from service.storage.postgres.database import Database
from service.storage.postgres.repositories import Happened
from service.storage.redis import connection, missed_changes, outage
from service.storage.redis.connection import connect
from service.storage.redis.histories import HistoryStore
from service.storage.redis.notices import Notices
from tests.service.redis_support import commit, event, fail_command, history


@pytest.fixture
async def unreachable() -> AsyncIterator[Redis]:
    """A client of a Redis that is not there."""
    client = connect("unix:///nonexistent/redis.sock")
    yield client
    await client.aclose()


async def test_redis_away_costs_nothing_but_speed(
    unreachable: Redis, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    fallbacks = []
    store, notices = HistoryStore(unreachable, database, on_fallback=lambda: fallbacks.append(1)), Notices(unreachable)
    await commit(database, event(1))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert await history(store, "u") == ["i1"]
            assert await store.cached(["u", "v"]) == [None, None]
            await store.append(Happened.of([event(1)]))
    assert len(caplog.records) == 1
    await notices.publish_swap()
    await notices.publish_progress(1, {"stage": "score"})
    assert await notices.progress(1) is None
    read = len(fallbacks)
    await store.get("u")
    assert len(fallbacks) == read + 1 > 1


async def test_only_now_and_then_is_a_redis_that_is_away_asked(
    unreachable: Redis, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HistoryStore(unreachable, database)
    asked = 0

    async def refuse(*_: object, **__: object) -> None:
        nonlocal asked
        asked += 1
        raise RedisConnectionError("away")

    monkeypatch.setattr(unreachable, "evalsha", refuse)
    for _ in range(5):
        assert await store.cached(["u"]) == [None]
    assert asked == 1
    monkeypatch.setattr(outage, "PAUSE_SECONDS", 0)
    assert await store.cached(["u"]) == [None]
    assert asked == 2


async def test_histories_that_missed_an_append_are_dropped_when_redis_is_back(
    store: HistoryStore, cached: HistoryStore, database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await history(store, "u") == []

    await commit(database, event(1))
    with monkeypatch.context() as patch:
        patch.setattr(redis, "evalsha", fail_command)
        await store.append(Happened.of([event(1)]))
    assert await history(cached, "u") == []  # what the append missed

    monkeypatch.setattr(outage, "PAUSE_SECONDS", 0)
    await commit(database, event(2, "v"))
    await store.append(Happened.of([event(2, "v")]))
    assert await history(store, "u") == ["i1"]


async def test_an_outage_of_more_clicks_than_can_be_noted_drops_all_histories(
    store: HistoryStore, cached: HistoryStore, database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notes are bounded, and still no user gets a history that lacks a click."""
    monkeypatch.setattr(missed_changes, "MOST_USERS", 3)
    monkeypatch.setattr(connection, "KEYS_OF_A_PAGE", 2)
    users = [f"u{number}" for number in range(9)]
    for user in users:
        assert await history(store, user) == []
    await redis.set("asmg:past-lease:slow", "token")
    await redis.set("asmg:artifact:other", "stays")
    clicks = [event(1, user) for user in users]
    await commit(database, *clicks)

    with monkeypatch.context() as patch:
        patch.setattr(redis, "evalsha", fail_command)
        for click in clicks:
            await store.append(Happened.of([click]))
            assert len(store.missed) <= 3
    assert await history(cached, "u0") == []  # what the append missed

    monkeypatch.setattr(outage, "PAUSE_SECONDS", 0)
    await commit(database, event(2, "v"))
    with monkeypatch.context() as patch:  # it goes away again in the middle
        patch.setattr(redis, "unlink", fail_command)
        await store.append(Happened.of([event(2, "v")]))
    assert len(await redis.keys("asmg:past*")) == 10
    await store.append(Happened.of([event(2, "v")]))
    assert await redis.keys() == [b"asmg:artifact:other"]
    for user in users:
        assert await history(store, user) == ["i1"]
    await store.append(Happened.of([event(3, "v")]))
    assert len(await redis.keys("asmg:past:*")) == 9  # once
