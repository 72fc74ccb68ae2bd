"""Whether a connection to Postgres keeps its session, as the locks of the log and of the leader need it.

A pooler that lends a server connection for a transaction or a statement at a time (PgBouncer's `pool_mode=transaction`)
gives what one client has locked to the next one. So two clients look whose lock is where. All is said by the simple
protocol and read from the number of rows, for prepared statements are the other thing that such a pooler breaks.
"""

import asyncio
import secrets

from asyncpg import Connection, ConnectionDoesNotExistError, ProtocolViolationError, connect
from sqlalchemy import make_url

from service.errors import ConfigurationError
from service.settings import sqlalchemy_dsn
from service.storage.postgres.outages import opening

__all__ = ["require_sessions"]

ROUNDS = 5
"""Of looking again: where others use the pooler, each may find the right server connection by chance."""

ANSWER_SECONDS = 10.0
"""For all of it. A pooler whose one server connection is taken lets the other client wait for it."""

CLASS = 0x61736D67
"""The upper half of the key, as that of all our locks; the lower half is random."""

POOLED = (
    "Postgres is reached through a pooler that lends connections for a transaction or a statement at a time, but the "
    "locks of the service are those of a session: connect ASMG_POSTGRES_DSN to Postgres itself, or to a pooler in "
    "session mode"
)


async def require_sessions(dsn: str) -> None:
    """Return where each connection is a session of its own in Postgres.

    Raises:
        ConfigurationError: the DSN is none of Postgres, or a pooler is between that does not keep sessions apart.
        NotReady: Postgres does not answer.
    """
    try:
        url = make_url(sqlalchemy_dsn(dsn))
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    _, options = url.get_dialect()().create_connect_args(url)
    options = {name: value for name, value in options.items() if not name.startswith("prepared_statement_")}
    clients: list[Connection] = []
    with opening():
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                for _ in range(2):
                    clients.append(await connect(**options))
                kept = await _keep_sessions(*clients)
        except TimeoutError:
            if len(clients) < 2:
                raise
            kept = False  # both were let in, and one waits for the other
        finally:
            for client in clients:
                client.terminate()
    if not kept:
        raise ConfigurationError(POOLED)


async def _keep_sessions(first: Connection, second: Connection) -> bool:
    """Whether what the first locks stays with it, and only with it."""
    key = secrets.randbits(31)
    held = (
        f"SELECT FROM pg_locks WHERE locktype = 'advisory' AND (classid, objid) = ({CLASS}, {key}) "
        "AND pid = pg_backend_pid() AND granted"
    )
    unlock = f"SELECT pg_advisory_unlock({CLASS << 32 | key}) WHERE EXISTS ({held})"
    await first.execute(f"SELECT pg_advisory_lock({CLASS << 32 | key})")
    try:
        for _ in range(ROUNDS):
            # Within a transaction, so that a pooler cannot give its server connection to the first meanwhile.
            try:
                await second.execute("BEGIN")
            except ConnectionDoesNotExistError as error:
                if isinstance(error.__cause__, ProtocolViolationError):  # a pooler of statements knows none
                    return False
                raise
            shared = await _rows(second, held)
            lost = not shared and not await _rows(first, held)
            await second.execute("ROLLBACK")
            if shared or lost:
                return False
        return True
    finally:
        for client in (first, second):
            if not client.is_closed():
                await client.execute(unlock)


async def _rows(client: Connection, query: str) -> int:
    return int((await client.execute(query)).rpartition(" ")[2])
