"""Which errors say that Postgres cannot work now, rather than that a statement was wrong."""

from asyncpg import PostgresError
from sqlalchemy.exc import DBAPIError

__all__ = ["is_outage"]

CLASSES = (
    "08",  # the connection failed
    "53",  # no disk space, memory or connection is left
    "57P",  # it shuts down, has crashed, or starts
    "58",  # its own files cannot be read or written
)
"""Beginnings of SQLSTATE (PostgreSQL manual, appendix A)."""


def is_outage(error: DBAPIError | PostgresError) -> bool:
    """Whether the same may succeed later, with nothing changed but the state of the server."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    code = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None)
    return code is not None and code.startswith(CLASSES)
