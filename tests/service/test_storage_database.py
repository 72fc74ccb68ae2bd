"""Sessions, locks and leader election, each with real concurrency."""

import asyncio
import errno
import socket
import time
from datetime import UTC, datetime

import pytest
from asyncpg import PostgresError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from service.errors import ConfigurationError, NotReady
from service.storage.postgres.database import Database, Lock
from service.storage.postgres.engine import KEEPALIVE, SESSION
from service.storage.postgres.leadership import Leadership
from service.storage.postgres.repositories import EventBatch, Interaction

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


async def test_connections_are_replaced_in_time(postgres_dsn: str) -> None:
    """This frees the memory that Postgres keeps for a session, also for tables that were dropped long ago."""

    async def backend(database: Database) -> int:
        async with database.read() as session:
            return int(await session.connection.scalar(text("SELECT pg_backend_pid()")))

    database = Database(postgres_dsn, pool_size=1, connection_seconds=0.5)
    first = await backend(database)
    await asyncio.sleep(0.6)
    second = await backend(database)
    assert second != first
    assert await backend(database) == second
    await database.close()


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


async def test_a_host_that_is_gone_is_found_out_by_both_sides(database: Database) -> None:
    """By keepalives, if there is a network in between."""
    names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")
    async with database.read() as session:
        shown = [await session.connection.scalar(text(f"SHOW {name}")) for name in names]
        raw = (await session.connection.get_raw_connection()).driver_connection
    opened = raw.socket
    if opened.family is socket.AF_UNIX:
        assert set(shown) == {"0"}
    else:
        assert shown == ["10", "5", "3", "25000"]
        assert all(opened.getsockopt(level, option) == value for level, option, value in KEEPALIVE)


RAISED = ["53100", "53200", "53300", "57P01", "57P03", "08006", "58030", "40P01"]


@pytest.mark.parametrize("state", RAISED)
async def test_trouble_of_the_server_is_not_ready(database: Database, state: str) -> None:
    with pytest.raises(NotReady, match=state):
        async with database.unit_of_work() as uow:
            await uow.connection.execute(text(f"DO $$BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END$$"))


@pytest.mark.parametrize("state", ["23505", "22P02", "42703", "57014"])
async def test_trouble_with_the_statement_is_not(database: Database, state: str) -> None:
    with pytest.raises(DBAPIError):
        async with database.unit_of_work() as uow:
            await uow.connection.execute(text(f"DO $$BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END$$"))


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError("reset"), BrokenPipeError("broken")])
async def test_what_the_driver_lets_through_is_not_ready(database: Database, error: Exception) -> None:
    with pytest.raises(NotReady, match="Postgres does not answer"):
        async with database.unit_of_work():
            raise error


async def test_a_file_that_cannot_be_written_is_not_the_database(database: Database) -> None:
    with pytest.raises(OSError, match="No space"):
        async with database.read():
            raise OSError(errno.ENOSPC, "No space left on device")


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


END_LEADERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database ON oid = database "
    "WHERE locktype = 'advisory' AND datname = current_database()"
)


async def test_a_leader_whose_connection_dies_learns_it(postgres_dsn: str, database: Database) -> None:
    leader = Leadership(postgres_dsn)
    assert await leader.try_acquire()
    async with database.unit_of_work() as uow:
        await uow.connection.execute(text(END_LEADERS))
    await asyncio.sleep(0.1)
    assert not await leader.is_held()
    assert await leader.try_acquire()
    await leader.release()


async def test_a_leader_that_says_nothing_for_too_long_leads_no_more(postgres_dsn: str) -> None:
    leader, follower = (Leadership(postgres_dsn, lease_seconds=0.5) for _ in range(2))
    assert await leader.try_acquire()
    # It leads on for as long as it is heard.
    assert await leader.hold(asyncio.sleep(1.5, "worked")) == "worked"
    assert not await follower.try_acquire()
    assert await leader.try_acquire()
    await asyncio.sleep(0.8)
    assert await follower.try_acquire()
    assert not await leader.is_held()
    await follower.release()
    await leader.release()


async def test_a_leader_whose_event_loop_is_dead_gives_up(postgres_dsn: str, caplog: pytest.LogCaptureFixture) -> None:
    leader, follower = Leadership(postgres_dsn, dead_seconds=0.2, lease_seconds=0.5), Leadership(postgres_dsn)

    async def work() -> None:
        time.sleep(1)  # noqa: ASYNC251
        await asyncio.sleep(60)

    assert await leader.try_acquire()
    with pytest.raises(NotReady, match="leadership was lost"):
        await leader.hold(work())
    assert "leadership given up" in caplog.text
    assert await follower.try_acquire()
    for candidate in (leader, follower):
        await candidate.release()


async def test_what_a_leader_does_ends_with_its_term(postgres_dsn: str, database: Database) -> None:
    leader, ended = Leadership(postgres_dsn, lease_seconds=0.5), []

    async def work() -> None:
        try:
            async with database.unit_of_work() as uow:
                await uow.connection.execute(text(END_LEADERS))
            await asyncio.sleep(60)
        finally:
            ended.append("work")

    assert await leader.try_acquire()
    with pytest.raises(NotReady, match="leadership was lost"):
        await leader.hold(work())
    assert ended == ["work"]

    async def fail() -> None:
        raise ValueError("of its own")

    assert await leader.try_acquire()
    with pytest.raises(ValueError, match="of its own"):
        await leader.hold(fail())
    await leader.release()


async def test_who_is_silent_in_a_transaction_loses_it_and_its_locks(
    postgres_dsn: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SESSION, "idle_in_transaction_session_timeout", "300")
    frozen = Database(postgres_dsn)
    with pytest.raises(NotReady):
        async with frozen.unit_of_work() as uow:
            await uow.lock_exclusive(Lock.LOG)
            async with database.unit_of_work() as other, asyncio.timeout(5):
                await other.lock_exclusive(Lock.LOG)
            await uow.audit.add("test", "late", {})
            await uow.commit()
    async with database.read() as session:
        assert list(await session.audit.list(1)) == []
    # An error of the block's own is not hidden by the connection that cannot be closed in order.
    with pytest.raises(ValueError, match="of its own"):
        async with frozen.unit_of_work() as uow:
            await uow.periods.open()
            await asyncio.sleep(0.5)
            raise ValueError("of its own")
    async with frozen.read() as session:
        assert (await session.periods.open()).number == 1
    await frozen.close()
