"""Clients of Redis, and what concerns all keys of the service at once.

Each process makes one client when it starts.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError, ResponseError

from service.addresses import parse_sentinel_url
from service.errors import NotReady
from service.storage.redis.command_spans import traced_client
from service.tasks import start_alone
from service.telemetry.server_metrics import PoolState
from service.telemetry.tracing import active_tracing

__all__ = ["connect", "connection_problem", "pool_state", "purge", "scan_pages"]

NAMESPACE = "asmg:"
"""Prefix of all keys of the service."""

KEYS_OF_A_PAGE = 1000
"""Keys that one `SCAN` looks at. Redis does nothing else meanwhile."""


def connect(url: str) -> Redis:
    """Make a client. It connects when it is first used, and raises within seconds when Redis does not answer.

    At most 256 connections are open; further callers wait for up to 2 seconds for one. An error there would send a
    burst of requests to Postgres at the worst time.

    Args:
        url: `redis://`, `rediss://`, `unix://`, or `redis+sentinel://`, `rediss+sentinel://` of Sentinels, which are
            asked for the master each time that a connection is opened.
    """
    answering: dict[str, Any] = {"socket_connect_timeout": 1, "socket_timeout": 5, "retry": Retry(NoBackoff(), 1)}
    client = Redis if (tracing := active_tracing()) is None else traced_client(tracing)
    options: dict[str, Any] = {"max_connections": 256, "timeout": 2, "health_check_interval": 30, **answering}
    if "+sentinel://" not in url:
        return client.from_pool(DetachedPool.from_url(url, **options))
    named = parse_sentinel_url(url)
    given = dict(parse_url(named.redis_url))
    del given["host"]
    tls = {name: value for name, value in given.items() if name.startswith("ssl_")}
    if given.pop("connection_class", None) is not None:
        tls["ssl"] = given["ssl"] = True
    own = {"username": named.username, "password": named.password}
    sentinels = Sentinels(named.sentinels, {**answering, **own, **tls})
    return client.from_pool(SentinelPool(named.service, sentinels, **options, **given))


class DetachedPool(BlockingConnectionPool):
    """A pool that opens connections outside of the request that needs one first, and counts them.

    A connection outlives that request, so it must not carry the request's id into the log.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._lent: set[AbstractConnection] = set()
        self.waiting = 0
        """Callers that wait for a connection."""

    @property
    def in_use(self) -> int:
        """Connections that somebody has."""
        return len(self._lent)

    async def get_connection(self, *names: Any, **options: Any) -> AbstractConnection:
        """Lend a connection; wait until there is one."""
        self.waiting += 1
        try:
            connection: AbstractConnection = await super().get_connection(*names, **options)  # type: ignore[no-untyped-call]
        finally:
            self.waiting -= 1
        self._lent.add(connection)
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Take a connection back."""
        self._lent.discard(connection)
        await super().release(connection)

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        """Open the connection if it is not open."""
        if connection.is_connected:
            await super().ensure_connection(connection)
        else:
            await start_alone(super().ensure_connection(connection))


class SentinelPool(SentinelConnectionPool, DetachedPool):
    """A pool of connections to the master that Sentinels name.

    Args:
        service: the name of that master.
        sentinels: whom to ask.
        options: of the pool and of its connections.
    """

    def __init__(self, service: str, sentinels: "Sentinels", **options: Any) -> None:
        SentinelConnectionPool.__init__(self, service, sentinels, **options)


class Sentinels:
    """Asks Sentinels for the master, over connections that are closed again, since connections to Redis last.

    Args:
        places: host and port of each.
        options: of the connections to them.
    """

    def __init__(self, places: Sequence[tuple[str, int]], options: Mapping[str, Any]) -> None:
        self._places, self._options = list(places), options

    async def discover_master(self, service: str) -> tuple[str, int]:
        """Host and port of the master, of the first Sentinel that answers; it is asked first the next time.

        Raises:
            MasterNotFoundError: no Sentinel answers, or none knows a master that is alive.
        """
        asked = Sentinel(self._places, sentinel_kwargs=self._options)
        try:
            host, port = await asked.discover_master(service)
            places = [sentinel.connection_pool.connection_kwargs for sentinel in asked.sentinels]
            self._places = [(place["host"], place["port"]) for place in places]
            return host, port
        except MasterNotFoundError:  # its text describes each Sentinel's client at length; the log gets ours
            raise MasterNotFoundError("no Sentinel answers and knows a living master") from None
        finally:
            for sentinel in asked.sentinels:
                await sentinel.aclose()


def pool_state(redis: Redis) -> PoolState:
    """How many connections of a client of `connect` are in use, and who waits for one."""
    pool = redis.connection_pool
    assert isinstance(pool, DetachedPool)
    return PoolState(in_use=pool.in_use, most=pool.max_connections, waiting=pool.waiting)


async def connection_problem(url: str) -> str | None:
    """Say why the Redis at this URL cannot be used now; None if it can. The text contains nothing of the URL."""
    redis = connect(url)
    try:
        await redis.ping()
    except (RedisError, OSError) as error:
        cause = error.__cause__ or error  # set for errors while it connects
        if isinstance(cause, (AuthenticationError, AuthorizationError)):
            return "refuses the user name or password"
        if isinstance(cause, ResponseError):
            return f"refuses the connection: {cause}"
        return f"does not answer: {type(error).__name__}"
    finally:
        await redis.aclose()
    return None


async def purge(redis: Redis) -> int:
    """Remove every key of the service; return how many there were.

    Raises:
        NotReady: Redis does not answer.
    """
    removed = 0
    try:
        async for keys in scan_pages(redis, f"{NAMESPACE}*"):
            removed += await redis.unlink(*keys)
    except RedisError as error:
        raise NotReady(f"Redis does not answer: {type(error).__name__}") from error
    return removed


async def scan_pages(redis: Redis, *patterns: str) -> AsyncIterator[list[bytes | str]]:
    """The keys that match a pattern, in pages; the patterns one after the other."""
    for pattern in patterns:
        cursor = 0
        while True:
            cursor, keys = await redis.scan(cursor, match=pattern, count=KEYS_OF_A_PAGE)
            if keys:
                yield keys
            if cursor == 0:
                break
