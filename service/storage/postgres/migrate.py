"""Migrates a database to the schema of this release, from a checkout or an installed wheel.

`asmg migrate`, `asmg serve` with its own servers, and `asmg restore` call `migrate`.
"""

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
"""How long a migration waits for the lock of a table. Everybody else who wants the table queues up behind it."""

ATTEMPTS, PAUSE_SECONDS = 10, 3.0
"""How often a migration is tried when it does not get its lock, and the pause between two tries."""

STATEMENT_SECONDS = 3600
"""The longest that one statement may take, for example one that copies a period of the log."""

PARTITION = re.compile(r".+_p\d+")
"""Names of partitions."""

LOCK_NOT_AVAILABLE, QUERY_CANCELED = "55P03", "57014"


def migrate(dsn: str) -> None:
    """Run all migrations that the database lacks. Several processes may call it at once; an advisory lock orders them.

    Each migration is a transaction: after a failure the next call continues where this one stopped. It runs an event
    loop of its own, so inside a running loop call it in a thread.

    Raises:
        ConfigurationError: the DSN is not one of Postgres, or leads to a pooler that does not keep sessions.
        NotReady: a table stayed locked, a statement took too long, or Postgres does not answer.
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
    """Whether an object in the database should be compared with `tables.metadata`: partitions are not, as they come and
    go with the periods.
    """
    return kind != "table" or name is None or PARTITION.fullmatch(name) is None


def head_revision() -> str:
    """The revision of this release's schema."""
    head = ScriptDirectory(str(_script_folder())).get_current_head()
    assert head is not None, "there are migrations"
    return head


def alembic_config(dsn: str) -> Config:
    """The Alembic configuration for one database, without an `alembic.ini`."""
    try:
        url = sqlalchemy_dsn(dsn)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    config = Config()
    config.set_main_option("script_location", str(_script_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    # As an attribute: in an option, a % in a password would count as an interpolation.
    config.attributes["dsn"] = url
    return config


def _script_folder() -> Path:
    return Path(migrations.__path__[0])
