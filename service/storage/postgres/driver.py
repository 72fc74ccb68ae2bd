"""The asyncpg connection under a SQLAlchemy connection, for what SQLAlchemy has no words for: COPY."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from asyncpg import Connection, InterfaceError, InternalClientError, PostgresError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from service.errors import NotReady
from service.storage.postgres.outages import outage

__all__ = ["asyncpg_connection", "translate_postgres_errors"]


@asynccontextmanager
async def asyncpg_connection(connection: AsyncConnection) -> AsyncIterator[Connection]:
    """The asyncpg connection of a session, in its transaction.

    Raises:
        NotReady: Postgres cannot work now.
    """
    driver: Connection = (await connection.get_raw_connection()).driver_connection
    if not driver.is_in_transaction():  # SQLAlchemy begins a transaction with the first statement that it sends itself
        await connection.execute(text("SELECT 1"))
    with translate_postgres_errors(driver):
        yield driver


@contextmanager
def translate_postgres_errors(driver: Connection) -> Iterator[None]:
    """A block in which errors of asyncpg become `NotReady` where they mean that Postgres cannot work now."""
    try:
        yield
    except (PostgresError, InterfaceError, InternalClientError, OSError) as error:
        if driver.is_closed() or not isinstance(error, PostgresError):
            raise NotReady("the connection to Postgres was lost") from error
        if (trouble := outage(error)) is not None:
            raise NotReady(trouble) from error
        raise
