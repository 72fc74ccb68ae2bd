"""The running application, for every test that wants it, and a database with a past."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from service.settings import Settings
from tests.conftest import Servers
from tests.service.api_support import Api, running_app, settings_for
from tests.service.backup_support import Past, lived


@pytest.fixture
def settings(postgres_dsn: str, redis_url: str, tmp_path: Path) -> Settings:
    """Quick swaps, all else as shipped."""
    return settings_for(postgres_dsn, redis_url, tmp_path)


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    """The application between start and end of its lifespan."""
    async with running_app(settings) as api:
        yield api


@pytest.fixture(scope="session")
def past(
    servers: Servers, migrated_template: str, database_numbers: Iterator[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Past]:
    """A database with learned periods, a dropped log, a sealed period and an open one, to make copies of."""
    with lived(servers, migrated_template, database_numbers, tmp_path_factory.mktemp("past")) as made:
        yield made
