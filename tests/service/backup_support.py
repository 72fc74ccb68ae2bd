"""A database with a past, as the tests of backups and of verification want it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import text

from asmg.datasets.synthetic import DriftPeriod
from service.storage.postgres.database import Database, ReadSession
from service.storage.postgres.repositories import Click, EventBatch, Impression
from service.storage.postgres.structure import stored_tables
from service.use_cases.ingest import ingest_clicks, ingest_impressions
from service.use_cases.keys import create_key
from service.use_cases.retention import drop_old_logs, merge_event_ids, prune
from tests.conftest import Servers, database_dsn, in_thread
from tests.service.update_support import Bench, bench, copies, interactions, periods, single_thread

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
    await ingest_impressions(b.database, b.workshop.histories, shown, window)
    await ingest_clicks(b.database, b.workshop.histories, [Click("r1/a", "r1", "a", now)], window)
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
