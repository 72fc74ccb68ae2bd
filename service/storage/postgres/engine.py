"""SQLAlchemy engines whose sessions have the settings of the service, and connections that notice a dead host.

`Database` and `Leadership` make their engines here when a process starts, as does Alembic's `migrations/env.py`.
"""

import socket
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import asyncpg
import orjson
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from service.errors import ConfigurationError
from service.settings import sqlalchemy_dsn
from service.storage.postgres.hosts import Hosts
from service.storage.postgres.outages import FAILURES
from service.storage.postgres.statement_spans import trace_statements
from service.tasks import start_alone
from service.telemetry.tracing import active_tracing

__all__ = ["KEEPALIVE", "SESSION", "discard", "make_engine"]

IDLE_SECONDS = 10
"""Silence on a TCP connection after which the kernel begins to probe the other host."""

PROBE_SECONDS, PROBES = 5, 3
"""Seconds between two probes, and how many may stay unanswered."""

GONE_SECONDS = IDLE_SECONDS + PROBE_SECONDS * PROBES
"""Seconds without an answer from the other host after which either side ends the connection."""

IN_TRANSACTION_SECONDS = 30
"""Silence of a client within a transaction after which Postgres ends its session and frees its locks. The statements of
a transaction follow each other at once, so a client that is silent for longer is frozen."""

SESSION = {
    "application_name": "asmg",
    "jit": "off",  # compiling takes longer than any query here takes to run
    "timezone": "UTC",
    "idle_in_transaction_session_timeout": str(IN_TRANSACTION_SECONDS * 1000),
    # For TCP; Postgres ignores these on a Unix socket.
    "tcp_keepalives_idle": str(IDLE_SECONDS),
    "tcp_keepalives_interval": str(PROBE_SECONDS),
    "tcp_keepalives_count": str(PROBES),
    "tcp_user_timeout": str(GONE_SECONDS * 1000),
}
"""Server settings of every session."""

KEEPALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (
        ("TCP_KEEPIDLE", IDLE_SECONDS),
        ("TCP_KEEPINTVL", PROBE_SECONDS),
        ("TCP_KEEPCNT", PROBES),
        ("TCP_USER_TIMEOUT", GONE_SECONDS * 1000),
    )
    if hasattr(socket, name)  # not every system has all of them
]
"""The keepalive settings of `SESSION` as socket options of the client: level, option and value."""


class KeepaliveConnection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection whose socket has the `KEEPALIVE` options. asyncpg has no setting for them."""

    def __init__(self, protocol: object, transport: Any, *others: Any) -> None:
        super().__init__(protocol, transport, *others)
        self.socket: socket.socket = transport.get_extra_info("socket")
        if self.socket.family is not socket.AF_UNIX:
            for level, option, value in KEEPALIVE:
                self.socket.setsockopt(level, option, value)


def make_engine(dsn: str, session: Mapping[str, str] = MappingProxyType({}), **options: Any) -> AsyncEngine:
    """Make an engine. It connects when it is first used.

    Args:
        dsn: `postgresql://…`; the name of the driver is added. Unless it has `target_session_attrs`, a standby is
            refused: it could store nothing, and a leader elected there would not be the primary's.
        session: server settings of its sessions, beside `SESSION`.
        options: passed on to `create_async_engine`.

    Raises:
        ConfigurationError: the DSN is not one of Postgres.
    """
    try:
        url = sqlalchemy_dsn(dsn)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    hosts = Hosts()

    async def open_connection(**given: Any) -> KeepaliveConnection:
        wanted = {"target_session_attrs": "primary", **given, "connection_class": KeepaliveConnection}
        # The connection outlives the request that needed it first, so it must not carry that request's id into the log.
        connection: KeepaliveConnection = await start_alone(hosts.connect(**wanted))
        return connection

    engine = create_async_engine(
        url,
        hide_parameters=True,  # errors are logged; ids that clients sent and hashes of keys must not be
        json_serializer=_dump_json,
        json_deserializer=orjson.loads,
        connect_args={"server_settings": {**SESSION, **session}, "async_creator_fn": open_connection},
        **options,
    )
    if (tracing := active_tracing()) is not None:
        trace_statements(engine.sync_engine, tracing)
    return engine


async def discard(connection: AsyncConnection) -> None:
    """Close a connection for good, even a broken one. The server then ends its session and frees its locks."""
    with suppress(*FAILURES):
        await connection.invalidate()
    with suppress(*FAILURES):
        await connection.close()


def _dump_json(value: object) -> str:
    # NaN becomes null, since JSON has no NaN; NumPy scalars and arrays become numbers and lists.
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
