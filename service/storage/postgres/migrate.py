"""Brings the schema of a database up to date, from a checkout or from an installed wheel."""

import logging
import re
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from asyncpg import InternalClientError
from sqlalchemy.exc import DBAPIError

from service.errors import ConfigurationError, NotReady
from service.settings import sqlalchemy_dsn
from service.storage.postgres import migrations
from service.storage.postgres.outages import driver_error, outage

__all__ = ["LOCK_SECONDS", "STATEMENT_SECONDS", "alembic_config", "head_revision", "is_described", "migrate"]

logger = logging.getLogger(__name__)

LOCK_SECONDS = 2.0
"""How long a migration waits for a table that others use; whoever comes meanwhile waits behind it."""

ATTEMPTS, PAUSE_SECONDS = 10, 3.0
"""After which it is begun again, so often."""

STATEMENT_SECONDS = 3600
"""The longest that one statement may take: one that copies a period of the log, say."""

PARTITION = re.compile(r".+_p\d+")

LOCK_NOT_AVAILABLE, QUERY_CANCELED = "55P03", "57014"


def migrate(dsn: str) -> None:
    """Run all migrations that the database has not seen, under an advisory lock: several processes may try at once.

    Each is a transaction of its own, so what is done stays done, and the next call goes on from there. It runs an event
    loop of its own; inside a running one, call it in a thread.

    Raises:
        ConfigurationError: the DSN is none of Postgres, or leads through a pooler that keeps no sessions.
        NotReady: others used a table for all that time, a statement took too long, or Postgres does not answer.
    """
    config = alembic_config(dsn)
    for left in range(ATTEMPTS - 1, -1, -1):
        try:
            command.upgrade(config, "head")
            return
        except (DBAPIError, InternalClientError, ConnectionError, TimeoutError) as error:
            state = getattr(driver_error(error), "sqlstate", None)
            if state == LOCK_NOT_AVAILABLE and left:
                logger.warning("a migration gave way to a transaction that uses its table; it is tried again")
                time.sleep(PAUSE_SECONDS)
            elif state == LOCK_NOT_AVAILABLE:
                raise NotReady(
                    f"a migration could not lock a table within {LOCK_SECONDS:g} s, {ATTEMPTS} times, for others use "
                    "it (see pg_stat_activity); the migrations before it are done: run `asmg migrate` again later"
                ) from error
            elif state == QUERY_CANCELED:
                raise NotReady(
                    f"a statement of a migration took longer than {STATEMENT_SECONDS:,} s and was undone; what was "
                    "done before it stays: see what Postgres is busy with, and run `asmg migrate` again"
                ) from error
            elif (trouble := outage(error)) is not None:
                raise NotReady(
                    f"{trouble}; the migrations that were done stay: run `asmg migrate` again later"
                ) from error
            else:
                raise


def is_described(name: str | None, kind: str, _parents: object = None) -> bool:
    """Whether the tables of the service should tell of it: partitions come and go with the periods."""
    return kind != "table" or name is None or PARTITION.fullmatch(name) is None


def head_revision() -> str:
    """The schema of this release."""
    head = ScriptDirectory(str(_scripts())).get_current_head()
    assert head is not None, "there are migrations"
    return head


def alembic_config(dsn: str) -> Config:
    """The Alembic configuration for one database, without an `alembic.ini`."""
    try:
        url = sqlalchemy_dsn(dsn)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    config = Config()
    config.set_main_option("script_location", str(_scripts()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    # Not an option of the file, where a % in a password would be taken for an interpolation.
    config.attributes["dsn"] = url
    return config


def _scripts() -> Path:
    return Path(migrations.__path__[0])
