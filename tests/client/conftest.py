"""A service for the tests of its client: the real one, on a database of its own, with keys."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from service.storage.postgres.database import Database
from service.storage.postgres.repositories import PeriodStatus
from service.use_cases.keys import SCOPES, create_key
from tests.conftest import in_thread
from tests.service.api_support import make_keys, served_app, settings_for
from tests.service.programs import wait_for


class Service(NamedTuple):
    """A running service and how to get at it."""

    url: str
    key: str
    """Of all scopes."""
    rare: str
    """That may call once in 1,000 s."""
    reader: str
    """Of the scope `predict` alone."""
    dsn: str

    def end_period(self, number: int) -> None:
        """End the update of a period, which no worker has begun."""

        async def end() -> None:
            database = Database(self.dsn, pool_size=1)
            async with database.unit_of_work() as work:
                await work.periods.set_status(number, PeriodStatus.UPDATED)
                await work.commit()
            await database.close()

        in_thread(asyncio.run, end())


@pytest.fixture
def service(postgres_dsn: str, redis_url: str, tmp_path: Path) -> Iterator[Service]:
    """A service with an empty log, which has loaded its model."""

    async def keys() -> tuple[str, str, str]:
        database = Database(postgres_dsn, pool_size=1)
        _, reader = await create_key(database, "reader", [SCOPES[0]])
        await database.close()
        return *await make_keys(postgres_dsn), reader

    key, rare, reader = in_thread(asyncio.run, keys())
    with served_app(settings_for(postgres_dsn, redis_url, tmp_path)) as url:
        wait_for(lambda: httpx.get(f"{url}/readyz", verify=False).is_success)
        yield Service(url, key, rare, reader, postgres_dsn)
