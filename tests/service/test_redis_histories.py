"""Histories in a real Redis are never stale, in any race."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from redis.asyncio import Redis

from service.storage.postgres.database import Database
from service.storage.postgres.repositories import Happened, Interaction
from service.storage.redis import histories, history_layout
from service.storage.redis.histories import HistoryStore, StoredPast
from service.storage.redis.notices import Notices
from tests.service.redis_support import START, PausedDatabase, commit, event, history


async def test_newest_first_and_no_longer_than_asked(
    store: HistoryStore, cached: HistoryStore, database: Database, redis: Redis
) -> None:
    await commit(database, *(event(n, label=n % 2) for n in range(80)))
    expected = [f"i{n}" for n in range(79, 19, -2)]
    assert await history(store, "u") == expected
    assert await history(cached, "u") == expected
    assert len(expected) == 30
    assert 0 < await redis.ttl("asmg:past:u") <= 3600


async def test_an_empty_history_is_cached_and_ends_with_the_first_positive(
    store: HistoryStore, cached: HistoryStore, database: Database
) -> None:
    assert await history(store, "u") == []
    assert await history(cached, "u") == []
    await commit(database, event(1))
    await store.append(Happened.of([event(1)]))
    assert await history(cached, "u") == ["i1"]


async def test_append_to_a_cached_history(store: HistoryStore, cached: HistoryStore, database: Database) -> None:
    await commit(database, *(event(n) for n in range(30)))
    await store.get("u")
    new = [event(100), event(101, label=0), event(102), event(103, seconds=28.5), event(104, seconds=-5)]
    await commit(database, *new)
    await store.append(Happened.of(new))
    await store.append(Happened.of(new))  # twice is once
    # by hand: 102 and 100 are newest, 103 is between 29 and 28, 104 is older than all that fit, 101 is no positive
    assert await history(cached, "u") == ["i102", "i100", "i29", "i103", *(f"i{n}" for n in range(28, 2, -1))]


async def test_a_member_begins_with_the_event_and_that_of_a_click_has_its_item(
    store: HistoryStore, redis: Redis
) -> None:
    assert await history(store, "u") == []
    assert await redis.zrange("asmg:past:u", 0, -1) == [b""]
    await store.append(Happened.of([event(1), event(2, label=0), event(3)]))
    assert await redis.zrange("asmg:past:u", 0, -1, withscores=True) == [
        (b"u-e1\0i1", 1714564801000),
        (b"u-e2", 1714564802000),
        (b"u-e3\0i3", 1714564803000),
    ]


async def test_what_is_recent_is_of_the_last_interactions_of_either_label(
    store: HistoryStore, cached: HistoryStore, database: Database
) -> None:
    """By hand; from Postgres, then from Redis, then with appended clicks, in any order."""
    assert await store.get("nobody") == StoredPast([], (0, 0, 0)) == await cached.get("nobody")
    await commit(database, event(1, label=0))
    assert await store.get("u") == StoredPast([], (1, 0, 0)) == await cached.get("u")  # no history, and yet a past

    async def happen(*events: Interaction) -> StoredPast:
        await commit(database, *events)
        await store.append(Happened.of(events))
        await store.append(Happened.of(events))  # twice is once
        found = await cached.get("u")
        async with database.read() as session:
            assert found == StoredPast.of(await session.past.recent("u"), 30)
        return found

    # 2…40: clicks on 4, 8, …, 40. Of 11…40 these are 12, 16, …, 40, and of 31…40 they are 32, 36, 40.
    found = await happen(*(event(n, label=int(n % 4 == 0)) for n in range(2, 41)))
    assert found == StoredPast([f"i{n}" for n in range(40, 0, -4)], (30, 3, 8))
    # What comes late, 10.5 and 30.5: before the thirty that count, and in the place of 11 among them.
    assert (await happen(event(101, seconds=10.5, label=0))).recent == (30, 3, 8)
    assert (await happen(event(102, seconds=30.5))).recent == (30, 3, 9)
    # Of one moment by event id: u-e201 < u-e202 < … push out 12 (a click), 13, … and 30.5 … 36 of the ten.
    found = await happen(*(event(n, seconds=50, label=int(n == 203)) for n in (203, 201, 202)))
    assert found.recent == (30, 2 + 1, 9)  # of the last ten: 203; 36, 40
    assert found.items[:3] == ["i203", "i40", "i36"]


async def test_a_click_takes_the_place_of_what_was_shown_whichever_comes_first(
    store: HistoryStore, cached: HistoryStore, redis: Redis
) -> None:
    passed, clicked = event(1, label=0), event(1)
    for first, second in (([passed], [clicked]), ([clicked], [passed])):
        await redis.flushdb()
        await store.get("u")
        for events in (first, second):
            await store.append(Happened.of(events, shown=events == [passed]))
        assert await cached.get("u") == StoredPast(["i1"], (1, 1, 1))


async def test_an_interaction_is_right_about_its_time_and_not_the_impression(store: HistoryStore, redis: Redis) -> None:
    shown, happened = event(1, label=0, seconds=1), event(1, label=0, seconds=2)
    for order in (1, -1):
        await redis.flushdb()
        await store.get("u")
        for events, is_shown in (([shown], True), ([happened], False))[::order]:
            await store.append(Happened.of(events, shown=is_shown))
        assert await redis.zrange("asmg:past:u", 0, -1, withscores=True) == [(b"u-e1", 1714564802000)]


async def test_a_set_is_cut_to_what_is_asked_for(
    store: HistoryStore, cached: HistoryStore, database: Database, redis: Redis
) -> None:
    """However active a user is, the set stays small, and nothing is lost that counts."""
    random = Random(5)
    await store.get("u")
    for step in range(40):
        # Long runs without a click, so that histories reach back far beyond what is recent; some of it comes late.
        events = [
            event(100 * step + n, label=int(random.random() < 0.1 * (step % 3 == 0)), seconds=random.gauss(step, 2))
            for n in range(12)
        ]
        await commit(database, *events)
        await store.append(Happened.of(events))
        assert await redis.zcard("asmg:past:u") <= history_layout.MOST_MEMBERS
        async with database.read() as session:
            assert await cached.get("u") == StoredPast.of(await session.past.recent("u"), 30)
    assert len((await cached.get("u")).items) > 10


async def test_what_is_cached_of_many_users_comes_in_one_command(
    store: HistoryStore, cached: HistoryStore, database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await commit(database, *(event(n) for n in range(80)), event(1, "ü 2"))
    for user in ("u", "nobody", "ü 2"):
        await store.get(user)
    await cached.cached(["u"])  # the script is known from here on
    sent: list[str] = []
    execute = Redis.execute_command

    async def noted(client: Redis, *arguments: Any, **options: Any) -> Any:
        sent.append(arguments[0])
        return await execute(client, *arguments, **options)

    monkeypatch.setattr(Redis, "execute_command", noted)
    found = await cached.cached(["nobody", "u", "not asked for", "ü 2", "u"])
    assert sent == ["EVALSHA"]
    newest = StoredPast([f"i{n}".encode() for n in range(79, 49, -1)], (30, 10, 30))
    assert found == [StoredPast([], (0, 0, 0)), newest, None, StoredPast([b"i1"], (1, 1, 1)), newest]
    assert await cached.cached([]) == []
    assert await redis.exists("asmg:past:not asked for", "asmg:past-lease:not asked for") == 0


async def test_what_is_cached_is_what_get_returns(
    store: HistoryStore, cached: HistoryStore, database: Database
) -> None:
    odd = ["a:b", "日本", "😀" * 256, "é", ":", "7"]
    events = [replace(event(n, "ü:1"), item_id=item, event_id=f"x\u2028:{n}") for n, item in enumerate(odd)]
    await commit(database, *events)
    expected = await history(store, "ü:1")
    assert expected == odd[::-1]
    [found] = await cached.cached(["ü:1"])
    assert found is not None
    assert [item.decode() for item in found.items if isinstance(item, bytes)] == expected


async def test_append_does_not_cache_what_was_not_cached(store: HistoryStore, redis: Redis) -> None:
    await store.append(Happened.of([event(1)]))
    assert await redis.dbsize() == 0


async def test_odd_ids_and_repeated_items(store: HistoryStore, cached: HistoryStore, database: Database) -> None:
    events = [
        Interaction(f"{n}:x", "ü:1", item, 1, START + timedelta(seconds=n))
        for n, item in enumerate(["1:2", "日本:", "日本:", "7"])
    ]
    await commit(database, *events)
    assert await history(store, "ü:1") == ["7", "日本:", "日本:", "1:2"]
    assert await history(cached, "ü:1") == ["7", "日本:", "日本:", "1:2"]


async def test_many_users_in_one_append(
    store: HistoryStore, cached: HistoryStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories, "EVENTS_OF_A_SCRIPT", 7)
    users = [f"u{n}" for n in range(50)]
    await store.get(users[0])  # the script is known from here on
    await asyncio.gather(*(store.get(user) for user in users))
    events = [event(n, user) for user in users for n in range(3)]
    await store.append(Happened.of(events))
    for user in users:
        assert await history(cached, user) == ["i2", "i1", "i0"]


async def test_a_reader_that_answered_before_a_commit_does_not_fill(
    store: HistoryStore, redis: Redis, database: Database
) -> None:
    await commit(database, event(1))
    paused = PausedDatabase(database)
    slow = asyncio.create_task(HistoryStore(redis, paused).get("u"))  # type: ignore[arg-type]
    await paused.has_answered()
    await commit(database, event(2))
    await store.append(Happened.of([event(2)]))  # nothing is cached, so this takes the lease away
    paused.go.set()
    assert (await slow).items == ["i1"]
    assert await redis.exists("asmg:past:u") == 0
    assert await history(store, "u") == ["i2", "i1"]


async def test_a_flush_between_lease_and_fill_leaves_nothing_stale(
    store: HistoryStore, redis: Redis, database: Database
) -> None:
    paused = PausedDatabase(database)
    slow = asyncio.create_task(HistoryStore(redis, paused).get("u"))  # type: ignore[arg-type]
    await paused.has_answered()
    await redis.flushdb()
    await commit(database, event(1))
    assert await history(store, "u") == ["i1"]
    paused.go.set()
    assert await slow == StoredPast([], (0, 0, 0))
    assert await history(store, "u") == ["i1"]


async def test_one_of_many_readers_fills_and_all_answer(store: HistoryStore, redis: Redis, database: Database) -> None:
    await commit(database, *(event(n) for n in range(5)))
    answers = await asyncio.gather(*(store.get("u") for _ in range(20)))
    assert answers == [StoredPast(["i4", "i3", "i2", "i1", "i0"], (5, 5, 5))] * 20
    assert await redis.exists("asmg:past:u", "asmg:past-lease:u") == 1


async def test_readers_writers_and_flushes_at_once_end_in_agreement(
    store: HistoryStore, cached: HistoryStore, redis: Redis, database: Database
) -> None:
    users = [f"u{n}" for n in range(6)]
    done = asyncio.Event()

    async def write(writer: int) -> None:
        random = Random(writer)
        for step in range(40):
            # Times collide across writers, so that the event ids decide as well.
            events = [
                event(
                    1000 * writer + 10 * step + n,
                    random.choice(users),
                    random.randrange(2),
                    float(random.randrange(30)),
                )
                for n in range(3)
            ]
            await commit(database, *events)
            await store.append(Happened.of(events))

    async def read(seed: int) -> None:
        random = Random(seed)
        while not done.is_set():
            await store.get(random.choice(users))

    async def forget() -> None:
        while not done.is_set():
            await asyncio.sleep(0.01)
            await redis.flushdb()

    others = [asyncio.create_task(task) for task in (read(1), read(2), read(3), forget())]
    await asyncio.gather(*(write(writer) for writer in range(3)))
    done.set()
    await asyncio.gather(*others)
    async with database.read() as session:
        truth = {user: StoredPast.of(await session.past.recent(user), 30) for user in users}
    assert sum(len(past.items) for past in truth.values()) > 100
    for user in users:
        assert await store.get(user) == truth[user]
        assert await cached.get(user) == truth[user]


async def test_who_did_something_is_told_with_the_append(store: HistoryStore, redis: Redis) -> None:
    async with asyncio.timeout(5), aclosing(Notices(redis).clicks()) as listener:
        assert await anext(listener) is None  # the subscription itself
        await store.append(Happened.of([event(1, "u"), event(2, "ü 2"), event(3, "u"), event(4, "v", label=0)]))
        assert await anext(listener) == ["u", "ü 2", "v"]
        await store.append(Happened.of([]))
        await store.append(Happened.of([event(6, "x")]))
        assert await anext(listener) == ["x"]
        await redis.client_kill_filter(_type="pubsub")
        assert await anext(listener) is None
