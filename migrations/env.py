"""Runs migrations over the service's one driver, under an advisory lock, in one transaction."""

import asyncio
import os
import re

from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

from service.settings import sqlalchemy_dsn
from service.storage.database import Lock
from service.storage.tables import metadata

PARTITION = re.compile(r".+_p\d+")


def is_described(name: str | None, kind: str, _parents: object) -> bool:
    """Whether the tables of the service should tell of it: partitions come and go with the periods."""
    return kind != "table" or name is None or PARTITION.fullmatch(name) is None


def run(connection: Connection) -> None:
    """Migrate over a connection; a second process waits for the first, and then finds nothing to do."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_type=True,
        compare_server_default=True,
        include_name=is_described,
    )
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": int(Lock.MIGRATE)})
        context.run_migrations()


async def run_online(dsn: str) -> None:
    """Connect and migrate."""
    engine = create_async_engine(dsn, poolclass=pool.NullPool)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


def configured_dsn() -> str:
    """The DSN that the program gave, else that of the environment."""
    dsn = context.config.attributes.get("dsn") or os.environ.get("ASMG_POSTGRES_DSN")
    if not dsn:
        raise SystemExit("expected ASMG_POSTGRES_DSN to be set; received nothing")
    return sqlalchemy_dsn(dsn)


if context.is_offline_mode():
    raise SystemExit("expected a database to migrate; --sql without one is not supported")
asyncio.run(run_online(configured_dsn()))
