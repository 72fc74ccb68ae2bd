"""Fixtures: the running application, user histories, and databases with content to copy."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.redis.histories import HistoryStore
from service.use_cases import retention
from service.use_cases.backup import back_up
from tests.conftest import Servers, create_database, database_dsn, drop_database, in_thread
from tests.service import deletion_support
from tests.service.api_support import Api, running_app, settings_for
from tests.service.backup_support import Past, lived
from tests.service.redis_support import NoDatabase
from tests.service.update_support import Bench, Prepared, bench, copies, seal_second_period, single_thread


@pytest.fixture
def settings(postgres_dsn: str, redis_url: str, tmp_path: Path) -> Settings:
    """The default settings, with quick model swaps."""
    return settings_for(postgres_dsn, redis_url, tmp_path)


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    """The application between start and end of its lifespan."""
    async with running_app(settings) as api:
        yield api


@pytest.fixture
def store(redis: Redis, database: Database) -> HistoryStore:
    """Histories of users, from Redis or else from the test's database."""
    return HistoryStore(redis, database)


@pytest.fixture
def cached(redis: Redis) -> HistoryStore:
    """Histories of users from the same Redis; a test fails that asks it for one that is not there."""
    return HistoryStore(redis, NoDatabase())  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def past(
    servers: Servers, migrated_template: str, database_numbers: Iterator[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Past]:
    """A database with learned periods, a dropped log, a sealed period and an open one, to make copies of."""
    with lived(servers, migrated_template, database_numbers, tmp_path_factory.mktemp("past")) as made:
        yield made


@pytest.fixture(scope="session")
def backup(servers: Servers, past: Past, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of `past`, which nobody changes."""
    folder = tmp_path_factory.mktemp("backups") / "whole"

    async def make() -> None:
        database = Database(database_dsn(servers, past.name))
        await back_up(database, folder)
        await database.close()

    in_thread(asyncio.run, make())
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch with one thread, as the worker has it."""
    with single_thread():
        yield


@pytest.fixture(scope="session")
def prepared(
    servers: Servers,
    migrated_template: str,
    database_numbers: Iterator[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Prepared]:
    """A database in which period 1 is updated and period 2 sealed."""
    folder = tmp_path_factory.mktemp("prepared")

    async def finish(dsn: str) -> dict[str, Any]:
        async with bench(dsn, servers.redis_url, folder) as b:
            await b.update(2)
            return await b.outcome()

    with copies(servers, migrated_template, database_numbers) as copy:
        name = copy()
        with single_thread():
            in_thread(asyncio.run, seal_second_period(database_dsn(servers, name), servers.redis_url, folder))
            made = Prepared(name, in_thread(asyncio.run, finish(database_dsn(servers, copy(name)))))
        yield made


@pytest.fixture
def copy(servers: Servers, migrated_template: str, database_numbers: Iterator[int]) -> Iterator[Callable[..., str]]:
    """DSN of a new database: migrated, or a copy of the one named."""
    with copies(servers, migrated_template, database_numbers) as make:
        yield lambda *source: database_dsn(servers, make(*source))


@pytest.fixture
def second(copy: Callable[..., str], prepared: Prepared) -> str:
    """DSN of a database with period 2 to be updated on."""
    return copy(prepared.name)


@pytest.fixture(scope="session")
def ann_and_lamp(
    servers: Servers, migrated_template: str, database_numbers: Iterator[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Name of a database in which a user and an item are everywhere (`deletion_support`)."""

    async def make(dsn: str) -> None:
        async with bench(dsn, servers.redis_url, tmp_path_factory.mktemp("lived"), **deletion_support.CHANGES) as b:
            await deletion_support.live(b)

    with copies(servers, migrated_template, database_numbers) as copy:
        name = copy()
        with single_thread(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(retention, "KEPT_FOR_TRAINING", 1)
            in_thread(asyncio.run, make(database_dsn(servers, name)))
        yield name


@pytest.fixture
async def full(copy: Callable[..., str], ann_and_lamp: str, redis_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench on a copy of the database in which a user and an item are everywhere."""
    async with bench(copy(ann_and_lamp), redis_url, tmp_path, **deletion_support.CHANGES) as b:
        yield b


@pytest.fixture
def empty(servers: Servers, migrated_template: str, database_numbers: Iterator[int]) -> Iterator[str]:
    """DSN of a database without any tables."""
    name = f"{migrated_template}_{next(database_numbers)}"
    create_database(servers, name, "template0")
    yield database_dsn(servers, name)
    drop_database(servers, name)
