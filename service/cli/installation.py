"""What commands need of an installation: the option `--data-dir`, its settings and its database."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from service.processes.installation import installation
from service.settings import Settings
from service.storage.postgres.database import Database

__all__ = ["DataDir", "load_settings", "use_database", "with_database"]

T = TypeVar("T")

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of the embedded servers and the snapshots. [ASMG_DATA_DIR]")
]


def load_settings(**overrides: Any) -> Settings:
    """The settings of the environment, with the values of `overrides` that are not None in their place."""
    return Settings(**{name: value for name, value in overrides.items() if value is not None})


async def use_database(settings: Settings, use: Callable[[Database], Awaitable[T]]) -> T:
    """Connect to Postgres, call `use` and return its result.

    Args:
        settings: as `installation` yields them.
        use: called with the database, of one connection at a time.
    """
    assert settings.postgres_dsn is not None
    database = Database(settings.postgres_dsn, pool_size=1)
    try:
        return await use(database)
    finally:
        await database.close()


def with_database(data_dir: Path | None, use: Callable[[Database], Awaitable[T]]) -> T:
    """Call `use` with the database of the installation and return its result.

    Args:
        data_dir: value of `--data-dir`.
        use: called with the database, of one connection at a time.
    """
    with installation(load_settings(data_dir=data_dir)) as settings:
        return asyncio.run(use_database(settings, use))
