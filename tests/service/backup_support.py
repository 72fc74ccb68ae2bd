"""A database with content, and backups of it, for the tests of backups, restores and verification."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from redis.asyncio import Redis
from sqlalchemy import text

from asmg.datasets.synthetic import DriftPeriod
from service.storage.backup.manifest import Manifest, read_backup
from service.storage.postgres.database import Database, ReadSession
from service.storage.postgres.migrate import migrate
from service.storage.postgres.repositories import Click, EventBatch, Impression
from service.storage.postgres.structure import stored_tables
from service.storage.redis.connection import connect
from service.use_cases.backup import require_empty_database, restore
from service.use_cases.ingest import ingest_clicks, ingest_impressions
from service.use_cases.keys import create_key
from service.use_cases.retention import drop_old_logs, merge_event_ids, prune
from tests.conftest import Servers, database_dsn, in_thread
from tests.service.programs import ASMG, environment
from tests.service.update_support import Bench, bench, copies, interactions, periods, single_thread

Make = Callable[..., str]
"""Makes a database, and returns its DSN."""

LEARNED = 8
"""Periods that are learned; after them the log of the first one is dropped."""

SETTINGS: dict[str, Any] = {"keep_logs": 0, "swap_lead_seconds": 0.0}


async def learn(b: Bench, period: DriftPeriod) -> None:
    """What the worker does with one period, from its log to the end."""
    await b.log(period)
    await merge_event_ids(b.database)
    with single_thread():
        await b.update(period.number)
    await prune(b.database, period.number, b.settings)
    await drop_old_logs(b.database, b.settings)


class Past(NamedTuple):
    """What there is to copy."""

    name: str
    """Of the database."""
    key: str
    """An API key of it."""


async def live(b: Bench) -> str:
    """Learn eight periods, seal a ninth, begin a tenth; an API key."""
    *learned, ninth, tenth = periods(LEARNED + 2)
    for period in learned:
        await learn(b, period)
    await b.log(ninth)
    await b.log(tenth, close=False)
    now, window = datetime.now(UTC), b.settings.attribution_window
    shown = [Impression("r1", "u1", ["a", "b"], [3, 1], now), Impression("r2", "u2", ["a"], None, now)]
    await ingest_impressions(b.database, b.context.histories, shown, window)
    await ingest_clicks(b.database, b.context.histories, [Click("r1/a", "r1", "a", now)], window)
    return (await create_key(b.database, "a frontend", ["predict", "ingest"]))[1]


@contextmanager
def lived(servers: Servers, template: str, numbers: Iterator[int], folder: Path) -> Iterator[Past]:
    """A database with that past, which nobody changes."""

    async def make(dsn: str) -> str:
        async with bench(dsn, servers.redis_url, folder, **SETTINGS) as b:
            return await live(b)

    with copies(servers, template, numbers) as copy:
        name = copy()
        yield Past(name, in_thread(asyncio.run, make(database_dsn(servers, name))))


async def contents(database: Database) -> dict[str, tuple[int, str]]:
    """Of each table that holds rows: how many, and a digest of them all."""
    async with database.read() as session:
        return await contents_of(session)


async def contents_of(session: ReadSession) -> dict[str, tuple[int, str]]:
    """The same, as one session sees it."""
    found = {}
    for table in await stored_tables(session.connection):
        digest = "md5(coalesce(string_agg(md5(entry::text), '' ORDER BY md5(entry::text)), ''))"
        query = text(f"SELECT count(*), {digest} FROM {table.name} AS entry")
        rows, whole = (await session.connection.execute(query)).one()
        found[table.name] = (int(rows), str(whole))
    return found


async def sql(database: Database, *statements: str) -> None:
    """Run statements in one transaction."""
    async with database.unit_of_work() as work:
        for statement in statements:
            await work.connection.exec_driver_sql(statement)
        await work.commit()


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Database]:
    """A database by its DSN."""
    database = Database(dsn)
    try:
        yield database
    finally:
        await database.close()


def events(prefix: str, count: int) -> EventBatch:
    """Interactions whose ids begin so."""
    return EventBatch.of(interactions(periods(1)[0], prefix)[:count])


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Redis]:
    redis = connect(url)
    try:
        yield redis
    finally:
        await redis.aclose()


async def restored(dsn: str, redis: Redis, folder: Path) -> Manifest:
    """The command's work: migrate, load."""
    manifest = read_backup(folder)
    async with opened(dsn) as database:
        await require_empty_database(database)
        await asyncio.to_thread(migrate, dsn)
        await restore(database, redis, folder, manifest, actor="test")
    return manifest


async def enlarge(database: Database) -> None:
    """Add what takes a while to copy: events of the open period, and an artifact."""
    await sql(
        database,
        "INSERT INTO interactions (event_id, period, user_id, item_id, label, occurred_at) "
        f"SELECT 'more-' || n, {LEARNED + 2}, 'u1', 'i1', 0, now() FROM generate_series(1, 60000) AS n",
    )
    async with database.unit_of_work() as work:
        await work.interactions.note_count(LEARNED + 2, 60000)
        await work.artifacts.put(os.urandom(32 * 1024 * 1024), "model")
        await work.commit()


@contextmanager
def started(*arguments: str, dsn: str, redis_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """The program, at work; killed in the end."""
    variables = environment(ASMG_POSTGRES_DSN=dsn, ASMG_REDIS_URL=redis_url)
    quiet = subprocess.DEVNULL
    with subprocess.Popen([*ASMG, *arguments], env=variables, stdout=quiet, stderr=quiet) as process:
        try:
            yield process
        finally:
            process.kill()


async def copying(database: Database, process: subprocess.Popen[bytes], table: str = "artifact_chunks") -> None:
    """Return when the program is in the middle of a table, or of one that nobody else sees yet."""
    query = text("""
        SELECT count(*) FROM pg_stat_progress_copy LEFT JOIN pg_class ON pg_class.oid = relid
        WHERE datname = current_database() AND bytes_processed > 0 AND coalesce(relname, 'a new one') = :table
    """)
    while True:
        async with database.read() as session:
            if await session.connection.scalar(query, {"table": table}):
                return
        assert process.poll() is None, "it has ended before that"
        await asyncio.sleep(0.002)


async def alone(database: Database) -> None:
    """Return when Postgres has noticed that the others are gone."""
    query = text("""
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
    """)
    async with asyncio.timeout(10):
        while True:
            async with database.read() as session:  # a transaction sees the same of it all the time
                if not await session.connection.scalar(query):
                    return
            await asyncio.sleep(0.02)
