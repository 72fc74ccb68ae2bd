"""The installation that a command works on: its settings and its database."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from service.processes.supervisor import installation
from service.settings import Settings
from service.storage.postgres.database import Database

__all__ = ["DataDir", "load_settings", "with_database"]

T = TypeVar("T")

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of the embedded servers and the snapshots. [ASMG_DATA_DIR]")
]


def load_settings(**overrides: Any) -> Settings:
    """The settings of the environment; those of `overrides` that are not None win."""
    return Settings(**{name: value for name, value in overrides.items() if value is not None})


def with_database(data_dir: Path | None, use: Callable[[Database], Awaitable[T]]) -> T:
    """What `use` returns, given the database of the installation."""

    async def run(dsn: str) -> T:
        database = Database(dsn, pool_size=1)
        try:
            return await use(database)
        finally:
            await database.close()

    with installation(load_settings(data_dir=data_dir)) as settings:
        assert settings.postgres_dsn is not None
        return asyncio.run(run(settings.postgres_dsn))
