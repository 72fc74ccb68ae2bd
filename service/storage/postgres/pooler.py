"""Refuses a connection pooler that does not keep a session for each client.

The locks of the log and of the leader belong to a session. A pooler that gives a server connection to a client for one
transaction or statement only (PgBouncer's `pool_mode=transaction`) hands one client's locks to the next. To find out,
two clients lock and look at who holds what. They use the simple query protocol and count rows, since such a pooler
breaks prepared statements too.

Each process calls `require_sessions` when it starts, and each migration before it begins.
"""

import asyncio
import secrets

from asyncpg import Connection, ConnectionDoesNotExistError, ProtocolViolationError
from sqlalchemy import make_url

from service.errors import ConfigurationError
from service.settings import sqlalchemy_dsn
from service.storage.postgres.hosts import Hosts
from service.storage.postgres.outages import opening

__all__ = ["require_sessions"]

ROUNDS = 5
"""How often the clients look: while others use the pooler too, a client may get the right connection by chance."""

ANSWER_SECONDS = 10.0
"""Seconds that the whole check may take. A pooler with one server connection makes the second client wait for it."""

CLASS = 0x61736D67
"""The upper half of the lock's key, the same as in `Lock`. The lower half is random."""

POOLED = (
    "Postgres is reached through a pooler that lends connections for a transaction or a statement at a time, but the "
    "locks of the service are those of a session: connect ASMG_POSTGRES_DSN to Postgres itself, or to a pooler in "
    "session mode"
)


async def require_sessions(dsn: str) -> None:
    """Return if each connection has its own session in Postgres.

    Raises:
        ConfigurationError: the DSN is not one of Postgres, or leads to a pooler that does not keep sessions.
        NotReady: Postgres does not answer.
    """
    try:
        url = make_url(sqlalchemy_dsn(dsn))
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    _, options = url.get_dialect()().create_connect_args(url)
    options = {name: value for name, value in options.items() if not name.startswith("prepared_statement_")}
    if isinstance(options.get("host"), list):
        options.setdefault("target_session_attrs", "primary")
    hosts = Hosts()
    clients: list[Connection] = []
    with opening():
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                for _ in range(2):
                    clients.append(await hosts.connect(**options))
                kept = await _keep_sessions(*clients)
        except TimeoutError:
            if len(clients) < 2:
                raise
            kept = False  # both could connect, and one waits for the other's server connection
        finally:
            for client in clients:
                client.terminate()
    if not kept:
        raise ConfigurationError(POOLED)


async def _keep_sessions(first: Connection, second: Connection) -> bool:
    """Whether a lock of the first client stays with it, and the second never has it."""
    key = secrets.randbits(31)
    held = (
        f"SELECT FROM pg_locks WHERE locktype = 'advisory' AND (classid, objid) = ({CLASS}, {key}) "
        "AND pid = pg_backend_pid() AND granted"
    )
    unlock = f"SELECT pg_advisory_unlock({CLASS << 32 | key}) WHERE EXISTS ({held})"
    await first.execute(f"SELECT pg_advisory_lock({CLASS << 32 | key})")
    try:
        for _ in range(ROUNDS):
            # In a transaction, so that the pooler cannot give the second client's server connection to the first.
            try:
                await second.execute("BEGIN")
            except ConnectionDoesNotExistError as error:
                if isinstance(error.__cause__, ProtocolViolationError):  # from a pooler in statement mode
                    return False
                raise
            shared = await _count_rows(second, held)
            lost = not shared and not await _count_rows(first, held)
            await second.execute("ROLLBACK")
            if shared or lost:
                return False
        return True
    finally:
        for client in (first, second):
            if not client.is_closed():
                await client.execute(unlock)


async def _count_rows(client: Connection, query: str) -> int:
    return int((await client.execute(query)).rpartition(" ")[2])
