"""Brings the schema of a database up to date, from a checkout or from an installed wheel."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

import migrations
from service.errors import ConfigurationError
from service.settings import sqlalchemy_dsn

__all__ = ["alembic_config", "head_revision", "migrate"]


def migrate(dsn: str) -> None:
    """Run all migrations that the database has not seen, under an advisory lock: several processes may try at once.

    It runs an event loop of its own; inside a running one, call it in a thread.

    Raises:
        ConfigurationError: the DSN is none of Postgres.
    """
    command.upgrade(alembic_config(dsn), "head")


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
