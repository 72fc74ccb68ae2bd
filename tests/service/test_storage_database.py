"""Sessions, locks and the election of a leader, each with real concurrency."""

import asyncio
from datetime import UTC, datetime

import pytest
from asyncpg import PostgresError
from sqlalchemy import text

from service.errors import ConfigurationError, NotReady
from service.storage.database import Database, Leadership, Lock
from service.storage.repositories import EventBatch, Interaction

EVENT = Interaction("e1", "u1", "i1", 1, datetime(2024, 5, 1, tzinfo=UTC))


async def count(database: Database) -> int:
    async with database.read() as session:
        return await session.interactions.count(1)


async def test_nothing_is_kept_without_a_commit(database: Database) -> None:
    async with database.unit_of_work() as uow:
        await uow.interactions.insert(1, EventBatch.of([EVENT]))
    assert await count(database) == 0

    async with database.unit_of_work() as uow:
        await uow.interactions.insert(1, EventBatch.of([EVENT]))
        await uow.commit()
    assert await count(database) == 1


async def test_an_error_rolls_back(database: Database) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        async with database.unit_of_work() as uow:
            await uow.interactions.insert(1, EventBatch.of([EVENT]))
            raise RuntimeError("stop")
    assert await count(database) == 0


async def test_statements_after_a_commit_need_their_own(database: Database) -> None:
    async with database.unit_of_work() as uow:
        await uow.audit.add("me", "first", {})
        await uow.commit()
        await uow.audit.add("me", "second", {})
    async with database.read() as session:
        assert [entry.action for entry in await session.audit.list(10)] == ["first"]


async def test_a_read_session_cannot_write(database: Database) -> None:
    with pytest.raises(PostgresError, match="read-only transaction"):
        async with database.read() as session:
            await session.interactions.insert(1, EventBatch.of([EVENT]))


async def test_a_read_session_sees_one_snapshot(database: Database) -> None:
    async with database.read() as session:
        assert await session.interactions.count(1) == 0
        async with database.unit_of_work() as uow:
            await uow.interactions.insert(1, EventBatch.of([EVENT]))
            await uow.commit()
        assert await session.interactions.count(1) == 0
    assert await count(database) == 1


async def test_a_connection_that_read_can_write_next(postgres_dsn: str) -> None:
    database = Database(postgres_dsn, pool_size=1)
    assert await count(database) == 0
    async with database.unit_of_work() as uow:
        await uow.interactions.insert(1, EventBatch.of([EVENT]))
        await uow.commit()
    assert await count(database) == 1
    await database.close()


async def test_shared_locks_go_together_and_exclude_the_exclusive_one(database: Database) -> None:
    order: list[str] = []

    async def close_the_log() -> None:
        async with database.unit_of_work() as uow:
            await uow.lock_exclusive(Lock.LOG)
            order.append("exclusive")

    async with database.unit_of_work() as first, database.unit_of_work() as second:
        await first.lock_shared(Lock.LOG)
        await second.lock_shared(Lock.LOG)
        closing = asyncio.create_task(close_the_log())
        async with database.unit_of_work() as third:
            await third.lock_exclusive(Lock.MODELS)  # another name, so it does not wait
        await asyncio.sleep(0.1)
        order.append("shared")
    await closing
    assert order == ["shared", "exclusive"]


async def test_ping_says_who_does_not_answer(database: Database) -> None:
    await database.ping()
    away = Database("postgresql://nobody@/nothing?host=/nonexistent")
    with pytest.raises(NotReady, match="Postgres does not answer"):
        await away.ping()


def test_a_dsn_of_another_database_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected a DSN that starts with"):
        Database("mysql://localhost/asmg")


async def test_a_lost_connection_is_not_ready_and_the_next_session_works(database: Database) -> None:
    with pytest.raises(NotReady, match="connection to Postgres was lost"):
        async with database.unit_of_work() as uow:
            own = await uow.connection.scalar(text("SELECT pg_backend_pid()"))
            async with database.unit_of_work() as other:
                await other.connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": own})
            await asyncio.sleep(0.1)
            await uow.interactions.count(1)
    assert await count(database) == 0


async def test_one_of_many_leads_and_another_follows(postgres_dsn: str) -> None:
    candidates = [Leadership(postgres_dsn) for _ in range(4)]
    elected = await asyncio.gather(*(candidate.try_acquire() for candidate in candidates))
    assert sorted(elected) == [False, False, False, True]
    leader = candidates[elected.index(True)]
    follower = candidates[elected.index(False)]
    assert await leader.is_held()
    assert await leader.try_acquire()
    assert not await follower.is_held()
    assert not await follower.try_acquire()

    await leader.release()
    assert not await leader.is_held()
    for _ in range(50):  # the server ends the session a moment after the client has closed it
        if await follower.try_acquire():
            break
        await asyncio.sleep(0.02)
    assert await follower.is_held()
    for candidate in candidates:
        await candidate.release()


async def test_a_leader_whose_connection_dies_learns_it(postgres_dsn: str, database: Database) -> None:
    leader = Leadership(postgres_dsn)
    assert await leader.try_acquire()
    async with database.unit_of_work() as uow:
        await uow.connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database ON oid = database "
                "WHERE locktype = 'advisory' AND datname = current_database()"
            )
        )
    await asyncio.sleep(0.1)
    assert not await leader.is_held()
    assert await leader.try_acquire()
    await leader.release()
