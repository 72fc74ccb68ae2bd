"""The running application, histories of users, and databases with a past."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from service.http.routers import predict
from service.settings import Settings
from service.storage.postgres.database import Database
from service.storage.redis.histories import HistoryStore
from service.use_cases.backup import back_up
from tests.conftest import Servers, create_database, database_dsn, drop_database, in_thread
from tests.service.api_support import Api, running_app, settings_for
from tests.service.backup_support import Make, Past, lived
from tests.service.redis_support import NoDatabase
from tests.service.update_support import copies


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
def answered_at_once(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each prediction whether it was answered without waiting."""
    noted: list[bool] = []
    answer_now = predict.answer_now

    def watched(*arguments: Any) -> Any:
        content = answer_now(*arguments)
        noted.append(content is not None)
        return content

    monkeypatch.setattr(predict, "answer_now", watched)
    return noted


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
    """A database with learned periods, a dropped log, a sealed period and an open one, for copies."""
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


@pytest.fixture
def copy(servers: Servers, migrated_template: str, database_numbers: Iterator[int]) -> Iterator[Make]:
    """DSN of a new database: migrated, or a copy of the one named."""
    with copies(servers, migrated_template, database_numbers) as make:
        yield lambda *name: database_dsn(servers, make(*name))


@pytest.fixture
def empty(servers: Servers, migrated_template: str, database_numbers: Iterator[int]) -> Iterator[str]:
    """DSN of a database without any tables."""
    name = f"{migrated_template}_{next(database_numbers)}"
    create_database(servers, name, "template0")
    yield database_dsn(servers, name)
    drop_database(servers, name)
