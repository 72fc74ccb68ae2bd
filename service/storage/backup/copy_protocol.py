"""COPY over the connection of a session, and the errors of backups and restores."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from asyncpg import Connection, InterfaceError, PostgresError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import BackupError, NotReady
from service.storage.postgres.outages import outage

__all__ = ["binary_copy", "copied_rows", "refusals"]


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn refusals of statements by Postgres into `BackupError`. The session turns outages into `NotReady`.

    Args:
        what: the beginning of the message.
    """
    try:
        yield
    except DBAPIError as error:
        if outage(error) is not None:
            raise
        raise BackupError(f"{what}: {error.orig}") from error


@asynccontextmanager
async def binary_copy(connection: AsyncConnection, name: str) -> AsyncIterator[Connection]:
    """The driver's connection, which can COPY, in the transaction that SQLAlchemy has begun.

    Args:
        connection: of the session.
        name: of the file, for messages.

    Raises:
        BackupError: Postgres refuses the rows.
        NotReady: Postgres does not answer any more.
    """
    driver: Connection = (await connection.get_raw_connection()).driver_connection
    try:
        yield driver
    except PostgresError as error:
        if (trouble := outage(error)) is not None:
            raise NotReady(trouble) from error
        raise BackupError(f"{name}: {error}") from error
    except BaseException as error:
        # A connection that was interrupted during a COPY accepts nothing else, not even a ROLLBACK.
        driver.terminate()
        await connection.invalidate()
        if isinstance(error, (InterfaceError, ConnectionError)):
            raise NotReady("the connection to Postgres was lost") from error
        raise


def copied_rows(status: str) -> int:
    """The number of rows in a command tag such as `COPY 12`."""
    return int(status.removeprefix("COPY "))
