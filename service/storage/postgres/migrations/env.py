"""Runs the migrations over asyncpg, one transaction each, under an advisory lock. Alembic executes this file.

The lock belongs to the session that migrates, so it cannot be lost without the migration failing.
"""

import asyncio
import logging
import os
import time
from contextlib import AsyncExitStack

from alembic import context
from sqlalchemy import Connection, pool, text

from service.storage.postgres.database import Lock
from service.storage.postgres.engine import make_engine
from service.storage.postgres.migrate import LOCK_SECONDS, STATEMENT_SECONDS, is_described
from service.storage.postgres.outages import opening
from service.storage.postgres.pooler import require_sessions
from service.storage.postgres.tables import metadata

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""Pause between two tries to get the lock while another process migrates. A statement that waits for the lock would
hold a snapshot, and building an index concurrently waits until older snapshots are gone."""

SETTINGS = {
    "application_name": "asmg migrate",
    "lock_timeout": f"{int(LOCK_SECONDS * 1000)}",
    "statement_timeout": f"{STATEMENT_SECONDS}s",
    # A frozen process loses the lock.
    "idle_session_timeout": "60s",
}
"""Server settings of the session that migrates, beside those of all sessions."""


def run_migrations(connection: Connection) -> None:
    """Migrate over a connection. A second process waits for the first, and then has nothing to do."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_type=True,
        compare_server_default=True,
        include_name=is_described,
        transaction_per_migration=True,
    )
    waiting = False
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": int(Lock.MIGRATE)}):
        connection.rollback()
        if not waiting:
            logger.warning("another process migrates this database; this one waits for it")
            waiting = True
        time.sleep(POLL_SECONDS)
    connection.commit()  # the lock stays until the session ends
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_migrate(dsn: str) -> None:
    """Check that the DSN keeps sessions, connect and migrate."""
    await require_sessions(dsn)
    engine = make_engine(dsn, SETTINGS, poolclass=pool.NullPool)
    try:
        async with AsyncExitStack() as stack:
            with opening():
                connection = await stack.enter_async_context(engine.connect())
            await connection.run_sync(run_migrations)
    finally:
        await engine.dispose()


def configured_dsn() -> str:
    """The DSN that `migrate.alembic_config` was given, otherwise that of the environment."""
    dsn = context.config.attributes.get("dsn") or os.environ.get("ASMG_POSTGRES_DSN")
    if not dsn:
        raise SystemExit("expected ASMG_POSTGRES_DSN to be set; received nothing")
    return str(dsn)


if context.is_offline_mode():
    raise SystemExit("expected a database to migrate; --sql without one is not supported")
asyncio.run(connect_and_migrate(configured_dsn()))
