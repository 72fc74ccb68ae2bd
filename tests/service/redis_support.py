"""Events, and stand-ins for the database, for the tests of what Redis holds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

from redis.exceptions import ConnectionError as RedisConnectionError

from service.storage.postgres.database import Database, ReadSession
from service.storage.postgres.repositories import EventBatch, Interaction
from service.storage.redis.histories import HistoryStore

START = datetime(2024, 5, 1, 12, tzinfo=UTC)


def event(number: int, user_id: str = "u", label: int = 1, seconds: float | None = None) -> Interaction:
    at = START + timedelta(seconds=number if seconds is None else seconds)
    return Interaction(f"{user_id}-e{number}", user_id, f"i{number}", label, at)


async def commit(database: Database, *events: Interaction) -> None:
    async with database.unit_of_work() as uow:
        await uow.interactions.insert(1, EventBatch.of(events))
        await uow.commit()


class PausedDatabase:
    """A database whose readers stop after they have read, until the test calls `go.set()`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._answered = asyncio.Event()
        self.go = asyncio.Event()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[ReadSession]:
        async with self._database.read() as session:
            yield session
        self._answered.set()
        await self.go.wait()

    async def has_answered(self) -> None:
        """Wait until one has read; fail after 30 seconds."""
        await asyncio.wait_for(self._answered.wait(), 30)


class NoDatabase:
    """A database that must not be read: the answer has to come from Redis."""

    def read(self) -> None:
        raise AssertionError("Postgres was asked")


async def history(store: HistoryStore, user_id: str) -> list[str]:
    return [str(item) for item in (await store.get(user_id)).items]


async def fail_command(*_: object, **__: object) -> None:
    """Stands in for a command of the client: Redis is away."""
    raise RedisConnectionError("away")
