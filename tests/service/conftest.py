"""The running application, for every test that wants it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.settings import Settings
from tests.service.api_support import Api, running_app, settings_for


@pytest.fixture
def settings(postgres_dsn: str, redis_url: str, tmp_path: Path) -> Settings:
    """Quick swaps, all else as shipped."""
    return settings_for(postgres_dsn, redis_url, tmp_path)


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    """The application between start and end of its lifespan."""
    async with running_app(settings) as api:
        yield api
