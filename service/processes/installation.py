"""The servers of an installation: embedded ones are started, configured ones are checked.

Every command that works on a database (`asmg serve`, `worker`, `migrate`, `import`, `keys` …) begins with
`installation`. Imports that api processes and the worker do without are inside the functions that need them.
"""

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from service.errors import ConfigurationError, NotReady
from service.settings import Settings
from service.storage.postgres.pooler import require_sessions

__all__ = ["installation", "require_objects", "require_redis"]

logger = logging.getLogger(__name__)

POSTGRES_REFUSALS = {
    "28000": "does not let this user in",
    "28P01": "refuses the user name or password",
    "3D000": "has no database of this name",
}
"""SQLSTATE → what is wrong with the DSN. Only errors that last until somebody changes the DSN."""


@contextmanager
def installation(settings: Settings, *, migrate_first: bool = False, any_schema: bool = False) -> Iterator[Settings]:
    """Yield the settings with the addresses of Postgres and Redis, once Postgres answers with a current schema.

    Embedded servers run at least as long as the `with` block; their schema is always brought up to date. A configured
    database may be shared with processes of another release, so its schema is only checked.

    Args:
        settings: with both addresses, or with neither: then the servers are embedded.
        migrate_first: bring the schema of a configured database up to date too.
        any_schema: neither check the schema nor change it.

    Raises:
        ConfigurationError: the schema is not current, the embedded servers do not start, Postgres refuses the user or
            has no such database, or a connection pooler lends sessions by transaction.
        NotReady: Postgres does not answer.
    """
    from service.storage.embedded.servers import EmbeddedServers
    from service.storage.postgres.migrate import migrate

    with ExitStack() as stack:
        embedded = settings.embedded
        if embedded:
            servers = stack.enter_context(EmbeddedServers(settings.data_dir))
            settings = settings.model_copy(
                update={"postgres_dsn": servers.postgres_dsn, "redis_url": servers.redis_url}
            )
        dsn = settings.postgres_dsn
        assert dsn is not None  # Settings accepts both addresses or neither
        asyncio.run(_require_postgres(dsn))
        if not any_schema:
            if embedded or migrate_first:
                migrate(dsn)
            else:
                _require_current_schema(dsn)
        yield settings


def require_redis(settings: Settings) -> None:
    """Check that Redis answers; log a warning if it does not and the settings allow a start without it.

    Raises:
        ConfigurationError: Redis does not answer, and the settings do not allow that.
    """
    from service.storage.redis.connection import connection_problem

    assert settings.redis_url is not None
    if (reason := asyncio.run(connection_problem(settings.redis_url))) is None:
        return
    if not settings.start_without_redis:
        raise ConfigurationError(
            f"the Redis of ASMG_REDIS_URL {reason}; ASMG_START_WITHOUT_REDIS=true starts without it, slower"
        )
    logger.warning("the Redis of ASMG_REDIS_URL %s; the service starts without it, slower", reason)


def require_objects(settings: Settings) -> None:
    """Check that the object store can be written, read, listed and deleted from, if there is one.

    Raises:
        ConfigurationError: it cannot; or artifacts are in an object store, and the settings name none.
        NotReady: Postgres does not answer.
    """
    from service.storage.artifacts.objects import configured_objects

    if (objects := configured_objects(settings)) is not None:
        asyncio.run(objects.check())
    elif asyncio.run(_any_object(settings)):
        raise ConfigurationError(
            "expected ASMG_ARTIFACTS_URL, for artifacts are in an object store; received none "
            "(ASMG_ARTIFACTS_TO_POSTGRES=true with it puts new ones into Postgres)"
        )


async def _any_object(settings: Settings) -> bool:
    from service.storage.postgres.database import Database

    assert settings.postgres_dsn is not None
    database = Database(settings.postgres_dsn, pool_size=1)
    try:
        async with database.read() as session:
            return await session.artifacts.any_object()
    finally:
        await database.close()


async def _require_postgres(dsn: str) -> None:
    try:
        await require_sessions(dsn)
    except NotReady as error:
        reason = POSTGRES_REFUSALS.get(str(getattr(error.__cause__, "sqlstate", None)))
        if reason is None:
            raise
        raise ConfigurationError(f"the Postgres of ASMG_POSTGRES_DSN {reason}") from None


def _require_current_schema(dsn: str) -> None:
    from alembic import command as alembic
    from alembic.util import CommandError

    from service.storage.postgres.migrate import alembic_config

    config = alembic_config(dsn)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        config.stdout = nowhere
        try:
            alembic.current(config, check_heads=True)
        except CommandError as error:
            raise ConfigurationError(
                f"the schema of the database is not that of this release ({error}); run `asmg migrate` first"
            ) from None
