"""Connections to the primary among several servers of Postgres, as a failover moves it from one to another.

Each engine has one `Hosts`, and the check for poolers another. asyncpg looks for the primary by itself, but waits a
minute for a host that is gone before it tries the next, and begins with the first host each time.
"""

from typing import Any

import asyncpg
from asyncpg import CannotConnectNowError, Connection, ConnectionDoesNotExistError, TargetServerAttributeNotMatched

__all__ = ["Hosts"]

HOST_SECONDS = 3.0
"""How long one of several hosts may take to answer before the next is tried. A host that is gone says nothing."""

ELSEWHERE = (OSError, TargetServerAttributeNotMatched, CannotConnectNowError, ConnectionDoesNotExistError)
"""Errors after which the next host is tried: this one does not answer (a TimeoutError is an OSError), is a standby,
starts or stops, or has dropped the connection. Any other, such as a refused password, would be that of the next host
too."""


class Hosts:
    """Opens connections to the server that `target_session_attrs` asks for, the one that answered last first."""

    def __init__(self) -> None:
        self._last = 0

    async def connect(self, **options: Any) -> Connection:
        """Open a connection.

        Args:
            options: of `asyncpg.connect`. With a list as `host`, and one as `port`, they are tried one after the other.

        Raises:
            OSError, PostgresError, InterfaceError, InternalClientError: no server accepts it; the error of the last.
        """
        if not isinstance(options.get("host"), list):
            return await asyncpg.connect(**options)
        places = list(zip(options.pop("host"), options.pop("port"), strict=True))
        start = self._last
        for number in range(start, start + len(places)):
            host, port = places[number % len(places)]
            try:
                connection = await asyncpg.connect(host=host, port=port, timeout=HOST_SECONDS, **options)
            except ELSEWHERE:
                if number == start + len(places) - 1:
                    raise
            else:
                self._last = number % len(places)
                return connection
        raise AssertionError("a list of hosts has one at least")
