"""The history cache of a process: one round trip for many, bounded age, and the process's own clicks at once."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from redis.asyncio import Redis

from service.errors import NotReady
from service.serving.id_hashes import hash_ids
from service.storage.postgres.database import Database
from service.storage.postgres.repositories import EventBatch
from service.storage.redis.connection import connect
from service.storage.redis.histories import HistoryStore, StoredPast
from service.storage.redis.notices import Notices
from service.tasks import end_tasks
from service.use_cases import histories as module
from service.use_cases.histories import Histories, UserPast
from service.use_cases.ingest import ingest
from tests.service.api_support import eventually
from tests.service.redis_support import NoDatabase, PausedDatabase, commit, event


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


class Counting:
    """A store that counts its calls, and stands still or fails where a test wants it to."""

    def __init__(self, store: HistoryStore) -> None:
        self.store = store
        self.trips: list[list[str]] = []
        self.reads: list[str] = []
        self.error: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()

    async def cached(self, user_ids: Sequence[str]) -> list[StoredPast | None]:
        self.trips.append(list(user_ids))
        found = await self.store.cached(user_ids)
        await self.go.wait()
        return found

    async def get(self, user_id: str) -> StoredPast:
        self.reads.append(user_id)
        if self.error is not None:
            raise self.error
        found = await self.store.get(user_id)
        await self.go.wait()
        return found

    async def append(self, clicks: object) -> None:
        await self.store.append(clicks)  # type: ignore[arg-type]


@pytest.fixture
def store(redis: Redis, database: Database) -> Counting:
    return Counting(HistoryStore(redis, database))


@pytest.fixture
def histories(store: Counting) -> Histories:
    return remembering(store)


# On a host that stands still for a second, a read that is late would count as a failure of Postgres, which is not asked
# for a while then; whoever tests the deadline sets one.
NO_HURRY = 30.0


def remembering(
    store: Counting | HistoryStore, seconds: float = 5.0, *, deadline_seconds: float = NO_HURRY
) -> Histories:
    return Histories(store, seconds=seconds, deadline_seconds=deadline_seconds)  # type: ignore[arg-type]


def same(past: UserPast | None, *items: str) -> bool:
    """The history is of these items; all that is ingested here are clicks, fewer than are counted or all of them."""
    if past is None or past.history.tolist() != hash_ids(items).tolist():
        return False
    return past.recent.tolist() == [len(items), min(10, len(items)), len(items)]


class TestRemembered:
    async def test_for_its_time_and_not_longer(
        self, histories: Histories, store: Counting, database: Database, clock: Clock
    ) -> None:
        await commit(database, event(1), event(2))
        assert histories.known("u") is None
        assert same(await histories.get("u"), "i2", "i1")
        clock.now += 4.999
        known = histories.known("u")
        assert known is not None and same(known, "i2", "i1")
        assert same(await histories.get("u"), "i2", "i1")
        assert len(store.trips) == 1
        clock.now += 0.001
        assert histories.known("u") is None
        await histories.get("u")
        assert len(store.trips) == 2
        clock.now += 4.999  # from the second time on, not from the first
        assert histories.known("u") is not None

    async def test_another_process_counts_after_that_time_without_a_notice(
        self, histories: Histories, redis: Redis, database: Database, clock: Clock
    ) -> None:
        other = remembering(HistoryStore(redis, database))
        assert same(await histories.get("u"))
        await ingest(database, other, EventBatch.of([event(1)]))
        assert same(await other.get("u"), "i1")
        assert same(await histories.get("u"))
        clock.now += 5
        assert same(await histories.get("u"), "i1")

    async def test_not_at_all(self, store: Counting, database: Database) -> None:
        histories = remembering(store, 0)
        await commit(database, event(1))
        for number in (1, 2, 3):
            assert same(await histories.get("u"), "i1")
            assert histories.known("u") is None
            assert len(store.trips) == number

    async def test_an_empty_history_too(self, histories: Histories, store: Counting) -> None:
        for _ in range(3):
            assert same(await histories.get("u"))
        assert (len(store.trips), len(store.reads)) == (1, 1)

    async def test_of_so_many_users(
        self, histories: Histories, store: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_USERS", 10)
        await histories.get("first")
        for n in range(9):
            await histories.get(f"u{n}")
        assert histories.known("first") is not None
        for n in range(9, 40):
            await histories.get(f"u{n}")
            assert sum(histories.known(user) is not None for user in ["first", *(f"u{n}" for n in range(40))]) == 10
        # Those remembered last are remembered still.
        assert [n for n in range(40) if histories.known(f"u{n}") is not None] == list(range(30, 40))

    async def test_who_comes_again_is_remembered_anew(
        self, histories: Histories, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_USERS", 3)
        for user in ("a", "b", "c"):
            await histories.get(user)
            clock.now += 2
        await histories.get("a")  # it was remembered for 6 seconds, one too many
        assert [histories.known(user) is not None for user in "abc"] == [True, True, True]
        await histories.get("d")
        assert [histories.known(user) is not None for user in "abcd"] == [True, False, True, True]

    async def test_no_more_than_a_model_reads(self, redis: Redis, database: Database) -> None:
        await commit(database, *(event(n) for n in range(80)))
        histories = remembering(HistoryStore(redis, database, length=60))
        assert same(await histories.get("u"), *(f"i{n}" for n in range(79, 49, -1)))
        histories = remembering(HistoryStore(redis, NoDatabase()))  # type: ignore[arg-type]
        assert same(await histories.get("u"), *(f"i{n}" for n in range(79, 49, -1)))

    async def test_odd_ids(self, histories: Histories, redis: Redis, database: Database) -> None:
        events = [replace(event(n, "ü 1"), item_id=item) for n, item in enumerate(["日本", "😀" * 256, "a:b", "é"])]
        await commit(database, *events)
        expected = ("é", "a:b", "😀" * 256, "日本")
        assert same(await histories.get("ü 1"), *expected)  # from Postgres, as text
        again = remembering(HistoryStore(redis, NoDatabase()))  # type: ignore[arg-type]
        assert same(await again.get("ü 1"), *expected)  # from Redis, as UTF-8


class TestRoundTrips:
    async def test_many_at_once_cost_two(self, histories: Histories, store: Counting, database: Database) -> None:
        """One for the first request, and one for all requests that came while it was under way."""
        users = [f"u{n}" for n in range(100)]
        await commit(database, *(event(1, user) for user in users))
        for user in users:  # one after the other: Redis has half a second for each, also on a busy host
            await HistoryStore.get(store.store, user)
        store.go.clear()
        first = asyncio.create_task(histories.get(users[0]))
        await eventually(lambda: bool(store.trips))
        others = [asyncio.create_task(histories.get(user)) for user in users for _ in range(3)]
        await asyncio.sleep(0.01)
        assert store.trips == [users[:1]]
        store.go.set()
        for history in await asyncio.gather(first, *others):
            assert same(history, "i1")
        assert store.trips == [users[:1], users[1:]]
        assert store.reads == []

    async def test_in_trips_of_a_bounded_size(
        self, histories: Histories, store: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_USERS_PER_TRIP", 7)
        users = [f"u{n}" for n in range(16)]
        await histories.get_many(users)
        assert store.trips == [users[:7], users[7:14], users[14:]]

    async def test_a_batch_costs_one(self, histories: Histories, store: Counting, database: Database) -> None:
        users = [f"u{n}" for n in range(256)]
        await commit(database, *(event(n, f"u{n}") for n in range(0, 256, 2)))
        found = await histories.get_many([*users, "u0", "u2"])
        assert [same(history, f"i{n}") for n, history in enumerate(found[:256])] == [n % 2 == 0 for n in range(256)]
        assert same(found[256], "i0") and same(found[257], "i2")
        assert store.trips == [users]
        assert sorted(store.reads) == sorted(users)  # nothing was in Redis yet
        assert [history is found[n] for n, history in enumerate(await histories.get_many(users))] == [True] * 256
        assert len(store.trips) == 1
        assert await histories.get_many([]) == []

    async def test_one_slow_user_keeps_nobody_else(
        self, histories: Histories, store: Counting, database: Database
    ) -> None:
        """Users in Redis are answered while another one is looked up in Postgres."""
        await commit(database, event(1, "quick"))
        await store.store.get("quick")
        paused = PausedDatabase(database)
        store.store._database = paused  # type: ignore[assignment]
        slow = asyncio.create_task(histories.get("slow"))
        await paused.has_answered()
        assert same(await histories.get("quick"), "i1")
        assert not slow.done()
        paused.go.set()
        assert same(await slow)

    async def test_postgres_is_asked_about_a_few_at_a_time(
        self, histories: Histories, store: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asking, most = 0, 0

        async def get(user_id: str) -> StoredPast:
            nonlocal asking, most
            asking += 1
            most = max(most, asking)
            await asyncio.sleep(0.001)
            asking -= 1
            return StoredPast([user_id], (1, 1, 1))

        monkeypatch.setattr(store, "get", get)
        users = [f"u{n}" for n in range(50)]
        found = await histories.get_many(users)
        assert all(same(history, user) for history, user in zip(found, users, strict=True))
        assert most == module.READERS


class TestClicks:
    async def test_of_this_process_count_at_once(self, histories: Histories, database: Database) -> None:
        for number in range(1, 5):
            await ingest(database, histories, EventBatch.of([event(number)]))
            assert same(await histories.get("u"), *(f"i{n}" for n in range(number, 0, -1)))
        await ingest(database, histories, EventBatch.of([event(5, label=0)]))  # which is no click, and counts too
        past = await histories.get("u")
        assert past is not None
        assert (len(past.history), past.recent.tolist(), past.recent.dtype) == (4, [5, 4, 4], np.int32)

    async def test_only_what_they_change_is_forgotten(
        self, histories: Histories, store: Counting, database: Database
    ) -> None:
        await histories.get_many(["u", "v", "w"])
        await ingest(database, histories, EventBatch.of([event(1, "u"), event(2, "v", label=0)]))
        assert histories.known("u") is None
        assert histories.known("v") is None
        assert histories.known("w") is not None

    async def test_during_a_round_trip_to_redis(
        self, histories: Histories, store: Counting, database: Database
    ) -> None:
        """The answer to the round trip was on its way; requests after the click get a newer one."""
        await commit(database, event(1))
        await store.store.get("u")  # so that Redis has it
        store.go.clear()
        before = asyncio.create_task(histories.get("u"))
        await eventually(lambda: bool(store.trips))
        await ingest(database, histories, EventBatch.of([event(2)]))
        after = asyncio.create_task(histories.get("u"))
        await asyncio.sleep(0.01)
        store.go.set()
        assert same(await after, "i2", "i1")
        assert same(await before, "i1")
        assert same(await histories.get("u"), "i2", "i1")

    async def test_during_a_read_of_postgres(self, histories: Histories, store: Counting, database: Database) -> None:
        await commit(database, event(1))
        paused = PausedDatabase(database)
        store.store._database = paused  # type: ignore[assignment]
        before = asyncio.create_task(histories.get("u"))
        await paused.has_answered()  # Postgres has answered without the click
        store.store._database = database
        await ingest(database, histories, EventBatch.of([event(2)]))
        assert same(await histories.get("u"), "i2", "i1")
        paused.go.set()
        assert same(await before, "i1")
        assert same(await histories.get("u"), "i2", "i1")  # the late answer is not remembered


@pytest.fixture
async def listening(redis: Redis, database: Database) -> AsyncIterator[Histories]:
    """Of another process than the test's, which hears of the clicks of all."""
    histories = Histories(
        HistoryStore(redis, database), seconds=3600, clicks=Notices(redis).clicks, deadline_seconds=NO_HURRY
    )
    await histories.get("first")
    listener = asyncio.create_task(histories.listen())
    await eventually(lambda: histories.known("first") is None)  # the subscription; before it some may have been missed
    yield histories
    await end_tasks(listener)
    await histories.close()


class TestNotices:
    async def test_what_another_process_takes_in_counts_a_moment_later(
        self, listening: Histories, histories: Histories, database: Database
    ) -> None:
        for user in ("u", "ü\n1", "v", "w"):
            assert same(await listening.get(user))
        await ingest(database, histories, EventBatch.of([event(1, "u"), event(2, "ü\n1"), event(3, "v", label=0)]))
        await eventually(lambda: all(listening.known(user) is None for user in ("u", "ü\n1", "v")))
        assert listening.known("w") is not None
        assert same(await listening.get("u"), "i1")
        assert same(await listening.get("ü\n1"), "i2")

    async def test_many_at_once(self, listening: Histories, histories: Histories, database: Database) -> None:
        users = [f"u{n}" for n in range(1200)]  # more than one script takes
        await listening.get_many(users[::100])
        await ingest(database, histories, EventBatch.of([event(1, user) for user in users]))
        await eventually(lambda: all(listening.known(user) is None for user in users))

    async def test_what_was_asked_before_the_notice_is_not_remembered(
        self, listening: Histories, histories: Histories, database: Database
    ) -> None:
        await listening.get("v")
        paused = PausedDatabase(database)
        listening._store._database = paused  # type: ignore[assignment]
        before = asyncio.create_task(listening.get("u"))
        await paused.has_answered()
        await ingest(database, histories, EventBatch.of([event(1), event(2, "v")]))
        await eventually(lambda: listening.known("v") is None)
        paused.go.set()
        assert same(await before)
        assert same(await listening.get("u"), "i1")

    async def test_after_a_lost_connection_nothing_is_believed(self, listening: Histories, redis: Redis) -> None:
        await listening.get("u")
        assert listening.known("u") is not None
        await redis.client_kill_filter(_type="pubsub")
        await eventually(lambda: listening.known("u") is None)

    async def test_nor_is_what_was_asked_before(self, listening: Histories, redis: Redis, database: Database) -> None:
        await listening.get("v")
        paused = PausedDatabase(database)
        listening._store._database = paused  # type: ignore[assignment]
        before = asyncio.create_task(listening.get("u"))
        await paused.has_answered()
        await redis.client_kill_filter(_type="pubsub")
        await eventually(lambda: listening.known("v") is None)
        paused.go.set()
        assert same(await before)
        assert listening.known("u") is None

    async def test_noise_on_the_channel_is_survived(
        self, listening: Histories, histories: Histories, redis: Redis, database: Database
    ) -> None:
        for message in (b"\xff\xfe", b"", b"\0\0"):
            await redis.publish("asmg:clicks", message)
        await listening.get("u")
        await ingest(database, histories, EventBatch.of([event(1)]))
        await eventually(lambda: listening.known("u") is None, seconds=3)


class TestFailures:
    async def test_reach_all_who_wait_and_are_not_remembered(
        self, histories: Histories, store: Counting, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.use_cases.histories.PAUSE_SECONDS", 0.0)
        store.error = NotReady("away")
        waiting = [histories.get("u"), histories.get("u"), histories.get_many(["v", "u"]), histories.get("v")]
        assert await asyncio.gather(*waiting) == [None, None, [None, None], None]
        assert sorted(store.reads) == ["u", "v"]
        store.error = None
        await commit(database, event(1))
        assert same(await histories.get("u"), "i1")
        assert [same(history) for history in await histories.get_many(["v", "u"])] == [True, False]

    async def test_of_one_user_are_not_those_of_another(self, histories: Histories, store: Counting) -> None:
        await store.store.get("kept")
        store.error = NotReady("away")
        kept, lost = await asyncio.gather(histories.get("kept"), histories.get("lost"))
        assert lost is None
        assert isinstance(kept, UserPast)

    async def test_are_followed_by_a_pause(
        self, histories: Histories, store: Counting, database: Database, clock: Clock
    ) -> None:
        """Predictions during an outage do not query one after another; what Redis has is still used."""
        await commit(database, event(1))
        await store.store.get("u")
        store.error = NotReady("away")
        assert await histories.get("v") is None
        assert (await histories.get_many(["v", "w"])) == [None, None]
        assert same(await histories.get("u"), "i1")
        assert store.reads == ["v"]
        store.error = None
        clock.now += module.PAUSE_SECONDS
        assert same(await histories.get("v"))

    async def test_who_waits_too_long_goes_without(self, store: Counting) -> None:
        histories = remembering(store, deadline_seconds=0.05)
        store.go.clear()
        started = time.monotonic()
        assert await histories.get_many(["u", "v"]) == [None, None]
        assert time.monotonic() - started < 1
        assert histories.known("u") is None
        store.go.set()
        await eventually(lambda: histories.known("u") is not None)  # nobody waited for it, but it came

    async def test_a_database_that_hangs_is_given_up(
        self, store: Counting, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "PAUSE_SECONDS", NO_HURRY)
        histories = remembering(store, deadline_seconds=0.2)
        paused = PausedDatabase(database)
        store.store._database = paused  # type: ignore[assignment]
        assert await histories.get("u") is None
        assert await histories.get_many([f"v{n}" for n in range(100)]) == [None] * 100
        assert store.reads == ["u"]  # nobody else waited for the database
        paused.go.set()
        await eventually(lambda: histories.known("u") is not None)

    async def test_that_nobody_expects_reach_who_waits_too(
        self, store: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An error 500 is better than a request that never ends."""
        histories = remembering(store)

        async def broken(_: object) -> list[list[bytes] | None]:
            raise RuntimeError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(store, "cached", broken)
            async with asyncio.timeout(1):
                with pytest.raises(RuntimeError, match="a bug"):
                    await histories.get("u")
        assert same(await histories.get("u"))

    async def test_without_redis_postgres_answers(self, database: Database) -> None:
        away = connect("unix:///nonexistent/redis.sock")
        fallbacks: list[int] = []
        histories = remembering(HistoryStore(away, database, on_fallback=lambda: fallbacks.append(1)))
        await commit(database, event(1))
        assert [same(history, "i1") for history in await histories.get_many(["u", "v"])] == [True, False]
        assert len(fallbacks) == 2
        await ingest(database, histories, EventBatch.of([event(2)]))
        assert same(await histories.get("u"), "i2", "i1")
        await away.aclose()

    async def test_who_gives_up_leaves_the_others_alone(
        self, histories: Histories, store: Counting, database: Database
    ) -> None:
        await commit(database, event(1))
        store.go.clear()
        waiting = [asyncio.create_task(histories.get("u")) for _ in range(3)]
        waiting.append(asyncio.create_task(histories.get_many(["u", "v"])))  # type: ignore[arg-type]
        waiting.append(asyncio.create_task(histories.get_many(["v", "u"])))  # type: ignore[arg-type]
        await eventually(lambda: bool(store.trips))
        for number in (0, 3):
            waiting[number].cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting[number]
        store.go.set()
        assert same(await waiting[1], "i1") and same(await waiting[2], "i1")
        assert [same(history, "i1") for history in await waiting[4]] == [False, True]
        assert store.reads.count("u") == 1

    async def test_nothing_is_said_of_an_error_that_nobody_waits_for(
        self, histories: Histories, store: Counting, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        store.go.clear()
        waiting = asyncio.create_task(histories.get("u"))
        await eventually(lambda: bool(store.trips))
        store.error = NotReady("away")
        waiting.cancel()
        await asyncio.wait([waiting])
        store.go.set()
        await eventually(lambda: store.reads == ["u"])
        await asyncio.sleep(0.01)
        gc.collect()  # asyncio tells of an error that nobody retrieved when its future is garbage
        assert caplog.records == []
        store.error = None
        clock.now += module.PAUSE_SECONDS
        assert same(await histories.get("u"))

    async def test_close_ends_what_is_under_way(self, histories: Histories, store: Counting) -> None:
        store.go.clear()
        waiting = asyncio.create_task(histories.get("u"))
        await eventually(lambda: bool(store.trips))
        await histories.close()
        store.go.set()
        await asyncio.sleep(0.01)
        assert (histories.known("u"), store.reads) == (None, [])
        waiting.cancel()
        await asyncio.wait([waiting])
