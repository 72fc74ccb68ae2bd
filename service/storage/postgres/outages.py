"""Which errors say that Postgres cannot work now, or has lost what it held, rather than that a statement was wrong."""

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
"""What a call of Postgres can raise. An error of the driver comes as it is where SQLAlchemy sets up a connection,
wrapped once where the driver's connection was asked for, and wrapped twice from a statement."""

STATES = (
    "08",  # the connection failed
    "25P03",  # it was silent in the midst of a transaction for too long
    "40001",  # another transaction stood in the way
    "40P01",  # so that both waited for each other
    "53",  # no disk space, memory or connection is left
    "57P",  # it shuts down, has crashed, or starts
    "58",  # its own files cannot be read or written
)
"""Beginnings of SQLSTATE (PostgreSQL manual, appendix A)."""

DAMAGED = (
    "58030",  # the disk does not give it back
    "XX001",  # a page, or a part of a large value, is not as it was written
    "XX002",  # an index is not
)


def outage(error: DBAPIError | PostgresError | InternalClientError | ConnectionError | TimeoutError) -> str | None:
    """What is wrong with Postgres, where the same may succeed later with nothing changed but its state; else None."""
    if isinstance(error, (ConnectionError, TimeoutError)):  # the driver's own, which SQLAlchemy lets through
        return f"Postgres does not answer: {type(error).__name__}"
    # The driver's own is about a connection that Postgres has just ended: it has been told, and has not closed it yet.
    if isinstance(error, InternalClientError) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return "the connection to Postgres was lost"
    state = _state(error)
    return f"Postgres cannot do it now (SQLSTATE {state})" if state.startswith(STATES) else None


@contextmanager
def opening() -> Iterator[None]:
    """A block that opens a connection to Postgres; whatever keeps it from being opened becomes `NotReady`.

    That a password is refused or a database is missing does too: an operator can set it right while the service runs,
    and the message names it.
    """
    try:
        yield
    except FAILURES as error:
        cause = driver_error(error)
        code = f" (SQLSTATE {state})" if (state := _state(cause)) else ""
        raise NotReady(f"Postgres does not answer: {type(cause).__name__}{code}") from error


def driver_error(error: BaseException) -> BaseException:
    """What the driver raised, of an error that SQLAlchemy may have wrapped it in."""
    if isinstance(error, DBAPIError):
        error = error.orig or error
    if isinstance(error, AsyncAdapt_asyncpg_dbapi.Error):
        error = error.__cause__ or error
    return error


def damage(error: DBAPIError) -> str | None:
    """What is wrong with rows that were read, where Postgres itself finds them damaged; else None."""
    state = _state(error)
    return f"Postgres finds it damaged (SQLSTATE {state})" if state in DAMAGED else None


def _state(error: BaseException) -> str:
    return str(getattr(driver_error(error), "sqlstate", None) or "")
