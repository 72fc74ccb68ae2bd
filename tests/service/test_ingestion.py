"""Calls that store events at the same time, and the connections that they use."""

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import event as event_hook
from sqlalchemy import text

from service.errors import NotReady
from service.limits import MAX_INTERACTIONS
from service.storage.postgres import event_writer
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.engine import SESSION
from service.storage.postgres.event_writer import BATCHES_TO_LOOK, EventWriter
from service.storage.postgres.events import EventBatch, Happened, Interaction
from service.storage.postgres.repositories import Inserted, Raced
from service.storage.redis.notices import Notices
from service.use_cases import ingest as ingest_module
from service.use_cases.close_period import close_period as close
from service.use_cases.ingest import Ingestion, IngestResult, ingest
from service.use_cases.status import list_periods
from service.use_cases.watch import watch_period

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def event(event_id: str, item_id: str = "i", label: int = 1) -> Interaction:
    return Interaction(event_id, "u", item_id, label, NOON)


def batch(*events: Interaction) -> EventBatch:
    return EventBatch.of(events)


class Seen:
    def __init__(self) -> None:
        self.event_ids: list[str] = []

    async def append(self, happened: Happened, /) -> None:
        for _, told in happened.parts(100, 1e15):
            self.event_ids += told.decode().split("\0")[2::5]


async def test_calls_with_the_same_events_at_once_store_them_once(database: Database) -> None:
    seen = Seen()
    batches = [
        EventBatch.of([Interaction(f"e{n}", "u", "i", 1, NOON) for n in range(start, start + 40)])
        for start in (0, 10, 20, 0, 0, 30)
    ]
    results = await asyncio.gather(*(ingest(database, seen, batch) for batch in batches))
    assert sum(result.accepted for result in results) == 70
    assert sum(result.duplicates for result in results) == 6 * 40 - 70
    assert all(not result.conflicts for result in results)
    assert sorted(seen.event_ids) == sorted(f"e{n}" for n in range(70))
    async with database.read() as session:
        assert await session.interactions.count(1) == 70


async def test_a_call_that_loses_every_race_is_refused(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lose(*_: object) -> None:
        raise Raced

    monkeypatch.setattr(EventWriter, "insert", lose)
    with pytest.raises(NotReady, match="the same ids"):
        await ingest(database, Seen(), EventBatch.of([Interaction("e", "u", "i", 1, NOON)]))
    assert ingest_module.MOST_RACES > 1


async def test_an_id_may_hold_the_separator_of_the_query(database: Database) -> None:
    odd = [Interaction(f"a\x1fb{n}", "u", "i", 0, NOON) for n in range(3)] + [Interaction("a", "u", "i", 0, NOON)]
    first = await ingest(database, Seen(), EventBatch.of(odd))
    again = await ingest(database, Seen(), EventBatch.of([*odd, Interaction("b0", "u", "i", 0, NOON)]))
    assert (first.accepted, again.accepted, again.duplicates) == (4, 1, 4)


@pytest.fixture
def inserts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many events each transaction was given."""
    sizes: list[int] = []
    insert = EventWriter.insert

    async def counted(self: EventWriter, events: EventBatch) -> tuple[int, Inserted]:
        sizes.append(len(events))
        return await insert(self, events)

    monkeypatch.setattr(EventWriter, "insert", counted)
    return sizes


async def close_period(database: Database, number: int) -> None:
    async with database.unit_of_work() as work:
        await work.lock_exclusive(Lock.LOG)
        await work.periods.seal(number, 0)
        await work.periods.create(number + 1)
        await work.commit()


async def store_behind(database: Database, ingestion: Ingestion, batches: list[EventBatch]) -> list[IngestResult]:
    """What becomes of batches that come while one is being stored."""
    async with database.unit_of_work() as other:
        await other.lock_exclusive(Lock.LOG)
        first = asyncio.create_task(ingestion.ingest(batch(event("first"))))
        await asyncio.sleep(0.05)
        tasks = [asyncio.create_task(ingestion.ingest(events)) for events in batches]
        await asyncio.sleep(0.05)
    assert await first == IngestResult(1, 0, [], 1)
    return await asyncio.gather(*tasks)


class TestTogether:
    async def test_each_call_is_told_what_became_of_its_events(self, database: Database, inserts: list[int]) -> None:
        seen = Seen()
        ingestion = Ingestion(database, seen)
        await ingestion.ingest(batch(event("old")))
        waiting = [
            batch(event("a"), event("b", label=0)),
            batch(event("b", label=0), event("c"), event("c")),
            batch(event("a", item_id="other"), event("old", item_id="other"), event("d")),
            batch(event("old")),
            batch(event("e")),
        ]
        assert await store_behind(database, ingestion, waiting) == [
            IngestResult(2, 0, [], 1),
            IngestResult(1, 2, [], 1),
            IngestResult(1, 0, ["a", "old"], 1),
            IngestResult(0, 1, [], 1),
            IngestResult(1, 0, [], 1),
        ]
        assert inserts == [1, 1, 10, 10]  # nobody had looked for the old one
        await ingestion.settle()
        assert sorted(seen.event_ids) == ["a", "b", "c", "d", "e", "first", "old"]
        async with database.read() as session:
            assert await session.interactions.count(1) == 7

    async def test_no_more_than_a_call_may_have(self, database: Database, inserts: list[int]) -> None:
        ingestion, half = Ingestion(database, Seen()), ingest_module.MOST_EVENTS // 2
        calls = [batch(*(event(f"{n}-{m}", label=0) for m in range(half))) for n in range(3)]
        calls += [batch(*(event(f"most-{m}", label=0) for m in range(MAX_INTERACTIONS))), batch(event("last"))]
        results = await store_behind(database, ingestion, calls)
        await ingestion.settle()
        assert [result.accepted for result in results] == [len(call) for call in calls]
        assert sorted(inserts[1:]) == [1, half, 2 * half, MAX_INTERACTIONS]

    async def test_a_call_that_nobody_waits_for_any_more_harms_no_other(self, database: Database) -> None:
        ingestion = Ingestion(database, Seen())
        calls = [asyncio.create_task(ingestion.ingest(batch(event(f"e{n}")))) for n in range(20)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
        assert results[1::2] == [IngestResult(1, 0, [], 1)] * 10
        await ingestion.settle()

    async def test_all_are_refused_where_postgres_ends_the_connection(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ingest_module, "LANES", 1)
        seen = Seen()
        ingestion = Ingestion(database, seen)
        await ingestion.ingest(batch(event("before")))
        async with database.unit_of_work() as other:
            await other.lock_exclusive(Lock.LOG)
            calls = [asyncio.create_task(ingestion.ingest(batch(event("e0"))))]
            # Of pg_stat_activity a transaction sees what was there when it looked first.
            waiting = text(
                "SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = database "
                "WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
            )
            for _ in range(1000):
                if (pid := await other.connection.scalar(waiting)) is not None:
                    break
                await asyncio.sleep(0.02)
            calls += [asyncio.create_task(ingestion.ingest(batch(event(f"e{n}")))) for n in (1, 2)]
            assert await other.connection.scalar(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(results[0], NotReady)
        assert results[1:] == [IngestResult(1, 0, [], 1)] * 2  # on another connection
        assert await ingestion.ingest(batch(event("e0"), event("e1"))) == IngestResult(1, 1, [], 1)
        await ingestion.settle()
        assert sorted(seen.event_ids) == ["before", "e0", "e1", "e2"]

    async def test_a_bug_in_telling_of_clicks_reaches_who_waits(self, database: Database) -> None:
        class Broken:
            async def append(self, happened: Happened, /) -> None:
                raise ZeroDivisionError

        ingestion = Ingestion(database, Broken())
        with pytest.raises(ZeroDivisionError):
            await ingestion.ingest(batch(event("e")))
        await ingestion.settle()

    async def test_nor_does_a_bug_before_anything_is_stored(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The waiting calls get an error, and later calls are stored; otherwise as many bugs as lanes would stop
        everything.
        """

        def broken(*_: object) -> EventBatch:
            raise ZeroDivisionError

        ingestion = Ingestion(database, Seen())
        with monkeypatch.context() as patch:
            patch.setattr(EventBatch, "join", broken)
            for n in range(ingest_module.LANES + 1):
                with pytest.raises(ZeroDivisionError):
                    async with asyncio.timeout(10):
                        await ingestion.ingest(batch(event(f"e{n}")))
        assert await ingestion.ingest(batch(event("e0"))) == IngestResult(1, 0, [], 1)
        await ingestion.settle()

    async def test_the_end_leaves_nobody_waiting(self, database: Database) -> None:
        ingestion = Ingestion(database, Seen())
        async with database.unit_of_work() as other:
            await other.lock_exclusive(Lock.LOG)
            calls = [asyncio.create_task(ingestion.ingest(batch(event(f"e{n}")))) for n in range(10)]
            await asyncio.sleep(0.1)
            await ingestion.close()
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        async with database.read() as session:
            assert await session.interactions.count(1) == 0


def what_became(stored: tuple[int, Inserted]) -> tuple[int, list[int], list[int]]:
    period, inserted = stored
    return period, *inserted


class TestDuplicateDetector:
    async def test_the_open_log_is_looked_into_while_clients_send_again(
        self, database: Database, inserts: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[set[int]] = []
        known_ids = event_writer.known_ids

        async def noted(driver: Any, ids: list[str], periods: frozenset[int]) -> Any:
            asked.append(set(periods))
            return await known_ids(driver, ids, periods)

        monkeypatch.setattr(event_writer, "known_ids", noted)
        ingestion, numbers = Ingestion(database, Seen()), count()

        async def store(*again: Interaction) -> tuple[int, int, int]:
            """Duplicates, transactions and look-ups into the open log."""
            before = len(inserts)
            asked.clear()
            result = await ingestion.ingest(batch(event(f"new{next(numbers)}"), *again))
            assert result.accepted == 1 and not result.conflicts
            return result.duplicates, len(inserts) - before, asked.count({1})

        assert [await store() for _ in range(3)] == [(0, 1, 0)] * 3
        assert await store(event("new0"), event("new1")) == (2, 2, 1)
        assert [await store(event("new0")) for _ in range(3)] == [(1, 1, 1)] * 3
        assert [await store() for _ in range(BATCHES_TO_LOOK)] == [(0, 1, 1)] * BATCHES_TO_LOOK
        assert [await store() for _ in range(3)] == [(0, 1, 0)] * 3
        assert await store(event("new0")) == (1, 2, 1)
        await ingestion.settle()

    async def test_other_content_is_found_also_where_nobody_looked(self, database: Database) -> None:
        first = await ingest(database, Seen(), batch(event("a"), event("b")))
        again = await ingest(database, Seen(), batch(event("b", item_id="other"), event("c")))
        assert (first, again) == (IngestResult(2, 0, [], 1), IngestResult(1, 0, ["b"], 1))


class Hold:
    """Stops writers between their COPY and their commit."""

    def __init__(self) -> None:
        self.copied, self.go_on = asyncio.Event(), asyncio.Event()


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Hold:
    held, insert_events = Hold(), event_writer.insert_events

    async def insert(*arguments: Any) -> tuple[int, Inserted]:
        inserted = await insert_events(*arguments)
        held.copied.set()
        await held.go_on.wait()
        return inserted

    monkeypatch.setattr(event_writer, "insert_events", insert)
    return held


class TestWriters:
    async def test_are_used_again(self, database: Database) -> None:
        async with database.log.acquire() as first:
            await first.insert(batch(event("a")))
        async with database.log.acquire() as second, database.log.acquire() as third:
            assert second is first and third is not first

    async def test_not_where_postgres_has_ended_them(self, database: Database) -> None:
        async with database.log.acquire() as first:
            await first.insert(batch(event("a")))
        async with database.unit_of_work() as work:
            others = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            await work.connection.execute(text(others))
        for _ in range(100):
            if first.closed:
                break
            await asyncio.sleep(0.02)
        async with database.log.acquire() as second:
            assert second is not first
            assert what_became(await second.insert(batch(event("b")))) == (1, [0], [])

    async def test_nor_where_they_are_old(self, postgres_dsn: str) -> None:
        database = Database(postgres_dsn, connection_seconds=0.05)
        async with database.log.acquire() as first:
            await asyncio.sleep(0.06)
        async with database.log.acquire() as second:
            assert second is not first and first.closed
        await database.close()

    async def test_nor_after_an_error_which_frees_the_lock(self, database: Database) -> None:
        with pytest.raises(ZeroDivisionError):
            async with database.log.acquire() as first:
                await first.insert(batch(event("a")))
                raise ZeroDivisionError
        assert first.closed
        async with database.unit_of_work() as work, asyncio.timeout(5):
            await work.lock_exclusive(Lock.LOG)
        async with database.read() as session:
            assert await session.interactions.count(1) == 1  # it was stored before

    async def test_hold_a_close_up_until_their_commit(self, database: Database, hold: Hold) -> None:
        writing = asyncio.create_task(ingest(database, Seen(), batch(event("a"))))
        await hold.copied.wait()
        closing = asyncio.create_task(close_period(database, 1))
        await asyncio.sleep(0.2)
        assert not closing.done()
        hold.go_on.set()
        assert (await writing).period == 1
        await asyncio.wait_for(closing, 5)
        async with database.log.acquire() as writer:
            assert what_became(await writer.insert(batch(event("a"), event("b")))) == (2, [1], [])

    async def test_one_that_waits_for_a_close_stores_in_the_next_period(self, database: Database) -> None:
        async with database.log.acquire() as writer:
            await writer.insert(batch(event("a")))
        async with database.unit_of_work() as work:
            await work.lock_exclusive(Lock.LOG)
            waiting = asyncio.create_task(ingest(database, Seen(), batch(event("a"), event("b"))))
            await asyncio.sleep(0.1)
            await work.periods.seal(1, 0)
            await work.periods.create(2)
            await work.commit()
        assert await waiting == IngestResult(1, 1, [], 2)

    async def test_notice_that_logs_are_merged_and_dropped(self, database: Database) -> None:
        for period in range(1, 5):
            async with database.log.acquire() as writer:
                stored = await writer.insert(batch(event("a"), event(f"p{period}")))
                assert what_became(stored) == (period, [0, 1] if period == 1 else [1], [])
            await close_period(database, period)
        async with database.unit_of_work() as work:
            for period in range(1, 5):
                await work.interactions.merge_ids(period)
            await work.commit()
        async with database.unit_of_work() as work:
            for period in (1, 3):
                await work.past.fold(period)
                await work.interactions.drop(period, lock_seconds=5)
            await work.interactions.forget_dropped_ids()
            await work.commit()
        async with database.log.acquire() as again:
            assert again is writer
            assert what_became(await again.insert(batch(event("a"), event("p2"), event("p4")))) == (5, [0], [])

    async def test_one_that_is_silent_does_not_hold_the_log_for_ever(
        self, postgres_dsn: str, database: Database, monkeypatch: pytest.MonkeyPatch, hold: Hold
    ) -> None:
        """Like an api process that is frozen between its COPY and its commit."""
        monkeypatch.setitem(SESSION, "idle_in_transaction_session_timeout", "300")
        frozen = Database(postgres_dsn)
        writing = asyncio.create_task(ingest(frozen, Seen(), batch(event("a"))))
        await hold.copied.wait()
        async with database.unit_of_work() as other, asyncio.timeout(5):
            await other.lock_exclusive(Lock.LOG)
        hold.go_on.set()
        with pytest.raises(NotReady, match="connection to Postgres was lost"):
            await writing
        assert await ingest(frozen, Seen(), batch(event("a"), event("b"))) == IngestResult(2, 0, [], 1)
        await frozen.close()

    async def test_a_database_without_a_schema_is_not_ready(self, database: Database) -> None:
        async with database.unit_of_work() as work:
            await work.connection.execute(text("DELETE FROM periods"))
            await work.commit()
        with pytest.raises(NotReady, match="has not been migrated"):
            await ingest(database, Seen(), batch(event("a")))


class TestCounting:
    """The number of interactions of the open period is known without counting them."""

    async def test_neither_a_close_nor_a_reader_counts_the_log(self, database: Database, redis: Redis) -> None:
        statements: list[str] = []

        def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
            statements.append(statement)

        event_hook.listen(database._engine.sync_engine, "before_cursor_execute", note)
        await ingest(database, Seen(), batch(*(event(f"e{n}") for n in range(7)), event("e1")))
        notices = Notices(redis)
        page = await list_periods(database, notices, limit=9, before=None)
        assert [period.events for period in page.periods] == [7]
        async with aclosing(watch_period(database, notices, 1)) as watched:
            assert (await anext(watched)).events == 7
            await ingest(database, Seen(), batch(event("e8"), event("e2")))
            assert (await anext(watched)).events == 8
        closed = await close(database, expected_period=1, idempotency_key=None, actor="test")
        assert closed.events == 8
        assert [statement for statement in statements if "count(" in statement.lower()] == []
        async with database.read() as session:
            assert await session.interactions.counted(1) == await session.interactions.counted(2) == 0

    async def test_it_is_exact_whatever_becomes_of_the_batches(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Many at once, with the same ids, in races, interrupted, and with more than one counter row."""
        monkeypatch.setattr("service.storage.postgres.event_writer.BATCHES_OF_A_SLOT", 3)
        ingestion = Ingestion(database, Seen())
        calls = [ingestion.ingest(batch(*(event(f"{(n + m) % 40}") for m in range(10)))) for n in range(40)]
        await asyncio.gather(*calls)
        await ingestion.settle()
        with pytest.raises(ZeroDivisionError):
            async with database.log.acquire() as writer:
                await writer.insert(batch(event("stored")))
                raise ZeroDivisionError
        writing = asyncio.create_task(ingest(database, Seen(), batch(*(event(f"cut-{n}") for n in range(500)))))
        await asyncio.sleep(0.005)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        async with database.unit_of_work() as work:
            await work.lock_exclusive(Lock.LOG)
            assert await work.interactions.counted(1) == await work.interactions.count(1)
