"""Which errors mean that Postgres cannot work now or has lost a connection, and not that a statement was wrong.

Everything that talks to Postgres turns the former into `NotReady`, which clients see as 503.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from asyncpg import InterfaceError, InternalClientError, PostgresError
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from service.errors import NotReady

__all__ = ["FAILURES", "damage", "driver_error", "opening", "outage"]

FAILURES = (
    SQLAlchemyError,
    AsyncAdapt_asyncpg_dbapi.Error,
    PostgresError,
    InterfaceError,
    InternalClientError,
    OSError,
)
"""All that a call of Postgres can raise. SQLAlchemy raises an error of the driver unchanged while it sets up a
connection, wrapped once where the driver's connection is requested, and wrapped twice from a statement."""

STATES = (
    "08",  # the connection failed
    "25P03",  # the client was silent within a transaction for too long
    "40001",  # another transaction was in the way
    "40P01",  # two transactions waited for each other
    "53",  # no disk space, memory or connection is left
    "57P",  # the server shuts down, has crashed, or starts
    "58",  # the server cannot read or write its own files
)
"""Prefixes of SQLSTATE (PostgreSQL manual, appendix A) after which the same statement may succeed later."""

DAMAGED = (
    "58030",  # the disk returned an I/O error
    "XX001",  # a page, or a part of a large value, is corrupt
    "XX002",  # an index is corrupt
)
"""SQLSTATEs of stored data that cannot be read."""


def outage(error: DBAPIError | PostgresError | InternalClientError | ConnectionError | TimeoutError) -> str | None:
    """Describe what is wrong with Postgres, if the same call may succeed later; None for any other error."""
    if isinstance(error, (ConnectionError, TimeoutError)):  # from the driver; SQLAlchemy lets it through
        return f"Postgres does not answer: {type(error).__name__}"
    # The driver raises InternalClientError on a connection that Postgres has ended and the driver has not closed yet.
    if isinstance(error, InternalClientError) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return "the connection to Postgres was lost"
    state = _sqlstate(error)
    return f"Postgres cannot do it now (SQLSTATE {state})" if state.startswith(STATES) else None


@contextmanager
def opening() -> Iterator[None]:
    """A block that opens a connection to Postgres. Every failure in it becomes `NotReady`.

    This includes a refused password and a missing database: an operator can fix either while the service runs, and the
    message names it.
    """
    try:
        yield
    except FAILURES as error:
        cause = driver_error(error)
        code = f" (SQLSTATE {state})" if (state := _sqlstate(cause)) else ""
        raise NotReady(f"Postgres does not answer: {type(cause).__name__}{code}") from error


def driver_error(error: BaseException) -> BaseException:
    """The error that the driver raised, without what SQLAlchemy wrapped around it."""
    if isinstance(error, DBAPIError):
        error = error.orig or error
    if isinstance(error, AsyncAdapt_asyncpg_dbapi.Error):
        error = error.__cause__ or error
    return error


def damage(error: DBAPIError) -> str | None:
    """Describe the damage, if Postgres could not read rows because they are corrupt; None for any other error."""
    state = _sqlstate(error)
    return f"Postgres finds it damaged (SQLSTATE {state})" if state in DAMAGED else None


def _sqlstate(error: BaseException) -> str:
    return str(getattr(driver_error(error), "sqlstate", None) or "")
