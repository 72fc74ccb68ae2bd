"""Runs migrations over the service's one driver, a transaction each, under an advisory lock of the session.

The lock cannot be lost unnoticed: it belongs to the very session that migrates.
"""

import asyncio
import logging
import os
import time
from contextlib import AsyncExitStack

from alembic import context
from sqlalchemy import Connection, pool, text

from service.storage.postgres.database import Lock, make_engine, require_sessions
from service.storage.postgres.migrate import LOCK_SECONDS, STATEMENT_SECONDS, is_described
from service.storage.postgres.outages import opening
from service.storage.postgres.tables import metadata

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""Between two looks whether another process has migrated. To wait within a statement would keep a snapshot, which the
building of an index over there would wait for in turn."""

LIMITS = {
    "application_name": "asmg migrate",
    "lock_timeout": f"{int(LOCK_SECONDS * 1000)}",
    "statement_timeout": f"{STATEMENT_SECONDS}s",
    # A process that is frozen gives the lock up.
    "idle_session_timeout": "60s",
}


def run(connection: Connection) -> None:
    """Migrate over a connection; a second process waits for the first, and then finds nothing to do."""
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


async def run_online(dsn: str) -> None:
    """Connect and migrate."""
    await require_sessions(dsn)
    engine = make_engine(dsn, LIMITS, poolclass=pool.NullPool)
    try:
        async with AsyncExitStack() as stack:
            with opening():
                connection = await stack.enter_async_context(engine.connect())
            await connection.run_sync(run)
    finally:
        await engine.dispose()


def configured_dsn() -> str:
    """The DSN that the program gave, else that of the environment."""
    dsn = context.config.attributes.get("dsn") or os.environ.get("ASMG_POSTGRES_DSN")
    if not dsn:
        raise SystemExit("expected ASMG_POSTGRES_DSN to be set; received nothing")
    return str(dsn)


if context.is_offline_mode():
    raise SystemExit("expected a database to migrate; --sql without one is not supported")
asyncio.run(run_online(configured_dsn()))
